"""Embedded texts on disk: each text's tokens end to end, in float16, read through a memory map.

Only real positions are stored, so that thousands of prompts take what their tokens take, however
long the padded condition is; padding is put back when a batch is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch import Tensor

from dnd_fast.errors import InvalidInput
from dnd_fast.files import atomic_folder, hash_file, read_json, warn_unchecked, write_json
from dnd_fast.recipe import ConditionSpec
from dnd_fast.text.prompt_encoder import PromptEncoder

EMBEDDINGS_FILE = "embeddings.f16"
INDEX_FILE = "index.json"
BYTES_AT_ONCE = 1 << 28  # of padded embeddings, while texts are being encoded


class EmbeddedTexts:
    """The texts of one data set: ``texts[i]`` is ``[positions, C]`` float16.

    Args:
        folder: Folder written by :func:`embed_texts`.

    Raises:
        InvalidInput: the files are damaged.
    """

    def __init__(self, folder: Path) -> None:
        index, file = read_json(folder / INDEX_FILE), folder / EMBEDDINGS_FILE
        width, lengths = index.get("width", 0), index.get("lengths", [])
        sha256 = index.get("sha256")
        if (
            not isinstance(lengths, list)
            or not all(type(number) is int and number >= 0 for number in (width, *lengths))
            or file.stat().st_size != 2 * width * sum(lengths)
            or sha256 not in (None, hash_file(file))
        ):
            raise InvalidInput(f"{file} does not fit its index; delete {folder} to embed anew.")
        if sha256 is None:
            warn_unchecked(file)
        self._bounds = list(pairwise(accumulate(lengths, initial=0)))
        mapped = torch.from_file(str(file), size=width * sum(lengths), dtype=torch.float16)
        self._rows = mapped.view(-1, width)

    def __len__(self) -> int:
        return len(self._bounds)

    def __getitem__(self, index: int) -> Tensor:
        first, last = self._bounds[index]
        return self._rows[first:last]


def embed_texts(
    encoder: PromptEncoder,
    texts: Sequence[str],
    spec: ConditionSpec,
    cache: Path,
    *,
    fingerprint: str,
    progress: Callable[[int], None] = lambda texts: None,
) -> EmbeddedTexts:
    """Embed ``texts``, or find them in the cache.

    Args:
        encoder: The frozen encoder.
        texts: Texts of one data set.
        spec: Length and padding of a condition.
        cache: Folder with one folder for each list of texts, named by a hash.
        fingerprint: Fingerprint of the encoder; see :meth:`PromptEncoder.fingerprint`.
        progress: Callback that gets how many texts have been embedded since the last time.

    Raises:
        InvalidInput: a text is empty.
        OSError: the cache cannot be written.
    """
    key = f"{fingerprint} {spec.length} {spec.padding} {list(texts)}"
    folder = cache / hashlib.sha256(key.encode()).hexdigest()
    if not folder.is_dir():
        at_once = max(1, BYTES_AT_ONCE // (4 * spec.length * encoder.width))
        lengths: list[int] = []
        with atomic_folder(folder) as staged:
            with (staged / EMBEDDINGS_FILE).open("wb") as file:
                for start in range(0, len(texts), at_once):
                    part = texts[start : start + at_once]
                    for rows in encoder.encode(part, spec.length, padding=spec.padding):
                        # Zeros after the last real position are padding.
                        real = rows.any(-1).nonzero()
                        lengths.append(int(real[-1]) + 1 if len(real) else 0)
                        file.write(rows[: lengths[-1]].half().cpu().numpy().tobytes())
                    progress(len(part))
            sha256 = hash_file(staged / EMBEDDINGS_FILE)
            index = {"width": encoder.width, "lengths": lengths, "sha256": sha256}
            write_json(staged / INDEX_FILE, index)
    return EmbeddedTexts(folder)
