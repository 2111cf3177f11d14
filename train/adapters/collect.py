"""Collect LoRA checkpoints: fine-tune adapters on many data sets, several at a time.

Source: Drag-and-Drop LLMs, section 2.2 and appendix A.4: train on a data set for some steps, then
continue and keep the adapter after each further step. All adapters start from one shared A: without
it, the adapters of different data sets have little in common that a generator could learn.
"""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dnd_fast.base_model import load_base, load_config, resolved
from dnd_fast.errors import InvalidInput
from dnd_fast.files import locked
from dnd_fast.lora.batched import TokenizedExample, encode
from dnd_fast.lora.frozen_base import FrozenBase, base_for_training
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.recipe import CollectSpec, LoraSpec
from dnd_fast.text.datasets import Dataset
from dnd_fast.train.adapters.collection import Collection, Group, Manifest
from dnd_fast.train.adapters.lora_trainer import LoraTrainer, initial_adapter, shorten, spread

Progress = Callable[[int, int], None]  # steps done, steps in all


def _silent(done: int, total: int) -> None:
    pass


def collect(
    model: PreTrainedModel | FrozenBase,
    layout: TokenLayout,
    datasets: Sequence[Sequence[TokenizedExample]],
    spec: CollectSpec,
    *,
    seed: int,
    progress: Progress = _silent,
) -> Tensor:
    """Fine-tune one adapter per data set, in memory.

    Args:
        model: The frozen base; a :class:`FrozenBase` trains faster.
        layout: Names and shapes of the adapter's tensors; not fitted.
        datasets: Tokenised examples, one list per data set.
        spec: Settings of the training.
        seed: Seed of the initialisation and of the order of examples.
        progress: Callback that gets steps done and in all.

    Returns:
        Tokens ``[data sets, checkpoints, Nw, Lw, Cw]``.

    Raises:
        InvalidInput: no usable examples, or a loss that is not finite.
    """
    steps = spec.steps + spec.checkpoints
    data = [
        _usable(spread(examples, spec.samples), spec, f"number {index}")
        for index, examples in enumerate(datasets)
    ]
    starts = range(0, len(data), spec.parallel)
    tokens = []
    for index, start in enumerate(starts):
        group = data[start : start + spec.parallel]
        names = [f"number {start + i}" for i in range(len(group))]
        initial = _initial(layout, names, seed, shared=True)
        trainer = LoraTrainer(model, layout, names, group, initial, spec, seed=seed)
        kept = []
        while trainer.step < steps:
            trainer.advance()
            if trainer.step > spec.steps:
                kept.append(layout.tokenize(trainer.adapters))
            progress(index * steps + trainer.step, len(starts) * steps)
        tokens.append(torch.stack(kept, dim=1))
    return torch.cat(tokens)


def collect_folder(
    files: Sequence[Path],
    folder: Path,
    base: str,
    lora: LoraSpec,
    spec: CollectSpec,
    *,
    tokenizer: str | None = None,
    shared_init: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    micro_batch: int | None = None,
    recompute: bool = False,
    progress: Progress = _silent,
) -> Collection:
    """Fine-tune adapters on data sets and keep them as a collection.

    State is saved after every step: what is killed resumes from there when called again, on one
    CPU to the same bits (within rounding, where ``lora`` chooses layers). Data sets that the
    collection already has are skipped, new ones added.

    Args:
        files: One ``.jsonl`` file per data set.
        folder: Folder of the collection, new or begun.
        base, tokenizer: Names as of :func:`load_base`; the base's own tokenizer by default.
        lora: Rank, alpha and adapted layers.
        spec: Settings of the training.
        shared_init: Whether all adapters start from the same A; else each data set's from its own.
        seed: Seed of the initialisation and of the order of examples.
        dtype: Dtype of the base's weights. Adapters are trained and kept in float32.
        device: Device to run on.
        micro_batch, recompute: See :class:`LoraTrainer`.
        progress: Callback that gets steps done and in all, of what was not finished before.

    Raises:
        FileNotFoundError: a file is missing.
        InvalidInput: a data set or the base is unusable, the folder holds something else, or what
            it holds was made with other settings, or from a data set that has changed since; or a
            loss is not finite.
    """
    datasets = [Dataset.read(file) for file in files]
    if len({dataset.name for dataset in datasets}) < len(datasets):
        raise InvalidInput("two data sets have the same file name; it names their adapters.")
    base, tokenizer = resolved(base), resolved(tokenizer or base)
    layout = TokenLayout.for_model(
        load_config(base), lora.rank, lora_alpha=lora.alpha, layers=lora.layers
    )
    settings = dataclasses.asdict(spec) | {
        "shared_init": shared_init,
        "seed": seed,
        "dtype": str(dtype).removeprefix("torch."),
    }
    del settings["parallel"]  # which makes no difference
    manifest = Manifest(
        base, tokenizer, lora.rank, lora.alpha, layout.target_modules, settings, datasets={}
    )
    with locked(folder, "dnd-fast collect"):
        collection = Collection.begin(folder, manifest)
        collection.check_base(layout.tensor_shapes())
        groups = collection.unfinished(datasets, spec.parallel)
        if groups:
            loaded, loaded_tokenizer = load_base(base, tokenizer, dtype=dtype, device=device)
            model = base_for_training(loaded, layout, lora, recompute=recompute)
            del loaded  # may have been copied
        steps = spec.steps + spec.checkpoints
        resumed_at = groups[0].step if groups else 0
        for index, group in enumerate(groups):
            trainer = LoraTrainer(
                model,
                layout,
                group.names,
                [_encoded(dataset, loaded_tokenizer, spec) for dataset in group.datasets],
                _initial(layout, group.names, seed, shared_init),
                spec,
                seed=seed,
                micro_batch=micro_batch,
                recompute=recompute,
            )
            for step in _train(trainer, group, collection):
                progress(index * steps + step - resumed_at, len(groups) * steps - resumed_at)
            collection.finish(group)
        collection.close()
    return Collection.open(folder)


def _train(trainer: LoraTrainer, group: Group, collection: Collection) -> Iterator[int]:
    """Train a group to its end; yields the number of every step, after saving it."""
    if group.state:
        trainer.restore(group.state, group.step)
    collection.start(group)
    collection.save_state(group, trainer.step, trainer.state())
    while trainer.step < trainer.spec.steps + trainer.spec.checkpoints:
        trainer.advance()
        if trainer.step > trainer.spec.steps:
            # Before the state: what is killed in between writes them again, to the same bits.
            collection.save_adapters(group, trainer.step, trainer.adapters)
        collection.save_state(group, trainer.step, trainer.state())
        yield trainer.step


def _initial(
    layout: TokenLayout, names: Sequence[str], seed: int, shared: bool
) -> dict[str, Tensor]:
    """Make what the adapters of some data sets start from: ``[data sets, rows, columns]``."""
    if shared:
        adapters = [initial_adapter(layout, seed)] * len(names)
    else:
        digests = [hashlib.sha256(f"{seed} {name}".encode()).digest() for name in names]
        adapters = [initial_adapter(layout, int.from_bytes(d[:7], "big")) for d in digests]
    return {key: torch.stack([adapter[key] for adapter in adapters]) for key in adapters[0]}


def _encoded(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, spec: CollectSpec
) -> list[TokenizedExample]:
    try:
        sequences = encode(tokenizer, spread(dataset.examples, spec.samples))
    except InvalidInput as error:
        raise InvalidInput(f"data set {dataset.name!r}: {error}") from error
    return _usable(sequences, spec, dataset.name)


def _usable(
    sequences: Sequence[TokenizedExample], spec: CollectSpec, name: str
) -> list[TokenizedExample]:
    """Return what is left within as many tokens as ``spec`` allows."""
    kept, cut, dropped = shorten(sequences, spec.length)
    if not kept:
        raise InvalidInput(
            f"data set {name!r}: no prompt leaves room for a response within {spec.length} tokens; "
            "allow more (--length)."
        )
    if cut or dropped:
        warnings.warn(
            f"data set {name!r}: of {len(kept) + dropped} examples {cut} responses are cut at "
            f"{spec.length} tokens, and {dropped} left out whose prompt alone is as long; allow "
            "more with --length.",
            stacklevel=2,
        )
    return kept
