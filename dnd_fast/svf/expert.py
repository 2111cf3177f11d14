"""Singular value fine-tuning: experts that scale the singular values of a frozen model's weights.

Source: Transformer² (arXiv:2501.06252), section 3.2. For a weight matrix W = U Σ Vᵀ an expert holds
one vector z of length min(m, n), and the model runs with W' = U (Σ ⊗ diag(s)) Vᵀ. How z
becomes the scales s is the expert's parametrisation, see :mod:`dnd_fast.svf.decomposition`.

W' is always formed as W + U (Σ ⊗ diag(s - 1)) Vᵀ: at s = 1 it is W bit by bit, the rounding of the
decomposition counts only where something changes, and the change adds to that of a LoRA adapter.
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

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
from dnd_fast.lora.target_modules import find_lora_modules
from dnd_fast.recipe import from_table
from dnd_fast.svf.decomposition import (
    Parametrisation,
    adding_hook,
    decompose,
    hash_weight,
    scales_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG_FILE = "svf_config.json"
WEIGHTS_FILE = "expert.safetensors"
FORMAT_VERSION = 1
# The paper's Table 4: its LoRA's 6.82 M parameters for "attention" are those of q and v alone.
MODULES = {
    "attention": ["q_proj", "v_proj"],
    "mlp": ["gate_proj", "up_proj", "down_proj"],
    "both": ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"],
}


@dataclass(frozen=True)
class ExpertConfig:
    """The content of ``svf_config.json``.

    Attributes:
        base_model: path or hub id of the base, where it has one.
        fingerprint: SHA-256 over the weights that the expert scales, as they are in the base.
        parametrisation: how z becomes scales.
    """

    base_model: str | None
    fingerprint: str
    parametrisation: Parametrisation = "plain"
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Expert:
    """One vector z per weight matrix, on the CPU.

    Attributes:
        vectors: z ``[min(m, n)]`` float32 by the module's name in the base model.
        config: the base and the parametrisation that the vectors are for.
    """

    vectors: dict[str, Tensor]
    config: ExpertConfig

    def __post_init__(self) -> None:
        if self.config.parametrisation not in get_args(Parametrisation):
            raise InvalidInput(
                f"parametrisation={self.config.parametrisation!r}; choose one of "
                f"{get_args(Parametrisation)}."
            )
        if not self.vectors:
            raise InvalidInput("the expert has no vectors.")
        check_weights(self.vectors)
        for name, z in self.vectors.items():
            if z.ndim != 1 or not len(z):
                raise InvalidInput(f"{name}: z has shape {list(z.shape)}, expected [min(m, n)].")

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return sum(len(z) for z in self.vectors.values())

    @classmethod
    def load(cls, path: str | Path) -> Expert:
        """Read an expert's folder.

        Raises:
            FileNotFoundError: the folder or one of its two files is missing.
            InvalidInput: a file is damaged, or it is no SVF expert.
        """
        path = Path(path)
        if not (path / CONFIG_FILE).is_file():
            raise FileNotFoundError(f"there is no SVF expert at {path}: {CONFIG_FILE} is missing.")
        content, vectors = read_unchanged(
            path,
            lambda: (
                read_json(path / CONFIG_FILE),
                read_safetensors(path / WEIGHTS_FILE, unchecked="warn"),
            ),
        )
        if content.get("format_version") != FORMAT_VERSION:
            raise InvalidInput(
                f"{path}: format version {content.get('format_version')!r}; this dnd-fast reads "
                f"{FORMAT_VERSION}. Update dnd-fast."
            )
        config = from_table(ExpertConfig, content, str(path / CONFIG_FILE))
        try:
            return cls(vectors, config)
        except InvalidInput as error:
            raise InvalidInput(f"{path}: {error}") from error

    def save(self, path: str | Path) -> Path:
        """Write ``svf_config.json`` and ``expert.safetensors``, all or nothing.

        Raises:
            OSError: ``path`` cannot be written, or the disk is full.
        """
        with atomic_folder(path) as folder:
            self.write(folder)
        return Path(path)

    def write(self, folder: Path) -> None:
        """Write the two files into a folder that is being made; see :meth:`save`."""
        write_safetensors(folder / WEIGHTS_FILE, self.vectors)
        write_json(folder / CONFIG_FILE, dataclasses.asdict(self.config))


class DecomposedModel:
    """A base model with the SVD of its chosen weights: experts are put on it and taken off again.

    At most one expert, or one batch of experts, is on it at a time: a thread that enters one of the
    blocks waits for those of other threads. LoRA adapters are independent: their changes and an
    expert's add up, whichever comes first.

    Args:
        model: a causal LM, which stays as it is outside of :meth:`merged` and :meth:`factored`. Do
            not move it to another device afterwards.
        modules: ``"attention"`` (q and v, as in the paper), ``"mlp"``, ``"both"``,
            ``"all-linear"``, or short names of linear layers.
        cache: folder that keeps each matrix's SVD under the hash of its weights.

    Attributes:
        svds: the decomposition by module name, on the model's device.

    Raises:
        InvalidInput: the model has no such modules, or their weights are damaged or quantised.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        modules: str | list[str] = "both",
        *,
        cache: str | Path | None = None,
    ) -> None:
        targets = MODULES.get(modules, modules) if isinstance(modules, str) else modules
        modules_found, _ = find_lora_modules(model.config, targets)
        self.model = model
        self._linears: dict[str, nn.Linear] = {}
        for module in modules_found:
            try:
                linear: nn.Module = model.get_submodule(module.name)
            except AttributeError as error:
                raise InvalidInput(
                    f"this {type(model).__name__} has no {module.name}, which its config "
                    "describes; of a model with a LoRA adapter, give get_base_model()."
                ) from error
            # PEFT wraps a linear layer and keeps it as base_layer.
            self._linears[module.name] = cast(nn.Linear, getattr(linear, "base_layer", linear))
        check_weights({name: linear.weight for name, linear in self._linears.items()})
        self._hashes = {name: hash_weight(linear.weight) for name, linear in self._linears.items()}
        self.svds = {
            name: decompose(linear.weight, self._hashes[name], cache)
            for name, linear in self._linears.items()
        }
        self._lock, self._occupied = threading.RLock(), False

    @property
    def sizes(self) -> dict[str, int]:
        """Length of z by module name."""
        return {name: len(svd.s) for name, svd in self.svds.items()}

    def fingerprint(self, names: Sequence[str]) -> str:
        """SHA-256 over the weights of some modules, in any order."""
        text = " ".join(f"{name} {self._hashes[name]}" for name in sorted(names))
        return hashlib.sha256(text.encode()).hexdigest()

    def expert(
        self, vectors: Mapping[str, Tensor], parametrisation: Parametrisation = "plain"
    ) -> Expert:
        """An expert for this base with the given z, one vector ``[min(m, n)]`` a module.

        Raises:
            InvalidInput: a vector does not fit.
        """
        copied = {name: z.detach().float().cpu().clone() for name, z in vectors.items()}
        self._check_vectors(copied)
        return Expert(
            copied,
            ExpertConfig(
                getattr(self.model.config, "_name_or_path", None) or None,
                self.fingerprint(list(copied)),
                parametrisation,
            ),
        )

    def check(self, expert: Expert) -> None:
        """Raise unless the expert was made for this base.

        Raises:
            InvalidInput: its modules or lengths do not fit, or it was trained on other weights.
        """
        self._check_vectors(expert.vectors)
        if expert.config.fingerprint != self.fingerprint(list(expert.vectors)):
            raise InvalidInput(
                f"the expert was trained on other weights than this base's "
                f"({expert.config.base_model or 'a base without a name'}): load that base, in its "
                "own dtype, or use transferred() to apply the expert here all the same."
            )

    def transferred(self, expert: Expert, *, shuffle_seed: int | None = None) -> Expert:
        """Another base's expert made over to this one (the paper's Table 5).

        Args:
            expert: for a base with the same names and sizes.
            shuffle_seed: permute every z at random: the control that shows whether the order of
                singular values carries anything over.

        Raises:
            InvalidInput: names or sizes differ.
        """
        vectors = dict(expert.vectors)
        if shuffle_seed is not None:
            generator = torch.Generator().manual_seed(shuffle_seed)
            vectors = {
                name: z[torch.randperm(len(z), generator=generator)] for name, z in vectors.items()
            }
        return self.expert(vectors, expert.config.parametrisation)

    @contextmanager
    def merged(self, expert: Expert) -> Iterator[None]:
        """Replace the weights by W' while the block runs; W itself is never written to.

        W' is computed in float32 and cast to the weight's dtype.

        Raises:
            InvalidInput: the expert does not fit, or this thread has put another one on the model.
        """
        self.check(expert)
        with self._exclusive(), ExitStack() as restored:
            for name, z in expert.vectors.items():
                weight, svd = self._linears[name].weight, self.svds[name]
                with torch.no_grad():
                    scales = scales_of(z.to(svd.s.device), svd.s, expert.config.parametrisation)
                    changed = (weight.float() + svd.change(scales)).to(weight.dtype)
                restored.callback(setattr, weight, "data", weight.data)
                weight.data = changed
            yield

    @contextmanager
    def factored(
        self, vectors: Mapping[str, Tensor], parametrisation: Parametrisation = "plain"
    ) -> Iterator[None]:
        """Add U ((s - 1) Σ ⊗ Vᵀ x) to every layer's output while the block runs.

        Differentiable in z. Nothing is rebuilt, so that switching costs nothing, and K experts can
        share one pass: sequence ``k * B + b`` of a batch sees expert k.

        Args:
            vectors: z ``[r]``, or ``[K, r]`` for K experts, by module name.
            parametrisation: how z becomes scales.

        Raises:
            InvalidInput: a vector does not fit, or this thread has put another expert on the model.
        """
        self._check_vectors(vectors)
        with self._exclusive(), ExitStack() as removed:
            for name, z in vectors.items():
                hook = adding_hook(self.svds[name], z, parametrisation)
                removed.callback(self._linears[name].register_forward_hook(hook).remove)
            yield

    def plain(self) -> AbstractContextManager[object]:
        """Let no other thread put an expert on the model while the block runs."""
        return self._lock

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self._lock:
            if self._occupied:
                raise InvalidInput(
                    "there is an expert on this model already; leave its block first."
                )
            self._occupied = True
            try:
                yield
            finally:
                self._occupied = False

    def _check_vectors(self, vectors: Mapping[str, Tensor]) -> None:
        for name, z in vectors.items():
            if name not in self.svds:
                raise InvalidInput(
                    f"the expert does not fit: it scales {name}, which is not among the "
                    f"{len(self.svds)} modules decomposed of this {type(self.model).__name__}."
                )
            if z.shape[-1] != self.sizes[name]:
                raise InvalidInput(
                    f"the expert does not fit: {name} has {self.sizes[name]} singular values, z "
                    f"has length {z.shape[-1]}."
                )
