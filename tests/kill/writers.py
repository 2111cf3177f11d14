"""Everything in the project that writes, small: as one event, or step by step.

``old`` makes what is there before. A step-by-step writer names what must hold whenever it is
killed.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dnd_fast import Adapter, Generator, InvalidInput, Recipe, json_lines
from dnd_fast.base_model import write_base
from dnd_fast.bench import plots, report
from dnd_fast.bench.harness import results
from dnd_fast.cache import cached
from dnd_fast.demo import export as demo
from dnd_fast.demo.tasks import Task
from dnd_fast.files import atomic_file, remove_folder, write_json
from dnd_fast.generator_config import DEMO_MODELS, GeneratorConfig
from dnd_fast.kernels.device_tables import DeviceTables
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.recipe import CollectSpec, ConditionSpec, LoraSpec, Phase
from dnd_fast.svf.expert import DecomposedModel, Expert
from dnd_fast.text.prompt_encoder import PromptEncoder
from dnd_fast.train.adapters.collect import collect_folder
from dnd_fast.train.adapters.collection import Collection
from dnd_fast.train.demo import retrain
from dnd_fast.train.experts import checkpoints as expert_checkpoints
from dnd_fast.train.experts.reinforce import ExpertSpec, train_expert
from dnd_fast.train.generator import checkpoints
from dnd_fast.train.generator.config import RunConfig, TrainerConfig
from dnd_fast.train.generator.embedding_cache import EmbeddedTexts, embed_texts
from dnd_fast.train.generator.log import Log
from dnd_fast.train.generator.run import train_run
from dnd_fast.train.generator.trainer import StepMetrics

BASE, TOKENIZER = DEMO_MODELS / "base", DEMO_MODELS / "tokenizer"
RECIPE = dataclasses.replace(
    Recipe.load("demo"), phases=(Phase("mse", 3, 1e-3, 2), Phase("sft", 2, 1e-3, 2, examples=2))
)
TASKS = [Task("first", "plain", "food"), Task("last", "stars", "food")]


class Writer(NamedTuple):
    """How to write below a folder; what is there before; what a reader makes of it at any time."""

    write: Callable[[Path], None]
    old: Callable[[Path], None] = lambda root: None
    check: Callable[[Path], None] | None = None  # None: all files are the old or the new ones
    same: Callable[[str, bytes | None], object] = lambda name, content: content
    sweeps: bool = True  # also where there is nothing left to write


class HashEncoder(PromptEncoder):
    """Embeddings that are a function of the text, without a model."""

    width = 384

    @property
    def device(self):
        return torch.device("cpu")

    def to(self, device):
        pass

    def fingerprint(self):
        return "of nothing but the texts"

    def encode(self, prompts, length, *, padding="zero", cache=None):
        embedded = torch.zeros(len(prompts), length, self.width)
        for row, prompt in enumerate(prompts):
            random = torch.Generator().manual_seed(sum(prompt.encode()))
            embedded[row, :5] = torch.randn(5, self.width, generator=random)
        return embedded


def value(number):
    return torch.full((2, 3), float(number))


def adapter(number):
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    tensors = {f"{name}A.weight": value(number), f"{name}B.weight": value(number).T.contiguous()}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": number, "target_modules": ["q_proj"]}
    return Adapter(tensors, config)


def check_adapter(root):
    """Weights and configuration are of the same one."""
    if (root / "it").exists():
        found = Adapter.load(root / "it")
        alpha = found.config["lora_alpha"]
        assert all((tensor == alpha).all() for tensor in found.tensors.values())


def generator(number):
    """Made once for both numbers; weights alone would not show a mixture of the two files."""
    layout = TokenLayout.for_model(AutoModelForCausalLM.from_pretrained(BASE).config, 2)
    torch.manual_seed(number)
    made = Generator(
        GeneratorConfig(
            ConditionSpec("none", prompts=4, length=4),
            RECIPE.decoder.__class__(
                [[4, 4, 384], [6, 4, 8], [layout.num_tokens, *layout.token_shape]], 3
            ),
            layout.to_dict() | {"lora_alpha": number},
        )
    )
    made.layout.fit(torch.randn(3, layout.num_tokens, *layout.token_shape))
    return made


def save_base(root, number):
    model = AutoModelForCausalLM.from_pretrained(BASE)
    with torch.no_grad():
        next(model.parameters()).fill_(number)
    model.config.bos_token_id = number
    write_base(model, AutoTokenizer.from_pretrained(TOKENIZER), root / "it")


def save_expert(root, number):
    base = DecomposedModel(AutoModelForCausalLM.from_pretrained(BASE), ["q_proj"])
    base.expert(
        {name: torch.full((size,), float(number)) for name, size in base.sizes.items()}
    ).save(root / "it")


def use_cache(root):
    def compute():
        return {"a": value(1), "b": value(2)}

    found = cached(root, "key", {"a": (2, 3), "b": (2, 3)}, compute, what="tests")
    assert all(torch.equal(found[name], tensor) for name, tensor in compute().items())


def embed(root):
    texts = [f"text {i}" for i in range(5)]
    spec = ConditionSpec("none", prompts=4, length=8)
    found = embed_texts(HashEncoder(), texts, spec, root, fingerprint="f")
    assert len(found) == 5


def check_embedded(root):
    for folder in root.glob("[!.]*"):
        assert len(EmbeddedTexts(folder)) == 5


def save_checkpoints(root):
    """Go on from the newest one, as a run does."""
    kept = checkpoints.Checkpoints(root / "checkpoints")
    latest = kept.latest()
    for step in range(latest.step + 1 if latest else 1, 6):
        score = abs(step - 2.0)
        kept.save(checkpoints.State(step, 0, {"w": value(step)}, {"w|m": value(step)}, score))


def check_checkpoints(root):
    folder = root / "checkpoints"
    kept = checkpoints.Checkpoints(folder)
    for step in kept.steps() if folder.exists() else []:
        content = json.loads((folder / f"step-{step:06d}" / "state.json").read_text())
        assert content["step"] == step
        assert (kept.weights(step)["w"] == step).all()


def save_expert_checkpoints(root):
    (root / "state").mkdir(exist_ok=True)
    state = expert_checkpoints.State({"w": torch.zeros(3)})
    state.restore(root / "state", {"seed": 1})
    while state.step < 4:
        state.vectors["w"].grad = torch.ones(3)
        state.optimizer.param_groups[0]["lr"] = 0.1
        state.optimizer.step()
        state.step += 1
        state.save(root / "state", {"seed": 1})


def check_expert_checkpoints(root):
    """It can be read, and the vectors are those of its step."""
    for folder in root.glob("state/step-*"):
        state = expert_checkpoints.State({"w": torch.zeros(3)})
        copied = root.parent / "copied"
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(folder, copied / folder.name)
        assert state.restore(copied, {"seed": 1})
        assert (state.vectors["w"] + 0.1 * state.step).abs().max() < 1e-4


def data_files(root):
    folder = root.parent / "data"
    folder.mkdir(exist_ok=True)
    files = [folder / f"{task.name}.jsonl" for task in TASKS]
    for task, file in zip(TASKS, files, strict=True):
        if not file.exists():
            demo.write_examples(file, task.examples(12, "train", 0))
    return files


def collect(root, steps=2):
    lora = LoraSpec(rank=RECIPE.lora.rank, alpha=RECIPE.lora.alpha)
    spec = CollectSpec(steps=1, checkpoints=2, batch=2, parallel=1)
    files = data_files(root)
    collect_folder(files, root / "c", str(BASE), lora, spec, tokenizer=str(TOKENIZER))


def check_collection(root):
    """It is unfinished, and says so, or whole."""
    if not (root / "c" / "collection.json").exists():
        return
    manifest = json.loads((root / "c" / "collection.json").read_text())
    if (root / "c" / "state.safetensors").exists() or not manifest["datasets"]:
        with pytest.raises(InvalidInput, match="is not finished"):
            Collection.open(root / "c")
    else:
        Collection.open(root / "c")
    for path in (root / "c").glob("adapters/*/step-*"):
        Adapter.load(path)


def train(root):
    """On the collection beside it, which is made once."""
    made = root.parent / "made"
    if not made.exists():
        made.mkdir()
        collect(made)
    config = RunConfig(
        RECIPE, (TASKS[1].name,), trainer_config=TrainerConfig(save_every=1, evaluate_every=2)
    )
    train_run(config, Collection.open(made / "c"), root / "run", encoder=HashEncoder())


def check_run(root):
    for path in root.glob("run/generator*"):
        Generator.from_pretrained(path, encoder=HashEncoder())
    for path in root.glob("run/run.json"):
        assert json.loads(path.read_text())["seed"] == 0


def reinforce(root):
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
    examples = [example.turn for example in TASKS[0].examples(12, "train", 0)]
    spec = ExpertSpec(
        modules=["q_proj"], steps=3, batch=4, max_new_tokens=3, validate_every=1, validation=0.25
    )
    train_expert(
        model.requires_grad_(False),
        AutoTokenizer.from_pretrained(TOKENIZER),
        examples,
        spec,
        seed=0,
        out=root / "e",
        cache=root / "cache",
    )


def check_reinforce(root):
    if (root / "e" / "training.json").exists():
        Expert.load(root / "e")
        assert json.loads((root / "e" / "training.json").read_text())["history"]


def log(root):
    """Six steps, from the fourth on for the second time."""
    first = Log(root / "log.jsonl")
    first.on_train_begin(0)
    for begin, end in ((0, 5), (3, 6)):
        first.on_train_begin(begin)
        for step in range(begin + 1, end + 1):
            first.on_step_end(StepMetrics(step, "mse", 1.0, 1e-3, 0.5, 0.1, step, 6))


def check_lines(root):
    for path in root.glob("*.jsonl"):
        assert all(json_lines.read(path))


def append_results(root):
    """As many lines as are missing of four."""
    results.RESULTS = root
    results.provenance = lambda: {"time": "now"}
    for number in range(len(results.latest("it", "seed")), 4):
        results.append("it", {"seed": number, "figures": list(range(3000))})


def save_table(root, number):
    os.environ["DND_FAST_CACHE"] = str(root)
    DeviceTables(Path("nowhere/kind"), "seconds").save("cpu", {"a": number, f"b{number}": number})


def write_pages(root):
    page = root / "page.md"
    report.PAGES, report.TABLES = [page], {"one": lambda: "new " * 3000}
    plots.draw_all = list
    report.main()


def retrained(root, number):
    made = retrain.Trained(
        AutoModelForCausalLM.from_pretrained(BASE),
        AutoTokenizer.from_pretrained(TOKENIZER),
        {},
        torch.empty(0),
        torch.empty(0),
        {name: generator(number) for name in ("mse", "mse+sft")},
    )
    retrain.save(made, root / "models")


def check_parts(root):
    """Every folder has all of its files."""
    for name, count in (("base", 3), ("generator", 3), ("generator-mse", 3), ("tokenizer", 3)):
        folder = root / "models" / name
        if folder.exists():
            assert len(list(folder.iterdir())) >= count
    for name in ("generator", "generator-mse"):
        if (root / "models" / name).exists():
            Generator.from_pretrained(root / "models" / name)


def export_demo(root):
    demo.split_tasks = lambda seed: {"train": TASKS[:1], "validation": [], "test": TASKS[1:]}
    demo.export(root / "demo")


def check_demo(root):
    for name, count in (("train", 2), ("test", 2), ("splits", 3)):
        folder = root / "demo" / name
        assert not folder.exists() or len(list(folder.iterdir())) == count


def export_natural(root):
    from dnd_fast.bench.experiments.natural import export as natural

    if (root / "it").exists():
        return
    splits = natural.split_tasks(0)
    natural.split_tasks = lambda seed: {name: tasks[:1] for name, tasks in splits.items()}
    natural.broad_tasks = lambda seed: []
    natural.other_task = lambda task, known, seed: next(each for each in known if each != task)
    natural.export(root / "it", 0)


def write_file(root, number):
    with atomic_file(root / "it.json") as staged:
        write_json(staged, {"number": [number] * 1000})


def without_seconds(name, content):
    """The one entry of a log that is not the same in every run."""
    if not name.endswith("log.jsonl"):
        return content
    lines = [json.loads(line) for line in content.decode().splitlines()]
    return [{key: entry for key, entry in line.items() if key != "seconds"} for line in lines]


def foreign(root):
    adapter(1).save(root / "it")
    (root / "it" / "notes.txt").write_text("mine")
    (root / "it" / "sub").mkdir()
    (root / "it" / "sub" / "file").write_text("mine, too")


def pages(root):
    mark = "<!-- one table -->\n\n{}\n\n<!-- end of one table -->"
    (root / "page.md").write_text(mark.format("old " * 3000))


WRITERS = {
    "adapter": Writer(lambda root: adapter(2).save(root / "it")),
    "adapter over another": Writer(
        lambda root: adapter(2).save(root / "it"), lambda root: adapter(1).save(root / "it")
    ),
    "adapter beside foreign files": Writer(lambda root: adapter(2).save(root / "it"), foreign),
    "generator": Writer(
        lambda root: generator(2).save_pretrained(root / "it"),
        lambda root: generator(1).save_pretrained(root / "it"),
    ),
    "base": Writer(lambda root: save_base(root, 2), lambda root: save_base(root, 1)),
    "expert": Writer(lambda root: save_expert(root, 2), lambda root: save_expert(root, 1)),
    "file": Writer(lambda root: write_file(root, 2), lambda root: write_file(root, 1)),
    "removed folder": Writer(
        lambda root: (root / "it").exists() and remove_folder(root / "it"), foreign, sweeps=False
    ),
    "cache": Writer(use_cache, sweeps=False),
    "embedded texts": Writer(embed, check=check_embedded, sweeps=False),
    "table of a device": Writer(lambda root: save_table(root, 2), lambda root: save_table(root, 1)),
    "pages of the report": Writer(write_pages, pages),
    "natural export": Writer(export_natural, sweeps=False),
    "demo export": Writer(export_demo, check=check_demo),
    "demo models": Writer(
        lambda root: retrained(root, 2), lambda root: retrained(root, 1), check=check_parts
    ),
    "log": Writer(log, check=check_lines, same=without_seconds),
    "results": Writer(append_results, check=check_lines),
    "checkpoints": Writer(save_checkpoints, check=check_checkpoints),
    "checkpoints of an expert": Writer(save_expert_checkpoints, check=check_expert_checkpoints),
    "collection": Writer(collect, check=check_collection),
    "training run": Writer(train, check=check_run, same=without_seconds),
    "trained expert": Writer(reinforce, check=check_reinforce),
}
