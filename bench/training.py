"""A training step of a decoder: direct against planned, in one run; and the memory it takes.

    python -m bench.training                            # a GPU: every recipe
    python -m bench.training                            # a CPU: a middle-sized decoder
    python -m bench.training --recipe common-sense-0.5b --batch 2

A step is a forward and a backward pass, clipping, and AdamW, all in float32; on a GPU passes also
run under bfloat16 autocast, as published. Before anything is timed, planned gradients
must agree with direct ones.

Recipes train with the batches of the paper's Table 7. Where such a batch does not fit into the
device's memory it is halved until it is predicted to. Memory is that of a step which adds to
gradients of earlier ones, by component:

* ``weights``, ``gradients`` and ``optimizer`` (AdamW's two moments): float32, always there;
* ``activations``: what the forward pass keeps for the backward pass, the condition included;
* ``workspace``: the rest of the peak.

On a GPU the peak is measured. Otherwise it is predicted, tensor by tensor without content; of a
planned convolution's inside only the limit that it respects is counted, and of libraries' scratch
only that of direct convolutions in the forward pass.

Source: Drag-and-Drop LLMs, Table 7.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import median
from typing import Annotated, Any, Literal, NamedTuple

import torch
import typer
from rich.table import Table
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils import clip_grad_norm_

from dnd_fast.bench.harness.results import append, latest, provenance
from dnd_fast.bench.harness.timing import (
    console,
    difference,
    interleaved,
    require_steady,
    seconds_text,
    speedup,
)
from dnd_fast.decoder.model import HyperConvDecoder
from dnd_fast.kernels.device import PROFILES, DeviceProfile, calibrate
from dnd_fast.kernels.planner.cost_model import DecoderPlan, plan_decoder
from dnd_fast.kernels.planner.peak_memory import peak_bytes
from dnd_fast.recipe import DecoderSpec, Recipe

# Small enough for a CPU, large enough that convolutions are all that counts.
MIDDLE = DecoderSpec([[64, 96, 128], [128, 64, 96], [256, 32, 96]], 9)
MIDDLE_NAME, MIDDLE_BATCH = "middle", 4
# Table 7.
BATCHES = {
    "common-sense-0.5b": 128,
    "coding-1.5b": 128,
    "math-1.5b": 128,
    "coding-7b": 48,
    "math-7b": 48,
    "multimodal-3b": 64,
}
DIRECT, PLANNED = "direct, float32", "planned, float32"
DIRECT_BF16, PLANNED_BF16 = "direct, bfloat16 autocast", "planned, bfloat16 autocast"
COMPONENTS = ("weights", "gradients", "optimizer", "activations", "workspace", "peak")
AGREEMENT = 1e-4  # of gradients, relative
SEED = 0
ASSUMED_MEMORY = 80e9  # bytes of the GPU that predictions are made for
USABLE = 0.9  # of it; libraries take some, and fragments are lost


class Form(NamedTuple):
    """One way to run a step."""

    plan: DecoderPlan
    autocast: bool = False


def main(
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A recipe.", show_default="all; on a CPU a middle-sized decoder, and predictions"
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(help="Samples per step.", show_default="Table 7's, if they fit", min=1),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Timed rounds after one that warms up.", min=2)] = 5,
    noisy: Annotated[bool, typer.Option(help="Report whatever the spread.")] = False,
    save: Annotated[
        bool, typer.Option(help="Add them to bench/results/training.jsonl and memory.jsonl.")
    ] = False,
) -> None:
    """Time training steps, interleaved, and say what memory they take."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    profile = calibrate(device, fused_2d_dft=gpu)
    memory = ASSUMED_MEMORY
    if gpu:
        memory = torch.cuda.get_device_properties(device).total_memory
    measured: list[str] = [recipe] if recipe else list(BATCHES) if gpu else [MIDDLE_NAME]
    figures: dict[str, Any] = {}
    for name in measured:
        spec = MIDDLE if name == MIDDLE_NAME else Recipe.load(name).decoder
        wanted = batch or (MIDDLE_BATCH if name == MIDDLE_NAME else BATCHES.get(name, 1))
        size = wanted if batch else fitting_batch(spec, wanted, USABLE * memory, profile)
        figures = {"decoder": name, "features": spec.features, "kernel_size": spec.kernel_size}
        figures |= {"batch": size, "wanted_batch": wanted, "seed": SEED}
        figures |= measure(spec, size, rounds, device, profile)
        figures["spread"] = require_steady(figures["seconds"], noisy)
        _print(figures)
        if save:
            console.print(f"Wrote {append('training', figures)}.")
    if not (gpu or recipe):
        console.print("No GPU: the memory of the recipes' training steps is predicted.")
        predictions = [predict_recipe(name, PROFILES["a100"]) for name in BATCHES]
        _print_predictions(predictions)
        if save:
            for each in predictions:
                append("memory", each)
    print(json.dumps(provenance() | figures))


def measure(
    spec: DecoderSpec, batch: int, rounds: int, device: torch.device, profile: DeviceProfile
) -> dict[str, Any]:
    """Seconds of a step in every form, and its memory.

    Raises:
        SystemExit: planned gradients differ from direct ones.
    """
    torch.manual_seed(SEED)
    with device:
        decoder = HyperConvDecoder(spec.features, spec.kernel_size)
        x = torch.randn(batch, *decoder.condition_shape)
    forms = forms_of(spec, batch, profile)
    if device.type == "cuda":
        forms[DIRECT_BF16] = forms[DIRECT]._replace(autocast=True)
        forms[PLANNED_BF16] = forms[PLANNED]._replace(autocast=True)
    error = gradient_difference(decoder, forms, x if device.type == "cpu" else x[:1])
    if error > AGREEMENT:
        raise SystemExit(f"gradients differ by {error:.1e}: no figures on a wrong result.")
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=3e-5, weight_decay=0.1, fused=True)

    def step(form: Form) -> Tensor:
        found = loss(decoder, form, x)
        found.backward()
        clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        return found.detach()

    variants = {name: partial(step, form) for name, form in forms.items()}
    seconds, _ = interleaved(variants, rounds, device)
    if device.type == "cuda":
        memory = {name: measured_memory(decoder, form, x) for name, form in forms.items()}
    else:
        memory = {name: predicted_memory(spec, form, batch) for name, form in forms.items()}
    return {
        "seconds": seconds,
        "samples_per_second": {name: batch / median(each) for name, each in seconds.items()},
        "gradient_difference": error,
        "speedup": speedup(seconds, DIRECT, PLANNED),
        "memory_gb": memory,
        "memory_is": "measured" if device.type == "cuda" else "predicted",
    }


def forms_of(spec: DecoderSpec, batch: int, profile: DeviceProfile) -> dict[str, Form]:
    """Direct and planned, in float32."""

    def plan(algorithm: Literal["direct", "auto"]) -> DecoderPlan:
        return plan_decoder(
            spec.features,
            spec.kernel_size,
            profile,
            batch=batch,
            weights="streamed",
            training=True,
            algorithm=algorithm,
        )

    return {DIRECT: Form(plan("direct")), PLANNED: Form(plan("auto"))}


def loss(decoder: HyperConvDecoder, form: Form, x: Tensor) -> Tensor:
    """Of tokens against zeros."""
    decoder.set_plan(form.plan)
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=form.autocast):
        tokens = decoder(x)
    return tokens.float().square().mean()


def gradient_difference(decoder: HyperConvDecoder, forms: Mapping[str, Form], x: Tensor) -> float:
    """Relative, over all parameters, of planned gradients from direct ones, in full float32."""

    def gradients(form: Form) -> Tensor:
        decoder.zero_grad()
        loss(decoder, form, x).backward()
        return torch.cat([p.grad.flatten() for p in decoder.parameters() if p.grad is not None])

    with torch.backends.cudnn.flags(allow_tf32=False):
        return difference(gradients(forms[PLANNED]), gradients(forms[DIRECT]))


def measured_memory(decoder: HyperConvDecoder, form: Form, x: Tensor) -> dict[str, float]:
    """GB by component, of a step on a GPU whose optimiser has begun."""
    kept = kept_bytes(decoder, form, x)
    torch.cuda.reset_peak_memory_stats(x.device)
    loss(decoder, form, x).backward()
    return components(decoder, kept, torch.cuda.max_memory_allocated(x.device))


def predicted_memory(spec: DecoderSpec, form: Form, batch: int) -> dict[str, float]:
    """GB by component; nothing is computed."""
    with FakeTensorMode():
        decoder = HyperConvDecoder(spec.features, spec.kernel_size, impl="torch")
        x = torch.empty(batch, *decoder.condition_shape)
        kept = kept_bytes(decoder, form, x)
        for parameter in decoder.parameters():
            parameter.grad = torch.empty_like(parameter)
        gradients = [each.grad for each in decoder.parameters() if each.grad is not None]
        there = [x, *decoder.parameters(), *gradients]
        peak = peak_bytes(lambda: loss(decoder, form, x).backward(), there, inside=False)
    weights = sum(parameter.nbytes for parameter in decoder.parameters())
    tiled = any(choice.fft_plan is not None for choice in form.plan.convolutions)
    within = form.plan.workspace_bytes if tiled else 0
    return components(decoder, kept, peak + 2 * weights + within)


def components(decoder: HyperConvDecoder, kept: int, peak: int) -> dict[str, float]:
    """GB: what is always there, what is kept for the backward pass, and the rest of the peak."""
    weights = sum(parameter.nbytes for parameter in decoder.parameters())
    parts = {"weights": weights, "gradients": weights, "optimizer": 2 * weights}
    parts["activations"] = kept
    parts["workspace"] = peak - sum(parts.values())
    return {name: size / 1e9 for name, size in (parts | {"peak": peak}).items()}


def kept_bytes(decoder: HyperConvDecoder, form: Form, x: Tensor) -> int:
    """Of all tensors but parameters that a forward pass keeps for the backward pass."""
    known = {id(parameter.untyped_storage()) for parameter in decoder.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in known:
            kept[id(storage)] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        found = loss(decoder, form, x)
    del found
    return sum(storage.nbytes() for storage in kept.values())


def fitting_batch(spec: DecoderSpec, batch: int, memory: float, profile: DeviceProfile) -> int:
    """The batch, halved until a step is predicted to fit into ``memory`` bytes in either form."""
    while batch > 1:
        forms = forms_of(spec, batch, profile).values()
        if max(predicted_memory(spec, form, batch)["peak"] for form in forms) <= memory / 1e9:
            break
        batch //= 2
    return batch


def predict_recipe(name: str, profile: DeviceProfile) -> dict[str, Any]:
    """Memory of a recipe's step with Table 7's batch, and the batch that fits ASSUMED_MEMORY."""
    spec, batch = Recipe.load(name).decoder, BATCHES[name]
    return {
        "recipe": name,
        "batch": batch,
        "seed": SEED,
        "predicted_gb": {
            form: predicted_memory(spec, each, batch)
            for form, each in forms_of(spec, batch, profile).items()
        },
        "assumed_memory_gb": ASSUMED_MEMORY / 1e9,
        "fitting_batch": fitting_batch(spec, batch, USABLE * ASSUMED_MEMORY, profile),
    }


def _print(figures: Mapping[str, Any]) -> None:
    title = f"{figures['decoder']}, batch {figures['batch']}"
    if figures["batch"] < figures["wanted_batch"]:
        title += f" of {figures['wanted_batch']}"
    table = Table("one step", "median", "spread", "samples/s", *COMPONENTS, title=title, box=None)
    for name, values in figures["seconds"].items():
        table.add_row(
            name,
            seconds_text(median(values)),
            f"{figures['spread'][name]:.0%}",
            f"{figures['samples_per_second'][name]:.2f}",
            *(f"{figures['memory_gb'][name][part]:.2f}" for part in COMPONENTS),
        )
    console.print(table)
    console.print(
        f"{figures['speedup']:.1f}x faster, gradients differ by "
        f"{figures['gradient_difference']:.1e}; memory in GB, {figures['memory_is']}."
    )


def _print_predictions(predictions: Sequence[Mapping[str, Any]]) -> None:
    table = Table("predicted GB", "batch", *COMPONENTS, "batch within 80 GB", box=None)
    for each in predictions:
        for form, parts in each["predicted_gb"].items():
            sizes = (f"{parts[part]:.1f}" for part in COMPONENTS)
            name = f"{each['recipe']}, {form}"
            table.add_row(name, str(each["batch"]), *sizes, str(each["fitting_batch"]))
    console.print(table)


def markdown() -> str:
    """README's tables from the committed results."""
    lines = [
        "| decoder | machine | training step, against direct float32 | gradients differ by |",
        "| --- | --- | --- | --- |",
    ]
    for figures in latest("training", "decoder", "batch", "device"):
        shapes = " → ".join(str(tuple(shape)) for shape in figures["features"])
        name = figures["decoder"] if figures["decoder"] != MIDDLE_NAME else shapes
        lines.append(
            f"| {name}, k = {figures['kernel_size']}, batch {figures['batch']} "
            f"| {figures['device']} | {figures['speedup']:.1f}x faster "
            f"| {figures['gradient_difference']:.1e} |"
        )
    predictions = latest("memory", "recipe")
    if predictions:
        lines += [
            "",
            "Memory of a planned step in float32 with the batch that the paper trains with, "
            "predicted, in GB:",
            "",
            f"| recipe | batch | {' | '.join(COMPONENTS)} | direct form's peak "
            "| batch within 80 GB |",
            "| --- |" + " --- |" * (len(COMPONENTS) + 3),
        ]
    for each in predictions:
        planned, direct = each["predicted_gb"][PLANNED], each["predicted_gb"][DIRECT]
        sizes = " | ".join(f"{planned[part]:.1f}" for part in COMPONENTS)
        lines.append(
            f"| {each['recipe']} | {each['batch']} | {sizes} | {direct['peak']:.1f} "
            f"| {each['fitting_batch']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
