"""What the native runtime needs to know of a tokenizer: WordPiece as BERT has it, or a refusal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from dnd_fast.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class WordPiece(NamedTuple):
    """A tokenizer as data.

    Attributes:
        vocabulary: the tokens, in the order of their ids.
        settings: everything else, as plain data for a JSON file.
    """

    vocabulary: list[str]
    settings: dict[str, Any]


def describe_tokenizer(tokenizer: PreTrainedTokenizerBase) -> WordPiece:
    """Read a tokenizer's parts.

    Raises:
        InvalidInput: it is not WordPiece, or has a part that the native runtime does not know.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = {} if backend is None else json.loads(backend.to_str())
    model = parts.get("model") or {}
    _require(tokenizer, "model", model.get("type"), "WordPiece")
    normalizer = parts["normalizer"] or {}
    _require(tokenizer, "normalizer", normalizer.get("type"), "BertNormalizer")
    pre_tokenizer = parts["pre_tokenizer"] or {}
    _require(tokenizer, "pre-tokenizer", pre_tokenizer.get("type"), "BertPreTokenizer")
    for token in parts["added_tokens"]:
        modes = [mode for mode in ("single_word", "lstrip", "rstrip", "normalized") if token[mode]]
        _require(tokenizer, f"mode of the added token {token['content']!r}", modes, [])
    ids = model["vocab"]
    vocabulary = sorted(ids, key=ids.__getitem__)
    if [ids[token] for token in vocabulary] != list(range(len(ids))):
        raise InvalidInput("the tokenizer's ids have gaps, and vocab.txt cannot hold any.")
    if broken := [token for token in vocabulary if "\n" in token]:
        raise InvalidInput(f"the tokenizer's token {broken[0]!r} has a line break.")
    start, end = _frame(tokenizer, parts["post_processor"] or {})
    lowercase, strip_accents = normalizer["lowercase"], normalizer["strip_accents"]
    settings = {
        "clean_text": normalizer["clean_text"],
        "chinese_characters": normalizer["handle_chinese_chars"],
        "strip_accents": lowercase if strip_accents is None else strip_accents,
        "lowercase": lowercase,
        "continuation": model["continuing_subword_prefix"],
        "max_word_length": model["max_input_chars_per_word"],
        "unknown": ids[model["unk_token"]],
        "start": start,
        "end": end,
        "padding": tokenizer.pad_token_id or 0,
        "truncation_side": tokenizer.truncation_side,
        "special_tokens": {token["content"]: token["id"] for token in parts["added_tokens"]},
    }
    return WordPiece(vocabulary, settings)


def _frame(tokenizer: PreTrainedTokenizerBase, processor: dict[str, Any]) -> tuple[int, int]:
    """The ids of the one token before, and the one token after every text."""
    if processor.get("type") == "BertProcessing":
        return processor["cls"][1], processor["sep"][1]
    single = processor.get("single") or []
    kinds = [next(iter(part)) for part in single]
    _require(tokenizer, "frame", kinds, ["SpecialToken", "Sequence", "SpecialToken"])
    start, end = (
        processor["special_tokens"][part["SpecialToken"]["id"]]["ids"] for part in single[::2]
    )
    _require(tokenizer, "number of tokens around a text", len(start) + len(end), 2)
    return start[0], end[0]


def _require(tokenizer: object, part: str, found: object, expected: object) -> None:
    if found != expected:
        raise InvalidInput(
            f"the tokenizer {type(tokenizer).__name__} cannot be exported: its {part} is "
            f"{found!r}, the native runtime knows {expected!r} only."
        )
