"""A small collection on the demo's base: real tasks, adapters of random numbers."""

import json

import pytest
import torch

from dnd_fast import Adapter, Recipe
from dnd_fast.demo.tasks import Task
from dnd_fast.demo.vocabulary import DOMAINS, FORMATS, SKILLS
from dnd_fast.generator_config import DEMO_MODELS, GeneratorConfig
from dnd_fast.lora.adapter import lora_config
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.text.datasets import Dataset
from dnd_fast.train.adapters.collection import Collection, Manifest

CHECKPOINTS = 3


def write_dataset(folder, task, count=24, **options):
    """A demo task's examples as a data set; returns its file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{task.skill}-{task.format}-{task.domain}.jsonl"
    examples = task.examples(count, **{"words": "train", "seed": 0} | options)
    path.write_text(
        "".join(json.dumps({"prompt": e.prompt, "response": e.answer}) + "\n" for e in examples)
    )
    return path


@pytest.fixture(scope="session")
def demo_tasks():
    """Four tasks: two skills in two formats."""
    skills, formats, domain = list(SKILLS)[:2], list(FORMATS)[:2], next(iter(DOMAINS))
    return [Task(skill, form, domain) for skill in skills for form in formats]


@pytest.fixture(scope="session")
def shared_collection(tmp_path_factory, demo_tasks):
    folder = tmp_path_factory.mktemp("toy") / "collection"
    layout = TokenLayout.from_dict(GeneratorConfig.from_recipe(Recipe.load("demo")).layout)
    base, tokenizer = str(DEMO_MODELS / "base"), str(DEMO_MODELS / "tokenizer")
    config = lora_config(
        rank=layout.rank,
        lora_alpha=layout.lora_alpha,
        target_modules=layout.target_modules,
        base_model=base,
    )
    generator = torch.Generator().manual_seed(0)
    shapes = layout.tensor_shapes()
    common = {key: 0.1 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    datasets = {}
    for task in demo_tasks:
        dataset = Dataset.read(write_dataset(folder / "datasets", task))
        datasets[dataset.name] = dataset.sha256
        for step in range(CHECKPOINTS):
            tensors = {
                key: value + 0.01 * torch.randn(value.shape, generator=generator)
                for key, value in common.items()
            }
            Adapter(tensors, config).save(
                folder / "adapters" / dataset.name / f"step-{76 + step:05d}"
            )
    manifest = Manifest(
        base, tokenizer, layout.rank, layout.lora_alpha, layout.target_modules, {}, datasets
    )
    manifest.write(folder)
    return folder


@pytest.fixture
def collection(shared_collection):
    """Four demo tasks with three adapters each; not to be changed."""
    return Collection.open(shared_collection)
