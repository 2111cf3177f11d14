"""Word vectors as the text encoder: one position per word, no context.

Source: Drag-and-Drop LLMs, section 3.4 (condition extractor "Glove"); Pennington et al. 2014.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dnd_fast.errors import InvalidInput
from dnd_fast.text.prompt_encoder import (
    CachingEncoder,
    Padding,
    Token,
    occupied_positions,
)

UNKNOWN = "<unk>"
LINE_BYTES = 1 << 20  # of one word and its vector, at most
PART = re.compile(r"\w+|[^\w\s]")


class GloveEncoder(CachingEncoder):
    """Embeds a prompt word by word, by a table.

    A word is what stands between white space, and takes one position. It is looked up as it is,
    then in lower case. Where the table has neither, the position holds the mean of the vectors of
    the word's parts, runs of letters and digits and single punctuation marks, that the table has
    (``"(cats,"``: of ``(``, ``cats`` and ``,``); where it has none of them, the table's ``<unk>``,
    or without one the mean of all its vectors.

    Args:
        words: the table's words, each once.
        vectors: ``[words, C]`` float32.
    """

    def __init__(self, words: Sequence[str], vectors: Tensor) -> None:
        self._rows = {word: row for row, word in enumerate(words)}
        if UNKNOWN not in self._rows:
            self._rows[UNKNOWN] = len(vectors)
            vectors = torch.cat([vectors, vectors.mean(0, keepdim=True)])
        super().__init__(nn.EmbeddingBag.from_pretrained(vectors, mode="mean"), vectors.shape[1])

    @classmethod
    def read(cls, path: str | Path) -> GloveEncoder:
        """Read a text file with a word and its C numbers on each line, separated by spaces.

        C is that of the first line. A word may hold spaces itself. Of a repeated word the first
        line counts.

        Raises:
            FileNotFoundError: there is no such file.
            InvalidInput: undecodable text, or a line without a word and C finite numbers; the
                message names the line.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such file of word vectors.")
        rows: dict[str, np.ndarray] = {}
        width = 0
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(LINE_BYTES), b""), 1):
                width = width or len(line.split(b" ")) - 1
                word, vector = _parse(line, width, f"{path}, line {number}")
                rows.setdefault(word, vector)
        if not rows:
            raise InvalidInput(f"{path} is empty; expected a word and its vector on each line.")
        return cls(list(rows), torch.from_numpy(np.stack(list(rows.values()))))

    def _describe(self) -> str:
        return "\n".join(self._rows)

    def _tokenize(self, prompts: list[str], length: int) -> Sequence[Sequence[Token]]:
        """For each prompt and position the table's rows whose mean stands there."""
        split = [prompt.split() for prompt in prompts]
        if too_long := sum(len(words) > length for words in split):
            warnings.warn(
                f"{too_long} of {len(split)} prompts are longer than {length} words and are "
                "truncated.",
                stacklevel=3,
            )
        return [[self._look_up(word) for word in words[:length]] for words in split]

    def _look_up(self, word: str) -> tuple[int, ...]:
        for parts in ([word], PART.findall(word)):
            rows = [self._rows.get(part, self._rows.get(part.lower())) for part in parts]
            if known := tuple(row for row in rows if row is not None):
                return known
        return (self._rows[UNKNOWN],)

    @torch.no_grad()
    def _embed(self, tokens: Sequence[Sequence[Token]], length: int, padding: Padding) -> Tensor:
        hidden = torch.zeros(
            len(tokens), length, self.width, dtype=torch.float32, device=self.device
        )
        bags = [torch.tensor(rows) for prompt in tokens for rows in prompt]
        starts = torch.tensor([0, *map(len, bags[:-1])]).cumsum(0)
        occupied = occupied_positions(tokens, length, "zero").to(self.device)
        hidden[occupied] = self.model(torch.cat(bags).to(self.device), starts.to(self.device))
        return hidden


def _parse(line: bytes, width: int, where: str) -> tuple[str, np.ndarray]:
    """A line's word and vector."""
    parts = line.rstrip(b"\r\n").rstrip(b" ").rsplit(b" ", width)
    try:
        word, vector = parts[0].decode(), np.array(parts[1:], dtype=np.float32)
    except ValueError as error:
        raise InvalidInput(f"{where}: {error}; the file is damaged, fetch it again.") from error
    # A number at the end of the "word" is a number too many.
    if not (word and width and len(vector) == width and np.isfinite(vector).all()) or (
        " " in word and _is_number(word.rpartition(" ")[2])
    ):
        raise InvalidInput(
            f"{where}: found {len(line.split()) - 1} entries after {line.split()[:1]}, expected a "
            f"word and {width or 'some'} finite numbers as on the first line; the file is damaged "
            "or no GloVe file."
        )
    return word, vector


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
