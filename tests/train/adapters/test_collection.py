"""Data sets and collections on disk: what is wrong with them is named before hours are spent."""

import json
import shutil

import pytest
import torch

from dnd_fast import Adapter, InvalidInput
from dnd_fast.files import write_safetensors
from dnd_fast.filesystem import TEMPORARY
from dnd_fast.text.datasets import Dataset, Example
from dnd_fast.train.adapters.collection import STATE_FILE, Collection, Group, Manifest


def test_dataset(tmp_path):
    path = tmp_path / "arc-c.train.jsonl"
    rows = [
        {"prompt": "a?", "response": "[A]", "system": "be brief"},
        {"prompt": "b", "response": "c"},
        {"prompt": "b", "response": "c", "system": ""},
    ]
    path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    dataset = Dataset.read(path)
    assert dataset.name == "arc-c.train"
    assert dataset.examples == (
        Example("a?", "[A]", "be brief"),
        Example("b", "c"),
        Example("b", "c", ""),
    )


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "no examples"),
        ('{"prompt": "a"}', "line 1.*'response'"),
        ('{"prompt": "a", "response": "b"}\n{"prompt": " ", "response": "b"}', "line 2.*'prompt'"),
        ('{"prompt": "a", "response": "b", "system": 3}', "'system'"),
        ('["a", "b"]', "list"),
        ('{"prompt": "a", ', "not valid JSON"),
    ],
)
def test_unusable_dataset_is_named(tmp_path, content, named):
    path = tmp_path / "task.jsonl"
    path.write_text(content)
    with pytest.raises(InvalidInput, match=named):
        Dataset.read(path)


def test_collection(collection, demo_tasks):
    assert len(collection.names) == len(demo_tasks)
    name = collection.names[0]
    checkpoints = collection.checkpoints(name)
    assert [path.name for path in checkpoints] == ["step-00076", "step-00077", "step-00078"]
    tensors = collection.load(checkpoints[0])
    truth = Adapter.load(checkpoints[0]).tensors
    assert all(torch.equal(value, truth[key]) for key, value in tensors.items())


@pytest.fixture
def spoiled(shared_collection, tmp_path):
    return shutil.copytree(shared_collection, tmp_path / "collection")


def test_changed_dataset_is_refused(spoiled):
    path = next((spoiled / "datasets").iterdir())
    path.write_text(path.read_text() + "\n")
    with pytest.raises(InvalidInput, match=f"{path.name} has changed"):
        Collection.open(spoiled)


def test_dataset_without_adapters_is_refused(spoiled):
    folder = next((spoiled / "adapters").iterdir())
    shutil.rmtree(folder)
    with pytest.raises(InvalidInput, match=f"'{folder.name}' has no adapter"):
        Collection.open(spoiled)


@pytest.mark.parametrize(
    ("key", "value"), [("r", 8), ("lora_alpha", 3), ("base_model_name_or_path", "another")]
)
def test_adapters_that_disagree_are_refused(spoiled, key, value):
    path = sorted(spoiled.glob("adapters/*/step-*/adapter_config.json"))[-1]
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(InvalidInput, match=f"step-00078: {key}"):
        Collection.open(spoiled)


def test_a_damaged_adapter_is_named(spoiled):
    collection = Collection.open(spoiled)
    checkpoint = collection.checkpoints(collection.names[1])[2]
    adapter = Adapter.load(checkpoint)
    next(iter(adapter.tensors.values())).view(-1)[3] = float("nan")
    adapter.save(checkpoint)
    with pytest.raises(InvalidInput, match=rf"{collection.names[1]}/step-00078.*NaN"):
        collection.load(checkpoint)


@pytest.mark.parametrize(
    "texts", [{}, {"step": "7"}, {"step": "x", "datasets": "{}"}, {"step": "7", "datasets": "[1]"}]
)
def test_a_state_that_does_not_say_whose_it_is(tmp_path, texts):
    manifest = Manifest("base", "base", 2, 4, ["q"], {}, {})
    collection = Collection.begin(tmp_path, manifest)
    write_safetensors(tmp_path / STATE_FILE, {"rows": torch.ones(2)}, texts)
    with pytest.raises(InvalidInput, match=r"state\.safetensors does not say what it is"):
        collection.unfinished([], 2)


def test_leftovers_of_killed_processes(tmp_path):
    manifest = Manifest("base", "base", 2, 4, ["q"], {}, {})
    collection = Collection.begin(tmp_path, manifest)
    for place in ("", "datasets", "adapters/a"):
        (tmp_path / place / f"{TEMPORARY}dead" / "half").mkdir(parents=True)
    assert Collection.begin(tmp_path, manifest).names == collection.names == []
    assert not list(tmp_path.rglob(f"{TEMPORARY}*"))


def test_no_collection(tmp_path):
    with pytest.raises(FileNotFoundError, match="no collection"):
        Collection.open(tmp_path)


def test_what_is_left_to_do(tmp_path):
    """Finished data sets are skipped; those begun come first, with their rows of the state."""
    datasets = []
    for name in "abcde":
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps({"prompt": name, "response": "r"}))
        datasets.append(Dataset.read(path))
    folder = tmp_path / "collection"
    folder.mkdir()
    collection = Collection.begin(folder, Manifest("base", "base", 2, 4, ["q"], {}, {}))
    assert [group.names for group in collection.unfinished(datasets, 2)] == [
        ["a", "b"],
        ["c", "d"],
        ["e"],
    ]
    collection.finish(Group(datasets[3:4]))
    state = {"rows": torch.arange(6.0).view(2, 3)}
    collection.save_state(Group([datasets[1], datasets[4]]), 7, state)
    again = Collection.begin(folder, Manifest("base", "base", 2, 4, ["q"], {}, {}))
    assert again.names == ["d"]
    begun, rest = again.unfinished(datasets, 2)
    assert (begun.names, begun.step) == (["b", "e"], 7)
    assert torch.equal(begun.state["rows"], state["rows"])
    assert (rest.names, rest.step, rest.state) == (["a", "c"], 0, {})
    with pytest.warns(UserWarning, match="b was begun and is not among the data sets"):
        begun, *_ = again.unfinished([datasets[0], *datasets[2:]], 2)
    assert torch.equal(begun.state["rows"], state["rows"][1:])
    again.close()
    assert not (folder / STATE_FILE).exists()
