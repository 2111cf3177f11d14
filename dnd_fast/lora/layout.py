"""Weight tokens of LoRA adapters, in the published order.

For each layer the modules come in the order q, k, v, o, up, gate, down; for each module first A
``[r, in]``, then B transposed ``[r, out]``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from dnd_fast.errors import InvalidInput
from dnd_fast.lora.adapter import PREFIX, Adapter, lora_config
from dnd_fast.lora.target_modules import LoraModule, find_lora_modules
from dnd_fast.lora.weight_layout import Scale, WeightLayout

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class LoraLayout(WeightLayout):
    """Bijection between the LoRA tensors of one base model and weight tokens.

    Args:
        modules: the adapted linear layers in token order.
        rank: LoRA rank r.
        lora_alpha: LoRA alpha.
        target_modules: what PEFT needs to find the modules: their short names or one regex.
        scale, chunk: see :class:`dnd_fast.lora.weight_layout.WeightLayout`.
        base_model: path or hub id of the base model, written into adapters.

    Raises:
        InvalidInput: an argument is unusable; the message names it.
    """

    modules_entry = "modules"

    def __init__(
        self,
        modules: list[LoraModule],
        rank: int,
        *,
        lora_alpha: int,
        target_modules: list[str] | str,
        scale: Scale = "static",
        chunk: int | None = None,
        base_model: str | None = None,
    ) -> None:
        if not modules:
            raise InvalidInput("the layout has no modules to adapt.")
        names = [module.name for module in modules]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise InvalidInput(f"the layout has module {repeated[0]!r} more than once.")
        sizes = [size for module in modules for size in (module.size_in, module.size_out)]
        super().__init__(sizes, rank, scale=scale, chunk=chunk, base_model=base_model)
        if type(lora_alpha) not in (int, float) or not 0 < lora_alpha < math.inf:
            raise InvalidInput(f"lora_alpha={lora_alpha!r}: it must be a positive number.")
        targets = target_modules if isinstance(target_modules, list) else [target_modules]
        if not all(isinstance(name, str) for name in targets):
            raise InvalidInput(
                f"target_modules={target_modules!r}: it must be a list of names or one regex."
            )
        self.adapted_modules = tuple(modules)
        self.lora_alpha = lora_alpha
        self.target_modules = target_modules

    @classmethod
    def for_model(
        cls,
        config: PretrainedConfig,
        rank: int,
        *,
        scale: Scale = "static",
        target_modules: list[str] | Literal["all-linear"] = "all-linear",
        layers: Sequence[int] | None = None,
        lora_alpha: int | None = None,
        chunk: int | None = None,
    ) -> LoraLayout:
        """Derive the layout from a transformers config alone, without any weights.

        Args:
            config: the config of a causal LM, or of a vision-language model, whose language part
                is taken.
            rank: LoRA rank.
            scale, chunk: see :class:`dnd_fast.lora.weight_layout.WeightLayout`.
            target_modules: every linear layer of the transformer blocks, or some, by short name.
            layers: the first and the last transformer layer that is adapted, from 0; None: all are.
            lora_alpha: LoRA alpha, 2 * rank by default, as in the paper.

        Raises:
            InvalidInput: no language model behind the config, or target modules or layers that it
                does not have.
        """
        modules, targets = find_lora_modules(config, target_modules, layers)
        return cls(
            modules,
            rank,
            lora_alpha=2 * rank if lora_alpha is None else lora_alpha,
            target_modules=targets,
            scale=scale,
            chunk=chunk,
            base_model=getattr(config, "_name_or_path", None) or None,
        )

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> LoraLayout:
        """Inverse of :meth:`to_dict`.

        Raises:
            InvalidInput: entries are missing or malformed.
        """
        try:
            modules = [LoraModule(name, *sizes) for name, sizes in fields["modules"].items()]
            options = {key: value for key, value in fields.items() if key != "modules"}
            return cls(modules, **options)
        except (KeyError, TypeError, AttributeError) as error:
            raise InvalidInput(f"the layout's description is malformed: {error!r}.") from error

    def to_dict(self) -> dict[str, Any]:
        """Everything but the statistics, as plain data for a JSON file."""
        return {
            "base_model": self.base_model,
            "rank": self.rank,
            "lora_alpha": self.lora_alpha,
            "target_modules": self.target_modules,
            "scale": self.scale,
            "chunk": self.chunk,
            "modules": {
                module.name: [module.size_in, module.size_out] for module in self.adapted_modules
            },
        }

    def tensor_shapes(self) -> dict[str, tuple[int, int]]:
        """PEFT's name and the shape of every LoRA tensor, in token order."""
        return {
            f"{PREFIX}{module.name}.lora_{half}.weight": shape
            for module in self.adapted_modules
            for half, shape in (
                ("A", (self.rank, module.size_in)),
                ("B", (module.size_out, self.rank)),
            )
        }

    def to_adapter(self, tensors: dict[str, Tensor]) -> Adapter:
        """An adapter of the tensors of one :meth:`detokenize`."""
        return Adapter(tensors, self.adapter_config())

    def adapter_config(self) -> dict[str, Any]:
        """The content of the ``adapter_config.json`` of every adapter of this layout."""
        return lora_config(
            rank=self.rank,
            lora_alpha=self.lora_alpha,
            target_modules=self.target_modules,
            base_model=self.base_model,
        )

    def check_base(self, base: object) -> None:
        """Raise unless ``base`` is a plain model of transformers, or made of one for training.

        Raises:
            InvalidInput: it is not.
        """
        from transformers import PreTrainedModel

        from dnd_fast.lora.frozen_base import FrozenBase

        if not isinstance(base, PreTrainedModel | FrozenBase):
            raise InvalidInput(
                f"the base is a {type(base).__name__}, which a layout of experts may need, but "
                "one of LoRA adapters a plain model."
            )

    def applied(self, base: Any, tensors: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Put K adapters on the base model for a block; see the parent."""
        from dnd_fast.lora.batched import with_adapters

        return with_adapters(base, tensors, self.lora_alpha / self.rank)

    def describe(self) -> dict[str, Any]:
        """Rank, alpha and the number of modules, for people to read."""
        return {
            "adapters": f"rank {self.rank}, alpha {self.lora_alpha}",
            "modules": len(self.adapted_modules),
        }


TokenLayout = LoraLayout  # the public name
