"""Reading generated text: the option, number or program in it."""

from __future__ import annotations

import re
import unicodedata
from math import comb

from dnd_fast.train.evaluation.questions import Question

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
FENCED = re.compile(r"```(?:python|py)?[^\S\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
CHOICES = (
    re.compile(r"\[\s*([A-Z]|true|false)\s*\]", re.IGNORECASE),
    re.compile(r"\banswer\b\W*(?:is|would be)?\W*([A-Z]|true|false)\b(?!')", re.IGNORECASE),
    re.compile(r"^\W*([A-Z])(?=\W*$|[:.,)\n])"),
    re.compile(r"\b(true|false)\b", re.IGNORECASE),
    re.compile(r"\(([A-Z])\)"),
    re.compile(r"\b([A-Z])\s*:"),
)


def normalized(answer: str) -> str:
    """Unicode's compatible form, in lower case, with single spaces and no final stop."""
    folded = unicodedata.normalize("NFKC", answer).casefold()
    return " ".join(folded.split()).removesuffix(".")


def read_choice(answer: str) -> str | None:
    """Read the option that a text names: a capital letter, ``"True"`` or ``"False"``; None: none.

    The first of these counts: in brackets; after the word "answer"; a letter at the
    beginning with nothing or punctuation after it; the word true or false; a letter in parentheses;
    a letter before a colon.
    """
    for pattern in CHOICES:
        if match := pattern.search(answer):
            return match[1].capitalize()
    return None


def final_number(answer: str) -> float | None:
    """Read the number after the last ``####``, else in the last ``\\boxed{}``, else the last."""
    if "####" in answer:
        numbers = NUMBER.findall(answer.rpartition("####")[2])[:1]
    elif boxed := BOXED.findall(answer):
        numbers = NUMBER.findall(boxed[-1])[-1:]
    else:
        numbers = NUMBER.findall(answer)[-1:]
    return float(numbers[0].replace(",", "")) if numbers else None


def python_code(answer: str) -> str:
    """Read the first fenced block of an answer, or all of it where there is none."""
    block = FENCED.search(answer)
    return block[1] if block else answer


def program(question: Question, answer: str) -> str:
    """Put together what is run to see whether a generated answer is right.

    With an entry point the prompt comes first. It is the head and documentation of a function: code
    that continues it fits below, and code that repeats it defines the function again.
    """
    code = python_code(answer)
    if not question.entry_point:
        return f"{code}\n\n{question.test}"
    call = f"check({question.entry_point})"
    return f"{question.prompt.rstrip()}\n{code}\n\n{question.test}\n{call}"


def estimate_pass(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate of the probability that one of k samples is correct.

    Source: Chen et al. 2021, Evaluating Large Language Models Trained on Code, equation 1.
    """
    return 1 - comb(samples - correct, k) / comb(samples, k)
