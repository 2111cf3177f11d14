"""Stages must be timed apart."""

import time

import pytest

from dnd_fast import Adapter, Generator
from dnd_fast.bench import latency
from dnd_fast.bench.harness.stages import generation_stages
from dnd_fast.text.prompts import read_prompts, sample_prompts


def test_stages_are_timed_apart(monkeypatch):
    """A sleep planted in one stage shows in it and in the total, and nowhere else."""
    generator = Generator.from_pretrained("demo")
    tasks = [sample_prompts(read_prompts(latency.PROMPTS), 8, 0)]
    original = generator.layout.unpack
    monkeypatch.setattr(generator.layout, "unpack", lambda x: time.sleep(0.3) or original(x))
    monkeypatch.setattr(Adapter, "save", lambda self, folder: time.sleep(0.9))
    stages = {name: values[1] for name, values in generation_stages(generator, tasks, 2).items()}
    assert stages["detokenize"] >= 0.3
    assert stages["save"] >= 0.9
    assert max(stages["tokenize"], stages["to_host"]) < 0.3
    parts = ("tokenize", "encode", "decode", "detokenize", "to_host")
    assert stages["total"] == pytest.approx(sum(stages[name] for name in parts), rel=0.2)
