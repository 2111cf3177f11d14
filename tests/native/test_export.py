"""What is exported, and what is refused; the packages' numbers are test_runtime's matter."""

import hashlib
import json

import pytest
import torch

from dnd_fast import TextEncoder
from dnd_fast.native import export as export_module
from dnd_fast.native.export import DecoderGraph, export
from dnd_fast.svf.layout import SvfLayout
from dnd_fast.text.glove import GloveEncoder

from ..bad_input import contents, fails, run
from .conftest import tiny_generator


def test_the_manifest(tiny):
    """Hashes are the files', and tensors lie one after another as the layout has them."""
    generator, folder = tiny
    manifest = json.loads((folder / "generator.json").read_text())
    assert sorted(manifest["files"]) == ["decoder.pt2", "encoder.pt2", "vocab.txt"]
    assert {file.name for file in folder.iterdir()} == {*manifest["files"], "generator.json"}
    for name, sha256 in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256
    offset = 0
    shapes = generator.layout.tensor_shapes()
    for tensor, (name, shape) in zip(manifest["tensors"], shapes.items(), strict=True):
        assert tensor == {"name": name, "shape": list(shape), "offset": offset}
        offset += shape[0] * shape[1]
    assert manifest["adapter_config"]["lora_alpha"] == 4
    assert (manifest["batch"], manifest["prompts"], manifest["slice_length"]) == (2, 3, 8)


@pytest.mark.parametrize("algorithm", ["direct", "fft"])
def test_the_decoders_graph_has_no_operator_of_this_package(algorithm):
    """AOTInductor calls no operator that is implemented in Python."""
    generator = tiny_generator()
    graph = DecoderGraph(generator, generator.decoder.checked_plan(algorithm, "cached")).eval()
    condition = torch.randn(2, *generator.decoder.condition_shape)
    with torch.no_grad():
        prepared = generator.decoder.prepare("direct", layout=generator.layout)
        expected = prepared.weights(generator.whitening(condition))
        torch.testing.assert_close(graph(condition), expected)
        exported = torch.export.export(graph, (condition,))
    targets = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert targets
    assert not [target for target in targets if "dnd_fast" in target]
    torch.testing.assert_close(exported.module()(condition), expected)


def test_exporting_leaves_the_generator_as_it_was(tiny):
    """A trace must not leave matrices without values in the transforms' caches."""
    generator, _ = tiny
    condition = torch.randn(1, *generator.decoder.condition_shape)
    generator.decoder.set_plan("fft")
    try:
        planned = generator.forward(condition)
    finally:
        generator.decoder.set_plan("direct")
    torch.testing.assert_close(planned, generator.forward(condition), rtol=1e-4, atol=1e-5)


def test_refusals(tmp_path):
    generator = tiny_generator()
    out = tmp_path / "new"
    fails("batch=0: it must be a positive integer", export, generator, out, batch=0)
    fails("device='nonsense' cannot be used", export, generator, out, device="nonsense")
    words = {"the": torch.ones(16), "tea": torch.zeros(16)}
    generator._encoder = GloveEncoder(list(words), torch.stack(list(words.values())))
    fails("'tiny' cannot be exported: it is a GloveEncoder", export, generator, out)
    generator.layout = SvfLayout.__new__(SvfLayout)
    fails("a generator with a SvfLayout cannot be exported", export, generator, out)
    generator = tiny_generator()
    (tmp_path / "file").write_text("mine")
    fails("is a file", export, generator, tmp_path / "file", error=OSError)
    assert contents(tmp_path) == {"file": b"mine"}


def test_no_compiler(tmp_path, monkeypatch):
    """Half an export is none."""
    from torch._inductor.exc import InvalidCxxCompiler

    def missing(*_, **__):
        raise InvalidCxxCompiler

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", missing)
    fails("exporting needs a C", export, tiny_generator(), tmp_path / "new")
    assert contents(tmp_path) == {}


def test_the_command_names_what_it_cannot_export(good, tmp_path, monkeypatch):
    """One line, an exit code, nothing written."""
    encoder = TextEncoder.from_pretrained(good.folder / "encoder")
    encoder.width = 384
    with monkeypatch.context() as patch:
        patch.setattr(TextEncoder, "from_pretrained", lambda *_, **__: encoder)
        code, found = run(patch, "export", good.folder / "generator", "--out", tmp_path / "new")
    assert (code, found.count("\n")) == (1, 1)
    assert "cannot be exported: its model is 'WordLevel'" in found
    code, found = run(monkeypatch, "export", tmp_path / "no", "--out", tmp_path / "new")
    assert (code, found.count("\n")) == (1, 1)
    assert "there is no generator folder" in found
    assert contents(tmp_path) == {}


def test_the_command(monkeypatch, tmp_path):
    given = {}
    monkeypatch.setattr(
        export_module,
        "export",
        lambda generator, out, **options: (out.mkdir(), given.update(options)),
    )
    monkeypatch.setattr("sys.argv", ["dnd-fast", "export", "demo", "--out", str(tmp_path / "new")])
    from dnd_fast.cli import main

    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    assert given == {"device": "cpu", "batch": 1}
