"""Weight tokens of SVF experts: vectors z <-> a tensor ``[Nw, 1, chunk]``.

With this layout a generator makes experts from prompts as it makes LoRA adapters: module by module
in token order, each z is cut into chunks, and every chunk is one token.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, get_args

from torch import Tensor

from dnd_fast.errors import InvalidInput
from dnd_fast.lora.layout import LoraLayout
from dnd_fast.lora.weight_layout import WeightLayout
from dnd_fast.svf.decomposition import Parametrisation
from dnd_fast.svf.expert import DecomposedModel, Expert, ExpertConfig


class SvfLayout(WeightLayout):
    """Bijection between the vectors of an expert and weight tokens.

    Tokens are normalised by their mean and deviation over a collection of experts; see
    :class:`dnd_fast.lora.weight_layout.WeightLayout`, scale ``"static"``.

    Args:
        sizes: the length of z by module name, in token order.
        fingerprint: SHA-256 over the base's weights; see
            :class:`dnd_fast.svf.expert.ExpertConfig`.
        parametrisation: how z becomes scales.
        chunk: columns of a token; by default the greatest common divisor of all lengths.
        base_model: path or hub id of the base model, written into experts.

    Raises:
        InvalidInput: an argument is unusable; the message names it.
    """

    modules_entry = "sizes"

    def __init__(
        self,
        sizes: Mapping[str, int],
        fingerprint: str,
        parametrisation: Parametrisation = "plain",
        *,
        chunk: int | None = None,
        base_model: str | None = None,
    ) -> None:
        if not sizes:
            raise InvalidInput("the layout has no modules.")
        for name, size in sizes.items():
            if type(size) is not int or size < 1:
                raise InvalidInput(f"{name}: a length of {size!r}; it must be a positive integer.")
        if parametrisation not in get_args(Parametrisation):
            raise InvalidInput(
                f"parametrisation={parametrisation!r}; choose one of {get_args(Parametrisation)}."
            )
        super().__init__(list(sizes.values()), rank=1, chunk=chunk, base_model=base_model)
        self.sizes = dict(sizes)
        self.fingerprint = fingerprint
        self.parametrisation = parametrisation

    @classmethod
    def for_base(
        cls, base: DecomposedModel, parametrisation: Parametrisation = "plain"
    ) -> SvfLayout:
        """The layout of experts for a decomposed base."""
        name = getattr(base.model.config, "_name_or_path", None) or None
        fingerprint = base.fingerprint(list(base.sizes))
        return cls(base.sizes, fingerprint, parametrisation, base_model=name)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> SvfLayout:
        """Inverse of :meth:`to_dict`.

        Raises:
            InvalidInput: entries are missing or malformed.
        """
        try:
            return cls(**fields)
        except (TypeError, AttributeError) as error:
            raise InvalidInput(f"the layout's description is malformed: {error!r}.") from error

    def to_dict(self) -> dict[str, Any]:
        """Everything but the statistics, as plain data for a JSON file."""
        return {
            "base_model": self.base_model,
            "fingerprint": self.fingerprint,
            "parametrisation": self.parametrisation,
            "chunk": self.chunk,
            "sizes": self.sizes,
        }

    def tensor_shapes(self) -> dict[str, tuple[int, int]]:
        """Every z as a matrix of one row, in token order."""
        return {name: (1, size) for name, size in self.sizes.items()}

    def tokenize(self, state_dict: Mapping[str, Tensor]) -> Tensor:
        """Vectors z ``[..., r]`` by module name -> ``[..., Nw, 1, chunk]``; see the parent."""
        return super().tokenize({name: z[..., None, :] for name, z in state_dict.items()})

    def detokenize(self, tokens: Tensor) -> dict[str, Tensor]:
        """Inverse of :meth:`tokenize`; differentiable."""
        return {name: z.squeeze(-2) for name, z in super().detokenize(tokens).items()}

    def unpack(self, weights: Tensor) -> dict[str, Tensor]:
        """``[B, E]``, as kernels write it, -> what :meth:`detokenize` gives; views."""
        return {name: z.squeeze(-2) for name, z in super().unpack(weights).items()}

    def to_adapter(self, tensors: dict[str, Tensor]) -> Expert:
        """An expert with these vectors."""
        config = ExpertConfig(self.base_model, self.fingerprint, self.parametrisation)
        return Expert({name: z.clone() for name, z in tensors.items()}, config)

    def check_base(self, base: object) -> None:
        """Raise unless ``base`` is a :class:`dnd_fast.svf.expert.DecomposedModel`.

        Raises:
            InvalidInput: it is not.
        """
        if not isinstance(base, DecomposedModel):
            raise InvalidInput(
                f"the base is a {type(base).__name__}; a layout of experts needs a DecomposedModel."
            )

    def applied(self, base: Any, tensors: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Put K experts on the base model for a block; see the parent."""
        return base.factored(tensors, self.parametrisation)

    def describe(self) -> dict[str, Any]:
        """The parametrisation and the number of modules, for people to read."""
        return {"makes": f"SVF experts, {self.parametrisation}", "modules": len(self.sizes)}


def layout_from_dict(fields: Mapping[str, Any]) -> WeightLayout:
    """The layout that was described: of experts, or of LoRA adapters.

    Raises:
        InvalidInput: entries are missing or malformed.
    """
    kinds: tuple[type[WeightLayout], ...] = (SvfLayout, LoraLayout)
    kind = next((kind for kind in kinds if kind.modules_entry in fields), LoraLayout)
    return kind.from_dict(fields)
