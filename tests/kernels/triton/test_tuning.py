"""Tables of tuned blocks: found by problem, missed with one warning, refused where damaged."""

import logging
from dataclasses import asdict

import pytest
import torch
import triton

from dnd_fast.kernels import device, device_tables
from dnd_fast.kernels.triton import tuning
from dnd_fast.kernels.triton.checks import Config

FIRST, OTHER = Config(16, 16, 16, 1, 1), Config(32, 64, 16, 4, 2)
CUDA = torch.device("cuda")
interpreted = pytest.mark.skipif(triton.knobs.runtime.interpret, reason="the interpreter has none")


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Write a device's table."""
    monkeypatch.setenv("DND_FAST_CACHE", str(tmp_path))
    monkeypatch.setattr(device, "device_name", lambda device: "A GPU")
    monkeypatch.setattr(device_tables, "device_name", lambda device: "A GPU")

    def write(configs):
        tuning.TABLES.save(CUDA, configs)
        tuning.forget_tables()

    tuning.forget_tables()
    yield write
    tuning.forget_tables()


def look_up(*sizes, on=CUDA, words=(torch.float16, "plain")):
    return tuning.config((FIRST, OTHER), on, "dft_forward", *words, *sizes)


def test_sizes_are_rounded_up_to_powers_of_two():
    assert tuning.key("dft_forward", (torch.float16, "plain", 129, 1, 64)) == (
        "dft_forward float16 plain 256x1x64"
    )


@interpreted
def test_the_table_counts_where_it_has_the_problem(table):
    table({"dft_forward float16 plain 256x64": asdict(OTHER)})
    assert look_up(200, 33) == OTHER
    assert look_up(256, 64) == OTHER
    assert look_up(257, 64) == FIRST
    assert look_up(200, 33, words=(torch.float32, "plain")) == FIRST


@interpreted
def test_one_warning_where_there_is_no_table(table, caplog):
    with caplog.at_level(logging.WARNING):
        assert [look_up(size) for size in (1, 2, 3)] == [FIRST] * 3
    (record,) = caplog.records
    assert "A-GPU.json" in record.getMessage()
    assert "`python -m dnd_fast.bench.tune --recipe all`" in record.getMessage()


@pytest.mark.parametrize("interpret", [False, True])
def test_only_a_gpu_has_a_table(table, caplog, monkeypatch, interpret):
    monkeypatch.setattr(triton.knobs.runtime, "interpret", interpret)
    on = CUDA if interpret else torch.device("cpu")
    assert look_up(1, on=on) == FIRST
    assert not caplog.records


@interpreted
@pytest.mark.parametrize(
    "fields",
    [
        {"block_m": 64},
        asdict(OTHER) | {"tma": True},
        asdict(OTHER) | {"block_m": "64"},
        asdict(OTHER) | {"num_warps": 4.0},
        asdict(OTHER) | {"num_stages": True},
        asdict(OTHER) | {"block_k": None},
        [64],
        None,
    ],
)
def test_a_damaged_table_is_named(table, fields):
    table({"dft_forward float16 plain 256x64": fields})
    with pytest.raises(
        ValueError, match=r"A-GPU.json has .* for 'dft_forward float16 plain 256x64'"
    ):
        look_up(200, 33)
