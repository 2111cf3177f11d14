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
        assert f"](bench/results/{name}.png)" in text


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


def test_a_table_that_says_something_else_fails_the_check(monkeypatch, tmp_path):
    readme = tmp_path / "README.md"
    marks = "<!-- {0} table -->\n\nold\n\n<!-- end of {0} table -->\n"
    readme.write_text("".join(map(marks.format, "ab")))
    monkeypatch.setattr(report, "README", readme)
    monkeypatch.setattr(report, "TABLES", {"a": lambda: "old", "b": lambda: "new"})
    with pytest.raises(SystemExit, match="README's tables b are not"):
        report.main(check=True)
    monkeypatch.setattr(plots, "draw_all", list)
    report.main(check=False)
    assert "new" in readme.read_text()
    report.main(check=True)
