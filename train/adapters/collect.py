"""Collect LoRA checkpoints: fine-tune adapters on many data sets, several at a time.

Source: Drag-and-Drop LLMs, section 2.2 and appendix A.4: train on a data set for some steps, then
go on and keep the adapter after each further step. All adapters start from one shared A: without
it, the adapters of different data sets have little in common that a generator could learn.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dnd_fast.base_model import load_base, load_config, resolved
from dnd_fast.errors import InvalidInput
from dnd_fast.files import (
    atomic_file,
    locked,
    read_metadata,
    read_safetensors,
    write_safetensors,
)
from dnd_fast.lora.adapter import Adapter, lora_config
from dnd_fast.lora.batched import TokenizedExample, encode
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.recipe import CollectSpec, LoraSpec
from dnd_fast.text.datasets import Dataset
from dnd_fast.train.adapters.collection import (
    MANIFEST_FILE,
    STATE_FILE,
    Collection,
    Manifest,
    read_manifest,
    write_manifest,
)
from dnd_fast.train.adapters.lora_trainer import LoraTrainer, initial_adapter, shorten, spread

Progress = Callable[[int, int], None]  # steps done, steps in all


def _silent(done: int, total: int) -> None:
    pass


def collect(
    model: PreTrainedModel,
    layout: TokenLayout,
    datasets: Sequence[Sequence[TokenizedExample]],
    spec: CollectSpec,
    *,
    seed: int,
    progress: Progress = _silent,
) -> Tensor:
    """Fine-tune one adapter per data set, in memory.

    Args:
        model: the frozen base.
        layout: names and shapes of the adapter's tensors; not fitted.
        datasets: tokenised examples, one list per data set.
        spec: settings.
        seed: of the initialisation and of the order of examples.
        progress: is told steps done and in all.

    Returns:
        Tokens ``[data sets, checkpoints, Nw, Lw, Cw]``.

    Raises:
        InvalidInput: no usable examples, or a loss that is not finite.
    """
    steps = spec.steps + spec.checkpoints
    data = [
        _usable(spread(each, spec.samples), spec, f"number {index}")
        for index, each in enumerate(datasets)
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

    State is saved after every step: what is killed goes on from there when called again, on one
    CPU to the same bits. Data sets that the collection already has are skipped, new ones added.

    Args:
        files: one ``.jsonl`` file per data set.
        folder: of the collection, new or begun.
        base, tokenizer: folders or hub ids; the base's own tokenizer by default.
        lora: rank and alpha.
        spec: settings.
        shared_init: all adapters start from the same A; else each data set's from its own.
        seed: of the initialisation and of the order of examples.
        dtype: of the base's weights. Adapters are trained and kept in float32.
        device: where to run.
        micro_batch, recompute: see :class:`LoraTrainer`.
        progress: is told steps done and in all, of what was not finished before.

    Raises:
        FileNotFoundError: a file is missing.
        InvalidInput: a data set or the base is unusable, the folder holds something else, or what
            it holds was made with other settings, or from a data set that has changed since; or a
            loss is not finite.
    """
    datasets = {dataset.name: dataset for dataset in map(Dataset.read, files)}
    if len(datasets) < len(files):
        raise InvalidInput("two data sets have the same file name; it names their adapters.")
    base, tokenizer = resolved(base), resolved(tokenizer or base)
    layout = TokenLayout.for_model(load_config(base), lora.rank, lora_alpha=lora.alpha)
    settings = dataclasses.asdict(spec) | {
        "shared_init": shared_init,
        "seed": seed,
        "dtype": str(dtype).removeprefix("torch."),
    }
    del settings["parallel"]  # which makes no difference
    wanted = Manifest(
        base, tokenizer, lora.rank, lora.alpha, layout.target_modules, settings, datasets={}
    )
    with locked(folder, "dnd-fast collect"):
        manifest = _agreed(folder, wanted)
        for name in datasets.keys() & manifest.datasets.keys():
            _check_unchanged(folder, datasets[name], manifest.datasets[name])
        pending = {name: each for name, each in datasets.items() if name not in manifest.datasets}
        begun = _State.read(folder / STATE_FILE)
        if left := begun.datasets.keys() - datasets.keys() - manifest.datasets.keys():
            warnings.warn(
                f"{folder}: {', '.join(sorted(left))} was begun and is not among the data sets "
                "given now; given later, it starts anew.",
                stacklevel=2,
            )
        state = begun.only(pending)
        for name in state.datasets:
            _check_unchanged(folder, pending[name], state.datasets[name])
        new = [name for name in pending if name not in state.datasets]
        groups = [list(state.datasets)] if state.datasets else []
        groups += [new[i : i + spec.parallel] for i in range(0, len(new), spec.parallel)]
        if groups:
            model, its_tokenizer = load_base(base, tokenizer, dtype=dtype, device=device)
        steps = spec.steps + spec.checkpoints
        for index, names in enumerate(groups):
            group = [pending[name] for name in names]
            trainer = LoraTrainer(
                model,
                layout,
                names,
                [_encoded(each, its_tokenizer, spec) for each in group],
                _initial(layout, names, seed, shared_init),
                spec,
                seed=seed,
                micro_batch=micro_batch,
                recompute=recompute,
            )
            if state.datasets and index == 0:
                trainer.restore(state.tensors, state.step)
            for step in _train_on_disk(trainer, group, folder, wanted):
                before = index * steps - state.step
                progress(before + step, len(groups) * steps - state.step)
            finished = {each.name: each.sha256 for each in group}
            manifest = dataclasses.replace(manifest, datasets=manifest.datasets | finished)
            write_manifest(folder, manifest)
        (folder / STATE_FILE).unlink(missing_ok=True)
    return Collection.open(folder)


@dataclass(frozen=True)
class _State:
    """Where a group of data sets is: SHA-256 by name, steps done, the trainer's state."""

    datasets: dict[str, str]
    step: int
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, path: Path) -> _State:
        """What is there; nothing where there is no file."""
        if not path.exists():
            return cls({}, 0, {})
        entries = read_metadata(path)
        return cls(json.loads(entries["datasets"]), int(entries["step"]), read_safetensors(path))

    def only(self, names: Container[str]) -> _State:
        """What is there of these data sets."""
        rows = [row for row, name in enumerate(self.datasets) if name in names]
        if not rows:
            return _State({}, 0, {})
        kept = {name: sha256 for name, sha256 in self.datasets.items() if name in names}
        return _State(kept, self.step, {key: value[rows] for key, value in self.tensors.items()})


def _train_on_disk(
    trainer: LoraTrainer, group: Sequence[Dataset], folder: Path, manifest: Manifest
) -> Iterator[int]:
    """Train a group to its end; yields the number of every step, after saving it."""
    spec, state = trainer.spec, folder / STATE_FILE
    config = lora_config(
        rank=manifest.rank,
        lora_alpha=manifest.lora_alpha,
        target_modules=manifest.target_modules,
        base_model=manifest.base,
    )
    hashes = json.dumps({dataset.name: dataset.sha256 for dataset in group})

    def save() -> None:
        with atomic_file(state) as staged:
            entries = {"step": str(trainer.step), "datasets": hashes}
            write_safetensors(staged, trainer.state(), entries)

    for dataset in group:
        with atomic_file(folder / "datasets" / f"{dataset.name}.jsonl") as staged:
            shutil.copyfile(dataset.path, staged)
    save()
    while trainer.step < spec.steps + spec.checkpoints:
        trainer.advance()
        if trainer.step > spec.steps:
            # Before the state: what is killed in between writes them again, to the same bits.
            for row, dataset in enumerate(group):
                tensors = {key: value[row] for key, value in trainer.adapters.items()}
                place = folder / "adapters" / dataset.name / f"step-{trainer.step:05d}"
                Adapter(tensors, config).save(place)
        save()
        yield trainer.step


def _initial(
    layout: TokenLayout, names: Sequence[str], seed: int, shared: bool
) -> dict[str, Tensor]:
    """Where the adapters of some data sets start: ``[data sets, rows, columns]``."""
    if shared:
        adapters = [initial_adapter(layout, seed)] * len(names)
    else:
        digests = [hashlib.sha256(f"{seed} {name}".encode()).digest() for name in names]
        adapters = [initial_adapter(layout, int.from_bytes(d[:7], "big")) for d in digests]
    return {key: torch.stack([each[key] for each in adapters]) for key in adapters[0]}


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
    """What is left with as many tokens as ``spec`` wants."""
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


def _agreed(folder: Path, wanted: Manifest) -> Manifest:
    """The manifest of ``folder``, which must be like ``wanted``; that one where there is none."""
    for half_written in folder.glob("adapters/*/.step-*"):  # by a process that was killed
        shutil.rmtree(half_written)
    if not (folder / MANIFEST_FILE).exists():
        if any(not path.name.startswith(".") for path in folder.iterdir()):
            raise InvalidInput(f"{folder} holds something else than a collection; give a new one.")
        write_manifest(folder, wanted)
        return wanted
    manifest = read_manifest(folder)
    for found, asked in (
        (dataclasses.asdict(manifest), dataclasses.asdict(wanted)),
        (manifest.settings, wanted.settings),
    ):
        for name in asked.keys() - {"datasets", "settings"}:
            if found.get(name) != asked[name]:
                raise InvalidInput(
                    f"{folder} was collected with {name} {found.get(name)!r}, this run asks for "
                    f"{asked[name]!r}; ask for the same, or give another folder."
                )
    return manifest


def _check_unchanged(folder: Path, dataset: Dataset, sha256: str) -> None:
    if dataset.sha256 != sha256:
        raise InvalidInput(
            f"{dataset.path} is not the file of this name that {folder} has adapters of; give it "
            "another name, or collect into another folder."
        )
