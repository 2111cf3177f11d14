"""The demo's test questions."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from dnd_fast.demo.tasks import Split, Task
from dnd_fast.lora.batched import Batch, collate, encode

EXAM_SIZE = 64  # test prompts per task


def exam(
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    wordings: Split = "train",
    size: int = EXAM_SIZE,
) -> Batch:
    """Tokenise K tasks' test examples, ``[K, size, T]``: unseen words, seen wordings by default."""
    examples = [
        example.turn for task in tasks for example in task.examples(size, "test", 1, wordings)
    ]
    return collate(encode(tokenizer, examples)).view(len(tasks), size)
