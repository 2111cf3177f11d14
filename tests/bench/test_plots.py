"""Plots are drawn from results, and only from those that there are."""

import dataclasses

import pytest

from dnd_fast.bench import latency, plots, report
from dnd_fast.bench.harness import results
from dnd_fast.kernels.device import PROFILES

pytest.importorskip("matplotlib")
PROFILE = dataclasses.replace(PROFILES["h200"], gemm_flops=5e14, bandwidth=3e12)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    return tmp_path


def save_latency(device="a GPU", gpu=True):
    for recipe in ("common-sense-0.5b", "math-7b"):
        for batch in (1, 4):
            seconds = 0.01 * batch**0.5
            results.append(
                "latency",
                {
                    "seed": 0,
                    "recipe": recipe,
                    "batch": batch,
                    "weights": "cached",
                    "device": device,
                    "peak_device_gb": 12.0 if gpu else None,
                    "peak_host_gb": 3.0,
                    "prompts_to_tokens_seconds": seconds,
                    "adapters_per_second": batch / seconds,
                    "speedup_over": {},
                    "ceiling_share": 0.5,
                    "paper_a100_seconds": 0.11,
                    "paper_a100_gb": 9.59,
                },
            )


def save_kernels(profile=PROFILE):
    row = {"p20_p50_p80_seconds": [9e-5, 1e-4, 2e-4], "bytes": 1e8, "flops": 1e10}
    rows = [row | {"layer": "0", "kernel": name} for name in ("dft_forward", "bin_gemm")]
    figures = {"seed": 0, "recipe": "math-7b", "device": "a GPU", "kernels": rows}
    results.append("kernels", figures | {"profile": profile.__dict__})


def axes():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots()[1]


def test_nothing_is_drawn_of_nothing(here, monkeypatch):
    monkeypatch.setattr(plots, "plot_plans", lambda axes: None)
    save_latency("a CPU", gpu=False)
    save_kernels(PROFILES["cpu"])
    assert [path.name for path in plots.draw_all()] == ["plans.png"]
    assert plots.images() == {}
    assert "![" not in report.TABLES["latency"]()


def test_all_are_drawn_and_shown(here, monkeypatch):
    monkeypatch.setattr(plots, "plot_plans", lambda axes: None)
    save_latency()
    save_kernels()
    drawn = {path.name for path in plots.draw_all()}
    assert drawn == {"plans.png", "latency.png", "batch.png", "roofline.png"}
    assert all((here / name).read_bytes().startswith(b"\x89PNG") for name in drawn)
    text = report.TABLES["latency"]()
    for name in plots.images():
        assert f"](../bench/results/{name}.png)" in text


def test_bars_have_the_heights_of_the_results():
    save_latency()
    drawn = axes()
    plots.plot_latency(drawn, plots.gpu_latency())
    heights = [bar.get_height() for bars in drawn.containers for bar in bars]
    paper = [1e3 * latency.PAPER[name][0] for name in ("common-sense-0.5b", "math-7b")]
    assert heights == pytest.approx([*paper, 10.0, 10.0])
    assert [label.get_text() for label in drawn.get_xticklabels()] == [
        "common-sense-0.5b",
        "math-7b",
    ]


def test_lines_and_points_are_the_results():
    save_latency()
    save_kernels()
    drawn = axes()
    plots.plot_batch(drawn, plots.gpu_latency())
    assert [list(line.get_xydata()[:, 1]) for line in drawn.lines] == [[100.0, 200.0]] * 2
    drawn = axes()
    plots.plot_roofline(drawn, plots.gpu_kernels())
    assert drawn.collections[0].get_offsets().tolist() == [[100.0, pytest.approx(100.0)]]
    limits = drawn.lines[0].get_xydata()
    assert max(limits[:, 1]) == pytest.approx(500.0)  # TFLOP/s
    assert limits[0].tolist() == [50.0, pytest.approx(150.0)]  # 50 FLOP a byte at 3 TB/s


def test_quality_against_time_is_the_results():
    """The base alone takes no time, and has no place on the axis."""
    ratio = {"generated": 1.0, "LoRA, 75 steps": 30.0, "base model alone": 0.0}
    accuracy = {name: [0.5, 1.0] for name in ratio}
    drawn = axes()
    demo = {"device": "a CPU", "ratio": ratio, "accuracy": accuracy}
    plots.plot_alternatives(drawn, {"demo": demo})
    points = [tuple(line.get_xydata()[0]) for line in drawn.lines]
    assert points == [(1.0, 0.75), (30.0, 0.75)]
    assert [text.get_text() for text in drawn.texts] == ["generated", "LoRA, 75 steps"]
