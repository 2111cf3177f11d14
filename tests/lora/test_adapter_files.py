"""Adapters as people have them: earlier forms of PEFT's folder, named ones, and the hub."""

import json

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from dnd_fast.lora.adapter import Adapter

from ..bad_input import Trap, fails
from .conftest import small_base


@pytest.fixture
def saved(trained, tmp_path):
    adapter, _ = trained(small_base())
    adapter.save(tmp_path / "a")
    return adapter, tmp_path / "a"


def same(found, adapter):
    assert found.config == adapter.config
    assert found.tensors.keys() == adapter.tensors.keys()
    assert all(torch.equal(found.tensors[key], value) for key, value in adapter.tensors.items())


def test_tensors_by_torch_save(saved):
    """As PEFT wrote them before 0.5; where both files are there, the newer form counts."""
    adapter, folder = saved
    opposite = {key: -value for key, value in adapter.tensors.items()}
    torch.save(opposite, folder / "adapter_model.bin")
    same(Adapter.load(folder), adapter)
    (folder / "adapter_model.safetensors").unlink()
    torch.save(adapter.tensors, folder / "adapter_model.bin")
    same(Adapter.load(folder), adapter)
    torch.save([1], folder / "adapter_model.bin")
    fails("holds a list, expected tensors by name", Adapter.load, folder)
    torch.save({"a": Trap(folder / "sprung")}, folder / "adapter_model.bin")
    fails("never loaded", Adapter.load, folder)
    assert not (folder / "sprung").exists()


def test_names_with_the_adapters_in_them(saved):
    """As in a live model's state dict."""
    adapter, folder = saved
    file = folder / "adapter_model.safetensors"
    for name in ("default", "my-adapter"):
        save_file(
            {k.replace(".weight", f".{name}.weight"): v for k, v in adapter.tensors.items()}, file
        )
        same(Adapter.load(folder), adapter)
    two = load_file(file) | adapter.tensors
    save_file(two, file)
    fails("holds several adapters: .* is in it more than once", Adapter.load, folder)


def test_a_byte_order_mark(saved):
    """As some editors put before JSON."""
    adapter, folder = saved
    file = folder / "adapter_config.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    same(Adapter.load(folder), adapter)


def test_folders_of_named_adapters(saved, tmp_path):
    """Where PEFT saves an adapter that is not called default."""
    adapter, folder = saved
    (tmp_path / "outer").mkdir()
    folder.rename(tmp_path / "outer" / "mine")
    same(Adapter.load(tmp_path / "outer"), adapter)
    same(Adapter.load(tmp_path / "outer", subfolder="mine"), adapter)
    adapter.save(tmp_path / "outer" / "other")
    fails(
        r"holds 2 adapters \(mine, other\); give one as subfolder", Adapter.load, tmp_path / "outer"
    )
    same(Adapter.load(tmp_path / "outer", subfolder="other"), adapter)
    fails(
        "adapter_config.json is missing",
        lambda: Adapter.load(tmp_path / "outer", subfolder="none"),
        error=FileNotFoundError,
    )


def test_the_hub(saved, tmp_path, monkeypatch):
    """A revision in the id or apart; of a subfolder's files only those that are needed."""
    adapter, folder = saved
    (tmp_path / "hub").mkdir()
    folder.rename(tmp_path / "hub" / "a")
    asked = []

    def download(name, *, revision, allow_patterns):
        asked.append((name, revision, sorted(allow_patterns)))
        return str(tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    files = ["adapter_config.json", "adapter_model.bin", "adapter_model.safetensors"]
    within = [f"a/{file}" for file in files]
    same(Adapter.load("org/name@v1", subfolder="a"), adapter)
    same(Adapter.load("org/name", subfolder="a", revision="v2"), adapter)
    same(Adapter.load("org/name"), adapter)
    assert asked == [
        ("org/name", "v1", within),
        ("org/name", "v2", within),
        ("org/name", None, files),
    ]


def test_what_the_hub_does_not_have(monkeypatch, tmp_path):
    def download(*arguments, **options):
        raise OSError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    fails("and the hub gives none: offline", Adapter.load, "org/name", error=FileNotFoundError)
    fails("no adapter folder at", Adapter.load, tmp_path / "org", error=FileNotFoundError)


def test_the_rank_in_the_configuration_is_that_of_the_tensors(saved):
    """Else the scaling would be another one."""
    _, folder = saved
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"r": 16}))
    fails("contradicts its configuration: .* has rank 2, not 16", Adapter.load, folder)
