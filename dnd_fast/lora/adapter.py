"""A LoRA adapter in memory: files in and out, put on models, merged, compared, combined."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from dnd_fast.errors import InvalidInput
from dnd_fast.files import atomic_folder, check_weights, write_json, write_safetensors
from dnd_fast.lora.adapter_files import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    find_adapter,
    plain,
    read_adapter,
)
from dnd_fast.lora.updates import Update, UpdateSimilarity, similarity

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

PREFIX = "base_model.model."


@dataclass(frozen=True)
class Adapter:
    """LoRA tensors and their configuration, as PEFT has them on disk.

    Attributes:
        tensors: ``base_model.model.….lora_A.weight`` ``[r, in]`` and ``….lora_B.weight``
            ``[out, r]``.
        config: the content of ``adapter_config.json``.
    """

    tensors: dict[str, Tensor]
    config: dict[str, Any]

    def __post_init__(self) -> None:
        if self.config.get("peft_type") != "LORA":
            raise InvalidInput(
                f"this is an adapter of type {self.config.get('peft_type')!r}; only LORA is "
                "supported."
            )
        if not self.modules:
            raise InvalidInput(f"the adapter has no tensors {PREFIX}….lora_A.weight.")
        halves = [
            {key.removesuffix(end) for key in self.tensors if key.endswith(end)}
            for end in (".lora_A.weight", ".lora_B.weight")
        ]
        if alone := sorted(halves[0] ^ halves[1]):
            raise InvalidInput(f"{alone[0]} has only one of lora_A and lora_B.")
        check_weights(self.tensors)
        for entry in ("r", "lora_alpha"):
            _check_number(entry, self.config.get(entry))
        for module in self.modules:
            self._check_module(module)

    def _check_module(self, module: str) -> None:
        a, b = (self.tensors[key] for key in weight_keys(module))
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise InvalidInput(
                f"{module}: lora_A has shape {list(a.shape)} and lora_B {list(b.shape)}, "
                "expected [r, in] and [out, r]."
            )
        rank = self._setting(module, "r", "rank_pattern")
        self._setting(module, "lora_alpha", "alpha_pattern")
        # The ranks of all routed experts lie end to end.
        if len(a) != rank and (len(a) % rank or not self.config.get("target_parameters")):
            raise InvalidInput(
                f"the adapter contradicts its configuration: {module} has rank {len(a)}, not "
                f"{rank}."
            )

    @property
    def modules(self) -> list[str]:
        """Names of the adapted modules in the base model."""
        return adapted_modules(self.tensors)

    @property
    def scaling(self) -> float:
        """Factor of B A: alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA.

        A module with an entry in ``rank_pattern`` or ``alpha_pattern`` has another one.
        """
        return self._scaling(self.config["lora_alpha"], self.config["r"])

    @classmethod
    def load(
        cls, source: str | Path, *, subfolder: str | None = None, revision: str | None = None
    ) -> Adapter:
        """Read a PEFT folder, local or on the hub.

        Also what earlier versions of PEFT wrote: ``adapter_model.bin``, of which nothing but
        tensors is ever loaded, and tensors with the adapter's name in theirs.

        Args:
            source: a folder, or a hub id, of which ``id@revision`` is one revision; a ``Path`` is
                always a folder. Where PEFT has saved an adapter under a name, in a folder of that
                name, the one above will do.
            subfolder: the adapter's folder within.
            revision: a branch, tag or commit of the hub.

        Raises:
            FileNotFoundError: the folder or one of its two files is missing, or unknown to the hub.
            InvalidInput: a file is damaged, there are several adapters, or it is no LoRA adapter.
        """
        folder = find_adapter(source, subfolder, revision)
        tensors, config = read_adapter(folder)
        try:
            return cls(tensors, config)
        except InvalidInput as error:
            raise InvalidInput(f"{folder}: {error}") from error

    def save(self, path: str | Path) -> Path:
        """Write a folder that ``PeftModel.from_pretrained`` and other engines load.

        All or nothing: on an error no file at ``path`` has changed.

        Raises:
            OSError: ``path`` cannot be written, or the disk is full.
            InvalidInput: the configuration holds something that JSON does not have.
        """
        with atomic_folder(path) as folder:
            write_safetensors(folder / WEIGHTS_FILE, self.tensors)
            write_json(folder / CONFIG_FILE, plain(self.config))
        return Path(path)

    @classmethod
    def combine(
        cls,
        adapters: Sequence[Adapter],
        weights: Sequence[float],
        *,
        method: Literal["cat", "linear", "svd"] = "cat",
        rank: int | None = None,
    ) -> Adapter:
        """Make one adapter of several: the weighted sum of their updates, module by module.

        The methods are those of the same names in PEFT's ``add_weighted_adapter``; an update is
        s B A, with the scaling s of its adapter:

        * ``"cat"``: A and w s B of all, end to end. The sum itself, of the sum of all ranks.
        * ``"svd"``: the adapter of rank ``rank`` that is nearest to the sum in the Frobenius norm.
        * ``"linear"``: A = Σ sign(w s) sqrt(|w s|) A and B = Σ sqrt(|w s|) B, of the adapters' own
          rank. The product has the sum in it, and also every B times every other's A: cheap, and
          no approximation of the sum unless the adapters are alike.

        Args:
            adapters: at least one, all of the same modules and sizes.
            weights: a factor for each, of either sign.
            method: how to combine them.
            rank: the rank for ``"svd"``; by default the largest of the first adapter's.

        Returns:
            An adapter with a scaling of 1, in float32, or float64 if one of them has such tensors,
            for the first one's base model.

        Raises:
            InvalidInput: an argument is unusable, the adapters are of different modules, sizes or
                (for ``"linear"``) ranks, or one is more than updates s B A: DoRA, trained biases,
                embeddings or whole modules, and experts' parameters.
        """
        from dnd_fast.lora.combine import combine

        return combine(adapters, weights, method, rank)

    def to(self, dtype: torch.dtype) -> Adapter:
        """The same adapter with tensors of another dtype."""
        return Adapter({key: value.to(dtype) for key, value in self.tensors.items()}, self.config)

    def apply(self, model: PreTrainedModel | PeftModel) -> PeftModel:
        """Put the adapter on a model, in inference mode.

        All or nothing: after an error, or an interruption, the model and the base below it answer
        as before. Not safe while another thread runs the model.

        Args:
            model: the base model, whose layers PEFT wraps in place; or what an earlier ``apply``
                returned, whose adapter is then replaced. With the same configuration values are
                copied in place; with another the layers are made anew. Biases and embeddings that
                come with an adapter are taken off with it.

        Returns:
            The PEFT model; the same object when ``model`` was one.

        Raises:
            InvalidInput: the adapter does not fit the model or its own configuration; it could not
                be taken off again (PiSSA, OLoRA and others that PEFT changes the base for); or
                ``model`` is a base that an earlier ``apply`` has wrapped, is offloaded in part, or
                a PEFT model whose one LoRA adapter is not plainly active: merged, switched off,
                one of several.
        """
        from dnd_fast.lora.attach import attach

        return attach(self, model)

    def merge_into(self, model: PreTrainedModel) -> PreTrainedModel:
        """Add scaling * B A to the base model's weights, in place; returns the same model.

        All or nothing, as far as it can be known before: merging is tried on a copy of each weight
        first. Where it fails later all the same, what was added is subtracted again, and weights
        are as before within rounding.

        Raises:
            InvalidInput: as :meth:`apply`; or an adapted layer shares its weight with another, or
                lacks the bias that the adapter adds to.
        """
        from dnd_fast.lora.attach import merge

        return merge(self, model)

    def compare(self, other: Adapter) -> dict[str, UpdateSimilarity]:
        """Compare the updates scaling * B A module by module, in float64.

        The updates are compared, not A and B, which many pairs of matrices share.

        Raises:
            InvalidInput: the adapters adapt different modules or sizes, or one of them is more
                than updates, as in :meth:`combine`.
        """
        self.require_same_modules(other)
        return {name: similarity(self.update(name), other.update(name)) for name in self.modules}

    def update(self, module: str) -> Update:
        """What the adapter adds to a module's weight, in factors in float64 on the CPU."""
        a, b = (self.tensors[key].double().cpu() for key in weight_keys(module))
        alpha = self._setting(module, "lora_alpha", "alpha_pattern")
        return Update(b, a, self._scaling(alpha, len(a)))

    def require_same_modules(self, other: Adapter) -> None:
        """Raise unless both adapters are updates scaling * B A of the same modules, and no more.

        Raises:
            InvalidInput: they are not.
        """
        for adapter in (self, other):
            adapter._require_updates_only()
        if set(self.modules) != set(other.modules):
            different = sorted(set(self.modules) ^ set(other.modules))
            raise InvalidInput(
                f"the adapters adapt different modules: {len(different)} are in one only, "
                f"{different[0]} for one."
            )

    def _require_updates_only(self) -> None:
        updates = {key for module in self.modules for key in weight_keys(module)}
        if others := sorted(self.tensors.keys() - updates):
            raise InvalidInput(
                f"the adapter is more than scaling * B A: it has {others[0]} (DoRA's magnitudes, "
                "trained biases, embeddings and whole modules act otherwise). Apply or merge it, "
                "and compare or combine models."
            )
        if self.config.get("target_parameters"):
            raise InvalidInput(
                "the adapter has target_parameters: updates of routed experts' parameters are "
                "neither compared nor combined."
            )

    def _scaling(self, alpha: float, rank: int) -> float:
        return alpha / (rank**0.5 if self.config.get("use_rslora") else rank)

    def _setting(self, module: str, entry: str, pattern_entry: str) -> Any:
        """The configuration's ``entry``, or the module's own one in ``pattern_entry``.

        The first pattern that matches a module's name or its end counts, as in PEFT.
        """
        patterns = self.config.get(pattern_entry) or {}
        if not isinstance(patterns, dict):
            raise InvalidInput(f"the adapter's entry {pattern_entry!r} is no object.")
        for pattern, value in patterns.items():
            try:
                matches = re.match(rf"(.*\.)?({pattern})$", module)
            except re.error as error:
                raise InvalidInput(
                    f"the adapter's entry {pattern_entry!r} has {pattern!r} in it, which is no "
                    f"regular expression: {error}."
                ) from error
            if matches:
                _check_number(entry, value)
                return value
        return self.config[entry]


def lora_config(
    *, rank: int, lora_alpha: int, target_modules: list[str] | str, base_model: str | None
) -> dict[str, Any]:
    """The content of ``adapter_config.json`` for a plain LoRA adapter."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": lora_alpha,
        "lora_dropout": 0.0,
        "target_modules": target_modules,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def adapted_modules(keys: Iterable[str]) -> list[str]:
    """Names of the modules in the base model that an adapter's tensors are for."""
    suffix = ".lora_A.weight"
    return [
        key.removeprefix(PREFIX).removesuffix(suffix)
        for key in keys
        if key.startswith(PREFIX) and key.endswith(suffix)
    ]


def weight_keys(module: str) -> tuple[str, str]:
    """Names of a module's A and B among an adapter's tensors."""
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def _check_number(entry: str, value: Any) -> None:
    if entry == "r" and (type(value) is not int or value < 1):
        raise InvalidInput(f"the adapter's entry 'r' is {value!r}, not a positive integer.")
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
        raise InvalidInput(f"the adapter's entry {entry!r} is {repr(value)[:40]}, not a number.")
