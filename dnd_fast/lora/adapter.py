"""A LoRA adapter in memory: PEFT files in and out, applied to a model, merged, compared."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dnd_fast.errors import InvalidInput
from dnd_fast.files import (
    atomic_folder,
    check_weights,
    read_json,
    read_safetensors,
    read_unchanged,
    write_json,
    write_safetensors,
)

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."


@dataclass(frozen=True)
class UpdateSimilarity:
    """How one module's update scaling * B A compares with another adapter's.

    Attributes:
        cosine: the cosine between the two updates as vectors; NaN if one of them is zero.
        relative_error: the norm of their difference over the other's norm; infinite if that
            is zero.
    """

    cosine: float
    relative_error: float


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
        rank, alpha = self.config.get("r"), self.config.get("lora_alpha")
        if type(rank) is not int or rank < 1:
            raise InvalidInput(f"the adapter's entry 'r' is {rank!r}, not a positive integer.")
        if not isinstance(alpha, int | float) or not abs(alpha) <= sys.float_info.max:
            raise InvalidInput(f"the adapter's entry 'lora_alpha' is {alpha!r}, not a number.")
        if not self.modules:
            raise InvalidInput(f"the adapter has no tensors {PREFIX}….lora_A.weight.")
        halves = [
            {key.removesuffix(end) for key in self.tensors if key.endswith(end)}
            for end in (".lora_A.weight", ".lora_B.weight")
        ]
        if alone := sorted(halves[0] ^ halves[1]):
            raise InvalidInput(f"{alone[0]} has only one of lora_A and lora_B.")
        check_weights(self.tensors)
        for module in self.modules:
            a, b = self._pair(module)
            if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
                raise InvalidInput(
                    f"{module}: lora_A has shape {list(a.shape)} and lora_B {list(b.shape)}, "
                    "expected [r, in] and [out, r]."
                )

    @property
    def modules(self) -> list[str]:
        """Names of the adapted modules in the base model."""
        suffix = ".lora_A.weight"
        return [
            key.removeprefix(PREFIX).removesuffix(suffix)
            for key in self.tensors
            if key.startswith(PREFIX) and key.endswith(suffix)
        ]

    @property
    def scaling(self) -> float:
        """Factor of B A: alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA.

        A module with an entry in ``rank_pattern`` or ``alpha_pattern`` has another one.
        """
        return self._scaling(self.config["lora_alpha"], self.config["r"])

    @classmethod
    def load(cls, path: str | Path) -> Adapter:
        """Read a PEFT folder.

        Raises:
            FileNotFoundError: the folder or one of its two files is missing.
            InvalidInput: a file is damaged, or it is no LoRA adapter.
        """
        path = Path(path)
        if not path.is_dir():
            raise FileNotFoundError(f"there is no adapter folder at {path}.")
        config, tensors = read_unchanged(
            path, lambda: (read_json(path / CONFIG_FILE), read_safetensors(path / WEIGHTS_FILE))
        )
        try:
            return cls(tensors, config)
        except InvalidInput as error:
            raise InvalidInput(f"{path}: {error}") from error

    def save(self, path: str | Path) -> Path:
        """Write a folder that ``PeftModel.from_pretrained`` and other engines load.

        All or nothing: on an error no file at ``path`` has changed.

        Raises:
            OSError: ``path`` cannot be written, or the disk is full.
            InvalidInput: the configuration holds something that JSON does not have.
        """
        with atomic_folder(path) as folder:
            write_safetensors(folder / WEIGHTS_FILE, self.tensors)
            write_json(folder / CONFIG_FILE, self.config)
        return Path(path)

    def to(self, dtype: torch.dtype) -> Adapter:
        """The same adapter with tensors of another dtype."""
        return Adapter({key: value.to(dtype) for key, value in self.tensors.items()}, self.config)

    def apply(self, model: PreTrainedModel | PeftModel) -> PeftModel:
        """Put the adapter on a model, in inference mode.

        Args:
            model: the base model, whose layers PEFT wraps in place; or what an earlier ``apply``
                returned, whose adapter is then replaced without wrapping again.

        Returns:
            The PEFT model; the same object when ``model`` was one.

        Raises:
            InvalidInput: the adapter does not fit the model or its own configuration, or ``model``
                is a base that an earlier ``apply`` has wrapped. A base model is left as it was.
        """
        from peft import PeftModel, get_peft_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        if isinstance(model, PeftModel):
            with _errors_explained():
                self._check_fits(model.get_base_model())
                self._swap_into(model)
            return model
        if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
            raise InvalidInput(
                "this base model already carries an adapter; call apply() with the PEFT model that "
                "the first apply() returned, and its adapter is replaced."
            )
        try:
            with _errors_explained():
                self._check_fits(model)
                wrapped = get_peft_model(model, self._peft_config())
                self._set_tensors(wrapped)
        except InvalidInput:
            for name, module in list(model.named_modules()):
                if isinstance(module, BaseTunerLayer):
                    model.set_submodule(name, module.get_base_layer())
            vars(model).pop("peft_config", None)
            raise
        return wrapped.eval()

    def merge_into(self, model: PreTrainedModel) -> PreTrainedModel:
        """Add scaling * B A to the base model's weights, in place; returns the same model.

        Raises:
            InvalidInput: as :meth:`apply`.
        """
        return self.apply(model).merge_and_unload()

    def compare(self, other: Adapter) -> dict[str, UpdateSimilarity]:
        """Compare the updates scaling * B A module by module, in float64.

        The updates are compared, not A and B, which many pairs of matrices share.

        Raises:
            InvalidInput: the adapters adapt different modules or sizes.
        """
        if set(self.modules) != set(other.modules):
            different = sorted(set(self.modules) ^ set(other.modules))
            raise InvalidInput(
                f"the adapters adapt different modules: {len(different)} are in one only, "
                f"{different[0]} for one."
            )
        return {
            name: _update_similarity(*self._factors(name), *other._factors(name))
            for name in self.modules
        }

    def _scaling(self, alpha: float, rank: int) -> float:
        return alpha / (rank**0.5 if self.config.get("use_rslora") else rank)

    def _pair(self, module: str) -> tuple[Tensor, Tensor]:
        """A ``[r, in]`` and B ``[out, r]``."""
        a, b = (self.tensors[f"{PREFIX}{module}.lora_{half}.weight"] for half in "AB")
        return a, b

    def _setting(self, module: str, entry: str, pattern_entry: str) -> Any:
        """The configuration's ``entry``, or the module's own one in ``pattern_entry``."""
        from peft.utils.other import get_pattern_key

        patterns = self.config.get(pattern_entry) or {}
        return patterns.get(get_pattern_key(list(patterns), module), self.config[entry])

    def _factors(self, module: str) -> tuple[Tensor, Tensor]:
        """scaling * B ``[out, r]`` and A ``[r, in]`` in float64."""
        a, b = self._pair(module)
        alpha = self._setting(module, "lora_alpha", "alpha_pattern")
        return self._scaling(alpha, len(a)) * b.double().cpu(), a.double().cpu()

    def _peft_config(self) -> Any:
        from peft import PeftConfig

        return PeftConfig.from_peft_type(**{**self.config, "inference_mode": True})

    def _check_fits(self, model: nn.Module) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists

        linears = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.Embedding | BaseTunerLayer) or ".lora_" in name:
                continue
            weight = getattr(module, "weight", None)
            if weight is not None and weight.ndim == 2:
                linears[name.removesuffix(".base_layer")] = weight.shape
        for module in self.modules:
            if module not in linears:
                raise InvalidInput(
                    f"the adapter does not fit this {type(model).__name__}: it adapts {module}, "
                    f"which the model does not have. It was made for "
                    f"{self.config.get('base_model_name_or_path') or 'another base model'}."
                )
            a, b = self._pair(module)
            needed = [b.shape[0], a.shape[1]]
            if list(linears[module]) != needed:
                raise InvalidInput(
                    f"the adapter does not fit this {type(model).__name__}: for {module} it needs "
                    f"a weight of shape {needed}, found {list(linears[module])}."
                )
            rank = self._setting(module, "r", "rank_pattern")
            if len(a) != rank:
                raise InvalidInput(
                    f"the adapter contradicts its configuration: {module} has rank {len(a)}, not "
                    f"{rank}."
                )
        config = self._peft_config()
        if config.target_modules not in (None, "all-linear"):  # else PEFT finds them later
            targets = {name for name in linears if check_target_module_exists(config, name)}
            if different := targets ^ set(self.modules):
                raise _contradiction(different)

    def _swap_into(self, model: PeftModel) -> None:
        name = model.active_adapter
        new = self._peft_config()
        if _layer_settings(model.peft_config[name]) != _layer_settings(new):
            model.delete_adapter(name)
            model.add_adapter(name, new)
            model.set_adapter(name)
            model.requires_grad_(False).eval()  # PEFT makes new layers trainable, dropout on
        model.peft_config[name] = new
        self._set_tensors(model)

    def _set_tensors(self, model: PeftModel) -> None:
        from peft import set_peft_model_state_dict

        result: Any = set_peft_model_state_dict(model, self.tensors, model.active_adapter)
        missing = [key for key in result.missing_keys if ".lora_" in key]
        if different := {*result.unexpected_keys, *missing}:
            raise _contradiction(different)


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


@contextmanager
def _errors_explained() -> Iterator[None]:
    """What PEFT raises for an unusable configuration, as InvalidInput."""
    try:
        yield
    except InvalidInput:
        raise
    except (TypeError, ValueError, NotImplementedError, re.error) as error:
        raise InvalidInput(f"PEFT cannot use the adapter's configuration: {error}") from error


def _contradiction(names: set[str]) -> InvalidInput:
    return InvalidInput(
        f"the adapter contradicts its configuration: {min(names)} is in one only; see "
        "target_modules."
    )


def _layer_settings(config: Any) -> dict[str, Any]:
    """All of a PEFT config that its layers depend on, alpha included."""
    about = {"base_model_name_or_path", "revision", "task_type", "inference_mode", "auto_mapping"}
    about.add("peft_version")
    return {key: value for key, value in config.to_dict().items() if key not in about}


def _update_similarity(b: Tensor, a: Tensor, other_b: Tensor, other_a: Tensor) -> UpdateSimilarity:
    if b.shape[0] != other_b.shape[0] or a.shape[1] != other_a.shape[1]:
        raise InvalidInput(
            f"the adapters are for different models: one updates a weight of shape "
            f"{[b.shape[0], a.shape[1]]}, the other {[other_b.shape[0], other_a.shape[1]]}."
        )
    norm, other_norm = _norm(b, a), _norm(other_b, other_a)
    product = _inner(b, a, other_b, other_a)
    difference = _norm(torch.cat([b, -other_b], dim=1), torch.cat([a, other_a], dim=0))
    return UpdateSimilarity(
        cosine=product / (norm * other_norm) if norm and other_norm else float("nan"),
        relative_error=difference / other_norm if other_norm else float("inf"),
    )


def _inner(b: Tensor, a: Tensor, other_b: Tensor, other_a: Tensor) -> float:
    """Frobenius inner product of b a and other_b other_a, without forming either."""
    return float(((b.T @ other_b) * (a @ other_a.T)).sum())


def _norm(b: Tensor, a: Tensor) -> float:
    """Frobenius norm of b a from the triangular factors: no cancellation for small differences."""
    return float((torch.linalg.qr(b).R @ torch.linalg.qr(a.T).R.T).norm())
