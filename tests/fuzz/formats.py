"""All formats that are read: how to write a good one, and how it is read."""

import dataclasses
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from dnd_fast import Adapter, Expert, Generator, HyperConvDecoder, InvalidInput, Recipe, TextEncoder
from dnd_fast.base_model import load_base, write_base
from dnd_fast.cache import cached
from dnd_fast.convert import RENAMED, load_decoder
from dnd_fast.demo.tokenizer import build_tokenizer
from dnd_fast.generator_config import GeneratorConfig
from dnd_fast.kernels.device_tables import DeviceTables
from dnd_fast.lora.adapter import lora_config
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.recipe import RECIPES, ConditionSpec, DecoderSpec, from_table, read_toml
from dnd_fast.svf.expert import ExpertConfig
from dnd_fast.text.datasets import Dataset
from dnd_fast.text.glove import GloveEncoder
from dnd_fast.text.prompts import read_prompts
from dnd_fast.train.adapters.collection import Collection, Group, Manifest
from dnd_fast.train.adapters.names import read_names
from dnd_fast.train.evaluation.questions import read_questions
from dnd_fast.train.experts.checkpoints import State as ExpertState
from dnd_fast.train.experts.reinforce import ExpertSpec
from dnd_fast.train.generator.checkpoints import Checkpoints, State
from dnd_fast.train.generator.config import RunConfig
from dnd_fast.train.generator.embedding_cache import embed_texts
from dnd_fast.train.generator.log import Log
from dnd_fast.train.generator.run_file import begin_or_resume

BASE = Qwen2Config(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
)
PROMPTS = ["reverse rice", "count the letters in tea", "echo fig", "copy oak"]
WORDS = ["reverse", "rice", "count", "the", "letters", "in", "tea", "echo", "fig", "copy", "oak"]
LAYOUT = TokenLayout.for_model(BASE, 2)
SPEC = ConditionSpec("", prompts=2, length=5)
ABOUT = {"seed": 0}


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        write: writes a good one into an empty folder.
        read: reads what is in the folder; raises InvalidInput or OSError where it is damaged.
        share: how often it is chosen; those that take long are rare.
        sealed: endings of files whose damage may never give other values.
    """

    write: object
    read: object
    share: float = 1
    sealed: tuple = (".safetensors",)


def embedder():
    return GloveEncoder(WORDS, torch.arange(3.0 * len(WORDS)).view(-1, 3))


def adapter():
    tensors = {key: torch.randn(shape) for key, shape in LAYOUT.tensor_shapes().items()}
    targets = LAYOUT.target_modules
    return Adapter(
        tensors, lora_config(rank=2, lora_alpha=4, target_modules=targets, base_model="base")
    )


def generator():
    made = Generator(
        GeneratorConfig(
            SPEC,
            DecoderSpec([[2, 5, 3], [4, 4, 4], [LAYOUT.num_tokens, *LAYOUT.token_shape]], 3),
            LAYOUT.to_dict(),
        )
    )
    made.layout.fit(torch.randn(5, LAYOUT.num_tokens, *LAYOUT.token_shape))
    return made


def read_generator(folder):
    found = Generator.from_pretrained(folder)
    return found.config, found.state_dict(), found.layout.state_dict()


def read_adapter(folder):
    found = Adapter.load(folder)
    return found.tensors, found.config, found.scaling


def write_published(folder):
    theirs, state = {ours: name for name, ours in RENAMED.items()}, {}
    for key, value in HyperConvDecoder([(3, 5, 4), (3, 4, 6), (5, 4, 6)], 3).state_dict().items():
        _, index, name = key.split(".", 2)
        state[f"decoder.module_list.{index}.{theirs[name]}"] = value
    torch.save(state, folder / "decoder.pth")


def write_lines(folder, name, records):
    text = "".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in records)
    (folder / name).write_text(text)


def examples(**more):
    return [{"prompt": p, "response": p[::-1], **more} for p in PROMPTS]


def collection(folder):
    return Collection(folder, Manifest("b", "b", 2, 4, LAYOUT.target_modules, {}, {}))


def write_collection(folder):
    write_lines(folder, "data.jsonl", examples())
    made, group = collection(folder), Group([Dataset.read(folder / "data.jsonl")])
    made.start(group)
    made.save_adapters(group, 7, {key: x[None] for key, x in adapter().tensors.items()})
    made.finish(group)


def read_collection(folder):
    found = Collection.open(folder)
    return found.manifest, [found.load(path) for path in found.checkpoints(found.names[0])]


def write_begun(folder):
    write_lines(folder, "data.jsonl", examples())
    made, group = collection(folder), Group([Dataset.read(folder / "data.jsonl")])
    made.manifest.write(folder)
    made.save_state(group, 3, {"a": torch.randn(1, 4)})


def read_begun(folder):
    found = Collection.begin(folder, collection(folder).manifest)
    return [
        (group.names, group.step, group.state)
        for group in found.unfinished([Dataset.read(folder / "data.jsonl")], 2)
    ]


def write_checkpoint(folder):
    weights, moments = {"w": torch.randn(3, 4)}, {"w.exp_avg": torch.randn(3, 4), "w.step": 3}
    Checkpoints(folder).save(State(3, 0, weights, moments, 0.5))


def read_checkpoint(folder):
    found = Checkpoints(folder).latest()
    if found is None:
        raise InvalidInput("a warning; an older one would be used")
    return dataclasses.asdict(found), Checkpoints(folder).best(0)


def write_expert_state(folder):
    state = ExpertState({"a": torch.randn(4)})
    state.vectors["a"].sum().backward()
    state.optimizer.step()
    state.save(folder, ABOUT)


def read_expert_state(folder):
    state = ExpertState({"a": torch.zeros(4)})
    if not state.restore(folder, ABOUT):
        raise InvalidInput("there is none")
    return state.vectors, state.best, state.step, state.score, state.history


def begin(folder):
    recipe = Recipe.load(RECIPES / "demo.toml")
    begin_or_resume(folder, RunConfig(recipe), collection(folder), ["data"])


def write_run(folder):
    collection(folder).manifest.write(folder)
    begin(folder)


def write_log(folder):
    records = [{"step": step, "loss": 1 / step} for step in range(1, 9)]
    write_lines(folder, "log.jsonl", records)


def read_log(folder):
    Log(folder / "log.jsonl").on_train_begin(5)
    return (folder / "log.jsonl").read_text()


def write_encoder(folder):
    words = {"[PAD]": 0, "[UNK]": 1} | {word: i + 2 for i, word in enumerate(WORDS)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="[UNK]")),
        pad_token="[PAD]",
        unk_token="[UNK]",
    )
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertModel(BertConfig(vocab_size=len(words), intermediate_size=16, **sizes))
    for part in (model, tokenizer):
        part.save_pretrained(folder)


def embed_again(folder):
    kept = folder / "cache"
    shutil.rmtree(kept / "none", ignore_errors=True)
    return embedder().encode(PROMPTS, 5, cache=kept)


def embedded(folder):
    found = embed_texts(embedder(), PROMPTS, SPEC, folder, fingerprint="x")
    return [found[index].clone() for index in range(len(found))]


def tables():
    return DeviceTables(Path("nowhere/fuzz-tables"), "seconds")


def at(folder):
    os.environ["DND_FAST_CACHE"] = str(folder)


def read_table(folder):
    at(folder)
    try:
        return tables().load("cpu")
    except ValueError as error:  # in kernels/, where it is the kind of error for bad input
        raise InvalidInput(str(error)) from error


def write_table(folder):
    at(folder)
    tables().save("cpu", {"a": {"direct": 1.0}})


def saved(make, name=""):
    return lambda folder: make().save(folder / name) if name else make().save(folder)


FORMATS = {
    "adapter": Format(
        lambda folder: adapter().save(folder / "a"), lambda f: read_adapter(f / "a"), 4
    ),
    "generator": Format(
        lambda folder: generator().save_pretrained(folder / "g"),
        lambda folder: read_generator(folder / "g"),
        4,
    ),
    "expert": Format(
        lambda folder: Expert({"a": torch.randn(4)}, ExpertConfig("base", "f")).save(folder / "e"),
        lambda folder: dataclasses.astuple(Expert.load(folder / "e")),
        2,
    ),
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
    "prompts": Format(
        lambda folder: write_lines(folder, "a.jsonl", examples()),
        lambda folder: read_prompts(folder / "a.jsonl"),
    ),
    "data set": Format(
        lambda folder: write_lines(folder, "a.jsonl", examples(system="be brief")),
        lambda folder: Dataset.read(folder / "a.jsonl").examples,
        2,
    ),
    "questions": Format(
        lambda folder: write_lines(folder, "a.jsonl", examples(options=["a", "b"], test="1")),
        lambda folder: read_questions(folder / "a.jsonl"),
    ),
    "names": Format(
        lambda folder: write_lines(folder, "a.txt", WORDS), lambda f: read_names(f"@{f / 'a.txt'}")
    ),
    "word vectors": Format(
        lambda folder: write_lines(folder, "a.txt", [f"{word} 1 2.5 -3e-2" for word in WORDS]),
        lambda folder: GloveEncoder.read(folder / "a.txt").model.state_dict(),
        2,
    ),
    "published": Format(
        write_published,
        lambda f: load_decoder(f / "decoder.pth").state_dict(),
        4,
        (".safetensors",),
    ),
    "collection": Format(write_collection, read_collection, 3),
    "begun collection": Format(write_begun, read_begun, 2),
    "checkpoint": Format(write_checkpoint, read_checkpoint, 3),
    "expert's state": Format(write_expert_state, read_expert_state, 2),
    "run": Format(write_run, begin, 2),
    "log": Format(write_log, read_log),
    "embeddings": Format(embed_again, embed_again, 2),
    "embedded texts": Format(embedded, embedded, 2, (".f16",)),
    "singular values": Format(
        lambda folder: cached(
            folder, "k", {"s": (3,)}, lambda: {"s": torch.arange(3.0)}, what="svd"
        ),
        lambda folder: cached(
            folder, "k", {"s": (3,)}, lambda: {"s": torch.arange(3.0)}, what="svd"
        ),
    ),
    "table of a device": Format(write_table, read_table),
    "encoder": Format(
        write_encoder, lambda f: TextEncoder.from_pretrained(f).encode(PROMPTS, 5), 0.5, ()
    ),
    "base": Format(
        lambda folder: write_base(Qwen2ForCausalLM(BASE), build_tokenizer(), folder / "b"),
        lambda folder: load_base(str(folder / "b"))[0].state_dict(),
        0.5,
        (),
    ),
}
logging.disable(logging.CRITICAL)
