"""Formats of texts: recipes, prompts, data sets, word vectors, tables of devices."""

import csv
import io
import json
import os
import shutil
import sys

from form import PROMPTS, WORDS, Format, examples, have, write_lines

from dnd_fast import InvalidInput, Recipe
from dnd_fast.files import read_bytes
from dnd_fast.generator_config import GeneratorConfig
from dnd_fast.kernels.planner import measured_times
from dnd_fast.recipe import RECIPES, from_table, read_toml
from dnd_fast.text.datasets import Dataset
from dnd_fast.text.glove import GloveEncoder
from dnd_fast.text.prompts import read_prompts
from dnd_fast.train.adapters.names import read_names
from dnd_fast.train.evaluation.metrics import Settings, make_metric
from dnd_fast.train.evaluation.questions import read_questions
from dnd_fast.train.experts.reinforce import ExpertSpec

TURNS = [
    [{"role": "user", "content": p}, {"role": "assistant", "content": p[::-1]}] for p in PROMPTS
]
LEAVE = Settings(run_generated_code=True)
SHARED = [[{"from": "human", "value": p}, {"from": "gpt", "value": p[::-1]}] for p in PROMPTS]


def write_csv(folder):
    with (folder / "a.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["prompt", "response"])
        table.writeheader()
        table.writerows(examples())


def write_parquet(folder):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(examples()), folder / "a.parquet")


def data(name, records=None):
    """A data set: records in lines, or written otherwise."""
    write = records if callable(records) else lambda folder: write_lines(folder, name, records)
    return Format(write, lambda folder: Dataset.read(folder / name).examples)


def read_piped(folder):
    kept = sys.stdin
    try:
        sys.stdin = io.TextIOWrapper(io.BytesIO(read_bytes(folder / "a.txt")))
        return read_prompts("-")
    finally:
        sys.stdin = kept


def at(folder):
    os.environ["DND_FAST_CACHE"] = str(folder)


def write_table(folder):
    at(folder)
    measured_times.save_table("cpu", {"a": {"direct": 1.0}, "b": {"fft": 2}})


def read_table(folder):
    at(folder)
    try:
        return measured_times.load_table("cpu")
    except ValueError as error:  # in kernels/, where it is the kind of error for bad input
        raise InvalidInput(str(error)) from error


def write_task(folder):
    write_lines(folder, "a.yaml", ["task: a", "dataset_path: json", "doc_to_text: '{{prompt}}'"])


FORMATS = {
    "recipe": Format(
        lambda folder: shutil.copy(RECIPES / "demo.toml", folder),
        lambda folder: Recipe.load(folder / "demo.toml"),
        4,
    ),
    "recipe's generator": Format(
        lambda folder: shutil.copy(RECIPES / "demo.toml", folder),
        lambda folder: GeneratorConfig.from_recipe(Recipe.load(folder / "demo.toml")),
        0.5,
    ),
    "settings": Format(
        lambda folder: (folder / "a.toml").write_text(
            'objective = "reinforce"\nsteps = 3\nkl = 0.1\n'
        ),
        lambda folder: from_table(ExpertSpec, read_toml(folder / "a.toml"), "a"),
    ),
    "prompts in lines": Format(
        lambda folder: write_lines(folder, "a.txt", PROMPTS), lambda f: read_prompts(f / "a.txt")
    ),
    "prompts by a pipe": Format(
        lambda folder: write_lines(folder, "a.txt", examples()), read_piped
    ),
    "prompts": Format(
        lambda folder: write_lines(folder, "a.jsonl", examples()),
        lambda folder: read_prompts(folder / "a.jsonl"),
    ),
    "data set": data("a.jsonl", examples(system="be brief")),
    "list": data("a.json", [json.dumps(examples())]),
    "table": data("a.csv", write_csv),
    **have("pyarrow", {"parquet": data("a.parquet", write_parquet)}),
    "messages": data("a.jsonl", [{"messages": turns} for turns in TURNS]),
    "conversations": data("a.jsonl", [{"conversations": turns} for turns in SHARED]),
    "instructions": data(
        "a.jsonl", [{"instruction": "reverse", "input": p, "output": p[::-1]} for p in PROMPTS]
    ),
    "answers": data("a.jsonl", [{"question": p, "answer": p[::-1]} for p in PROMPTS]),
    "questions": Format(
        lambda folder: write_lines(folder, "a.jsonl", examples(options=["a", "b"], test="1")),
        lambda folder: read_questions(folder / "a.jsonl"),
    ),
    **have(
        "lm_eval",
        {"task": Format(write_task, lambda f: make_metric(f"lm-eval:{f / 'a.yaml'}", LEAVE).name)},
    ),
    "names": Format(
        lambda folder: write_lines(folder, "a.txt", WORDS), lambda f: read_names(f"@{f / 'a.txt'}")
    ),
    "word vectors": Format(
        lambda folder: write_lines(folder, "a.txt", [f"{word} 1 2.5 -3e-2" for word in WORDS]),
        lambda folder: GloveEncoder.read(folder / "a.txt").model.state_dict(),
        2,
    ),
    "table of a device": Format(write_table, read_table),
}
