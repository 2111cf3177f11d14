"""A generator's export for the native runtime: two compiled packages, a vocabulary, a manifest.

AOTInductor compiles what torch.export traces. It calls no operator that is implemented in Python,
so the graph of the decoder is made of the plain functions behind them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from dnd_fast.decoder.convolutions import PlannedConvolutions
from dnd_fast.decoder.planning import default_memory
from dnd_fast.decoder.prepared import choose
from dnd_fast.decoder.torch_pass import PlannedBlock, TorchPass
from dnd_fast.errors import InvalidInput
from dnd_fast.files import atomic_folder, write_json
from dnd_fast.kernels.conv2d import transform_dtype
from dnd_fast.kernels.fft.torch_conv import fft_conv2d_torch
from dnd_fast.kernels.fft.weight import TransformedWeight
from dnd_fast.kernels.planner.cost_model import DecoderPlan
from dnd_fast.kernels.reference import direct
from dnd_fast.lora.layout import LoraLayout
from dnd_fast.native.tokenizer import describe_tokenizer
from dnd_fast.text.encoder import TOKENS_PER_BATCH, TextEncoder
from dnd_fast.text.prompt_encoder import move

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dnd_fast.generator import Generator

FORMAT_VERSION = 1
ENCODER_FILE, DECODER_FILE, VOCABULARY_FILE = "encoder.pt2", "decoder.pt2", "vocab.txt"
MANIFEST_FILE = "generator.json"


@torch.no_grad()
def export(
    generator: Generator, out: str | Path, *, device: str | torch.device = "cpu", batch: int = 1
) -> Path:
    """Write a folder that ``dnd-generate`` and ``libdnd_fast`` load.

    The decoder is planned as :meth:`dnd_fast.generator.Generator.prepare` plans it, and its
    transformed weights are kept. Compiled code is made for this machine's kind of processor.

    Args:
        generator: any whose text encoder has a WordPiece tokenizer and whose layout is of LoRA
            tensors; it is moved to ``device``.
        out: the folder; all or nothing.
        device: where the packages will run.
        batch: tasks of one pass of the decoder.

    Returns:
        The folder.

    Raises:
        InvalidInput: the generator cannot be exported, ``device`` cannot be used, ``batch`` is not
            positive, or there is no C++ compiler.
        OSError: ``out`` cannot be written, or the disk is full.
    """
    if type(batch) is not int or batch < 1:
        raise InvalidInput(f"batch={batch!r}: it must be a positive integer.")
    if not isinstance(generator.layout, LoraLayout):
        raise InvalidInput(
            f"a generator with a {type(generator.layout).__name__} cannot be exported: the native "
            "runtime makes LoRA adapters only."
        )
    move(generator, device)
    encoder = generator.encoder
    if not isinstance(encoder, TextEncoder):
        raise InvalidInput(
            f"the text encoder {generator.config.condition.encoder!r} cannot be exported: it is a "
            f"{type(encoder).__name__}, the native runtime takes transformers with WordPiece only."
        )
    vocabulary, tokenizer = describe_tokenizer(encoder.tokenizer)
    with atomic_folder(out) as folder:
        takes = f"up to {_slice_length(encoder, generator)} ids below {_embeddings(encoder)}"
        _compile(_export_encoder(encoder, generator), folder / ENCODER_FILE, takes)
        takes = f"conditions {' x '.join(map(str, (batch, *generator.decoder.condition_shape)))}"
        _compile(_export_decoder(generator, batch), folder / DECODER_FILE, takes)
        text = "".join(f"{token}\n" for token in vocabulary)
        (folder / VOCABULARY_FILE).write_text(text, encoding="utf-8", newline="\n")
        files = {file.name: _sha256(file) for file in sorted(folder.iterdir())}
        manifest = _manifest(generator, encoder, tokenizer, batch)
        write_json(folder / MANIFEST_FILE, manifest | {"files": files})
    return Path(out)


class EncoderGraph(nn.Module):
    """Token ids and mask ``[rows, span]`` int64 to hidden states ``[rows, span, C]`` float32."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.model, self.layer = encoder.model, encoder.layer

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        output = self.model(
            input_ids=input_ids,
            attention_mask=mask,
            output_hidden_states=self.layer is not None,
        )
        layer = self.layer
        hidden = output.last_hidden_state if layer is None else output.hidden_states[layer]
        return hidden.float()


class DecoderGraph(nn.Module):
    """A condition ``[B, N, L, C]`` float32 to all LoRA tensors, ``[B, E]`` float32."""

    def __init__(self, generator: Generator, plan: DecoderPlan) -> None:
        super().__init__()
        self.run, self.layout = TorchPass(generator.decoder, plan), generator.layout
        self.whitening = generator.whitening
        self.dtype = generator.decoder.dtype
        for block in self.run.blocks:
            planned = cast(PlannedBlock, block)
            planned.convolve = partial(_convolve, planned.convolutions)

    def forward(self, condition: Tensor) -> Tensor:
        if self.whitening is not None:
            condition = self.whitening(condition)
        tensors = self.layout.detokenize(self.run(condition.to(self.dtype)))
        return torch.cat([tensor.float().flatten(1) for tensor in tensors.values()], dim=1)


def _convolve(
    convolutions: PlannedConvolutions, name: str, x: Tensor, weight: Tensor | TransformedWeight
) -> Tensor:
    """What ``convolutions`` does, without the operators."""
    plan = convolutions.fft_plans.get(name)
    if plan is None:
        assert isinstance(weight, Tensor)
        return direct(name, x, weight)
    return fft_conv2d_torch(x, weight, plan, transform_dtype(x), convolutions.workspace_bytes)


def _export_encoder(encoder: TextEncoder, generator: Generator) -> ExportedProgram:
    # One row or position would be compiled as a constant: the runtime pads to two.
    dims = {
        0: Dim("rows", min=2, max=TOKENS_PER_BATCH),
        1: Dim("span", min=2, max=max(3, _slice_length(encoder, generator))),
    }
    example = torch.ones(2, 3, dtype=torch.long, device=encoder.device)
    graph = EncoderGraph(encoder).eval()
    return torch.export.export(graph, (example, example.clone()), dynamic_shapes=(dims, dims))


def _export_decoder(generator: Generator, batch: int) -> ExportedProgram:
    decoder = generator.decoder
    memory = default_memory(decoder, batch)
    plan, _, _ = choose(decoder, batch=batch, memory=memory, weights="cached", impl="torch")
    graph = DecoderGraph(generator, plan).eval()
    condition = torch.zeros(batch, *decoder.condition_shape, device=generator.device)
    graph(condition)  # else the DFT's cached matrices would be those of a trace, without values
    return torch.export.export(graph, (condition,))


def _compile(program: ExportedProgram, file: Path, takes: str) -> None:
    """``takes`` says what the package's inputs are, which compiled code does not check."""
    from torch._inductor.exc import InvalidCxxCompiler

    options = {"aot_inductor.metadata": {"takes": takes}}
    try:
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(file), inductor_configs=options
        )
    except InvalidCxxCompiler as error:
        raise InvalidInput(f"exporting needs a C++ compiler, such as g++: {error}") from error


def _manifest(
    generator: Generator, encoder: TextEncoder, tokenizer: Mapping[str, Any], batch: int
) -> dict[str, Any]:
    layout, condition = cast(LoraLayout, generator.layout), generator.config.condition
    on_cpu = generator.device.type == "cpu"
    tensors, offset = [], 0
    for name, (rows, columns) in layout.tensor_shapes().items():
        tensors.append({"name": name, "shape": [rows, columns], "offset": offset})
        offset += rows * columns
    return {
        "format_version": FORMAT_VERSION,
        "torch": torch.__version__.partition("+")[0],
        "device": generator.device.type,
        "cpu_capability": torch.backends.cpu.get_cpu_capability() if on_cpu else None,
        "batch": batch,
        "prompts": condition.prompts,
        "length": condition.length,
        "width": encoder.width,
        "padding": condition.padding,
        "slice_length": _slice_length(encoder, generator),
        "tokens_per_batch": TOKENS_PER_BATCH,
        "tokenizer": {**tokenizer, "embeddings": _embeddings(encoder)},
        "tensors": tensors,
        "adapter_config": layout.adapter_config(),
    }


def _embeddings(encoder: TextEncoder) -> int:
    model = cast("PreTrainedModel", encoder.model)
    return cast(nn.Embedding, model.get_input_embeddings()).num_embeddings


def _slice_length(encoder: TextEncoder, generator: Generator) -> int:
    return int(min(encoder.max_length, generator.config.condition.length))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
