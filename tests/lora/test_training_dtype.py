"""Which dtype a base gets where nobody says otherwise."""

import pytest
import torch

from dnd_fast.lora import training_dtype
from dnd_fast.lora.training_dtype import default_dtype, fastest_dtype
from dnd_fast.recipe import LoraSpec

EVERY_LAYER, SOME_LAYERS = LoraSpec(2, 4), LoraSpec(2, 4, layers=(1, 2))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DND_FAST_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [((1.0, 0.5), torch.bfloat16), ((1.0, 0.9), torch.float32), ((1.0, 3.0), torch.float32)],
)
def test_the_faster_one_is_measured_once(seconds, expected, monkeypatch):
    """Also where it is slower later: a run that resumes gets what it began with."""
    times = dict(zip((torch.float32, torch.bfloat16), seconds, strict=True))
    monkeypatch.setattr(training_dtype, "_product_seconds", lambda dtype, device: times[dtype])
    assert default_dtype(SOME_LAYERS, "cpu") == expected
    times.clear()
    assert fastest_dtype("cpu") == expected


def test_what_is_measured_is_kept(cache, monkeypatch):
    monkeypatch.setattr(training_dtype, "BUDGET", 0.01)
    assert fastest_dtype() in (torch.float32, torch.bfloat16)
    (file,) = (cache / "training-dtypes").iterdir()
    assert file.suffix == ".json"


def test_recipes_that_adapt_every_layer_keep_float32(monkeypatch):
    """On a CPU, unmeasured: their results are the same on every machine."""
    monkeypatch.setattr(training_dtype, "_product_seconds", lambda dtype, device: 1 / 0)
    assert default_dtype(EVERY_LAYER, "cpu") == torch.float32
    assert default_dtype(EVERY_LAYER, "cuda") == default_dtype(SOME_LAYERS, "cuda")
    assert default_dtype(SOME_LAYERS, "cuda") == torch.bfloat16
