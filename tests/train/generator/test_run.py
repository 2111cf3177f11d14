"""Runs on a collection: what they leave behind, go on with, and refuse before hours are spent."""

import copy
import dataclasses
import json
import re
import shutil

import pytest
import torch
import typer
from accelerate import tracking
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from dnd_fast import Generator, InvalidInput, Recipe
from dnd_fast.base_model import load_base
from dnd_fast.files import locked
from dnd_fast.recipe import RECIPES, Phase
from dnd_fast.text.whitening import Whitening
from dnd_fast.train.adapters.collect import collect_folder
from dnd_fast.train.adapters.collection import Collection
from dnd_fast.train.adapters.names import find_names
from dnd_fast.train.adapters.statistics import fit_layout
from dnd_fast.train.commands.train import train
from dnd_fast.train.generator import resolve
from dnd_fast.train.generator.config import RunConfig, TrainerConfig
from dnd_fast.train.generator.distributed import DistributedContext
from dnd_fast.train.generator.log import Log
from dnd_fast.train.generator.run import generator_config, train_run
from dnd_fast.train.generator.trainer import StepMetrics

MSE = Phase("mse", 3, 1e-3, 2)
SFT = Phase("sft", 2, 1e-3, 2, examples=2)
RECIPE = dataclasses.replace(Recipe.load("demo"), phases=(MSE, SFT))


class Stopped(Exception):
    pass


@pytest.fixture
def held_out(collection):
    return collection.names[-1]


@pytest.fixture
def run_config(held_out):
    return RunConfig(
        RECIPE, (held_out,), trainer_config=TrainerConfig(save_every=1, evaluate_every=2)
    )


def weights(folder):
    return load_file(folder / "model.safetensors")


def equal(first, second):
    first, second = weights(first), weights(second)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_a_run(run_config, collection, encoder, tmp_path, held_out):
    out = tmp_path / "run"
    steps, stages = [], []
    assert train_run(
        run_config,
        collection,
        out,
        encoder=encoder,
        on_step_end=steps.append,
        progress=lambda stage, done, total: stages.append((stage, done, total)),
    )
    assert [(r.step, r.objective, r.done, r.steps) for r in steps] == [
        (1, "mse", 1, 3),
        (2, "mse", 2, 3),
        (3, "mse", 3, 3),
        (4, "sft", 1, 2),
        (5, "sft", 2, 2),
    ]
    assert stages[-1] == ("embed texts", 4, 4)  # the held-out ones, too: their loss is watched
    generator = Generator.from_pretrained(out / "generator", encoder=encoder)
    assert generator.layout.base_model == collection.manifest.base
    layout = Generator.from_pretrained(out / "generator-mse", encoder=encoder).layout
    importance = fit_layout(layout, collection, collection.names[:-1])
    assert torch.equal(generator.layout.mean, layout.mean)
    assert torch.equal(generator.decoder.criterion_weight.flatten(), importance)
    assert not equal(out / "generator", out / "generator-mse")
    assert generator.generate(["what letter does camel start with"] * 8).modules

    described = json.loads((out / "run.json").read_text())
    assert described["trained_on"] == collection.names[:-1]
    assert described["held_out"] == [held_out]
    assert (described["form"], described["strategy"], described["seed"]) == ("prompt", "N<-x", 0)
    assert described["recipe"]["phases"][1]["objective"] == "sft"
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in lines if "held_out_loss" in line] == [2, 3, 5]
    assert all(line["held_out_loss"] > 0 for line in lines if "held_out_loss" in line)

    assert not train_run(run_config, collection, out, encoder=encoder)  # finished
    del described["recipe"]["lora"]["layers"]  # as written before recipes had it
    (out / "run.json").write_text(json.dumps(described))
    assert not train_run(run_config, collection, out, encoder=encoder)
    changed = dataclasses.replace(run_config, seed=1)
    with pytest.raises(InvalidInput, match="holds a run with seed = 0, this one has seed = 1"):
        train_run(changed, collection, out, encoder=encoder)
    phase = dataclasses.replace(MSE, learning_rate=2e-3)
    other = dataclasses.replace(run_config, recipe=dataclasses.replace(RECIPE, phases=(phase, SFT)))
    with pytest.raises(InvalidInput, match=r"with recipe\.phases.*0\.001.*this one has.*0\.002"):
        train_run(other, collection, out, encoder=encoder)


def test_a_run_on_some_layers(collection, encoder, tmp_path):
    """Adapters of the upper layers are collected, learned and generated."""
    lora = dataclasses.replace(RECIPE.lora, layers=(1, 2))
    features = [*RECIPE.decoder.features[:-1], [64, 4, 64]]
    recipe = dataclasses.replace(
        RECIPE, lora=lora, decoder=dataclasses.replace(RECIPE.decoder, features=features)
    )
    files = [collection.dataset(name).path for name in collection.names]
    spec = dataclasses.replace(RECIPE.collection, steps=2, checkpoints=2)
    manifest = collection.manifest
    made = collect_folder(
        files, tmp_path / "c", manifest.base, lora, spec, tokenizer=manifest.tokenizer
    )
    config = RunConfig(recipe, trainer_config=TrainerConfig(base_dtype="bfloat16"))
    assert train_run(config, made, tmp_path / "run", encoder=encoder)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["base_dtype"] == "bfloat16"
    generator = Generator.from_pretrained(tmp_path / "run" / "generator", encoder=encoder)
    adapter = generator.generate(["what letter does camel start with"] * 8)
    assert {name.split(".")[2] for name in adapter.modules} == {"1", "2"}
    base, _ = load_base(manifest.base, manifest.tokenizer)
    assert adapter.apply(base).peft_config["default"].target_modules.startswith("model")


def test_adapters_of_other_layers_are_refused(run_config, collection, encoder, tmp_path):
    lora = dataclasses.replace(RECIPE.lora, layers=(1, 2))
    changed = dataclasses.replace(run_config, recipe=dataclasses.replace(RECIPE, lora=lora))
    with pytest.raises(InvalidInput, match=r"are of \['down_proj'.*see the recipe's lora\.layers"):
        train_run(changed, collection, tmp_path / "run", encoder=encoder)


def test_the_bases_dtype_on_a_cpu(collection, monkeypatch):
    """What is faster, if the recipe chooses layers and nobody says otherwise."""
    monkeypatch.setattr(resolve, "default_dtype", lambda lora, device: torch.bfloat16)
    lora = dataclasses.replace(RECIPE.lora, layers=(1, 2))
    some = dataclasses.replace(RECIPE, lora=lora)
    for recipe, given, expected in (
        (RECIPE, None, None),
        (some, None, "bfloat16"),
        (some, "float32", "float32"),
    ):
        config = TrainerConfig(base_dtype=given)
        run_config = resolve.resolve_run(recipe, collection, config, DistributedContext())
        assert run_config.trainer_config.base_dtype == expected


def test_a_run_goes_on_where_it_was_stopped(run_config, collection, encoder, tmp_path):
    """Also the log, which has every step once; options that only cost time may change."""
    train_run(run_config, collection, tmp_path / "whole", encoder=encoder)
    for stop in (1, 3, 4):

        def on_step_end(metrics, stop=stop):
            if metrics.step == stop + 1:
                raise Stopped

        with pytest.raises(Stopped):
            train_run(
                run_config,
                collection,
                tmp_path / "broken",
                encoder=encoder,
                on_step_end=on_step_end,
            )
    trainer_config = TrainerConfig(save_every=2, evaluate_every=2)
    changed = dataclasses.replace(run_config, trainer_config=trainer_config)
    assert train_run(changed, collection, tmp_path / "broken", encoder=encoder)
    for name in ("generator", "generator-mse"):
        assert equal(tmp_path / "whole" / name, tmp_path / "broken" / name)
    logs = [
        [
            {key: value for key, value in json.loads(line).items() if key != "seconds"}
            for line in (tmp_path / name / "log.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "broken")
    ]
    assert logs[0] == logs[1]


def test_a_run_with_whitening(run_config, collection, encoder, tmp_path, held_out):
    """Fitted to the training texts alone, once: a run that goes on has what it began with."""
    condition = dataclasses.replace(RECIPE.condition, whitening=True)
    recipe = dataclasses.replace(RECIPE, condition=condition)
    config = dataclasses.replace(run_config, recipe=recipe)
    train_run(config, collection, tmp_path / "whole", encoder=encoder)

    def on_step_end(metrics):
        raise Stopped

    with pytest.raises(Stopped):
        train_run(config, collection, tmp_path / "broken", encoder=encoder, on_step_end=on_step_end)
    train_run(config, collection, tmp_path / "broken", encoder=encoder)
    assert equal(tmp_path / "whole" / "generator", tmp_path / "broken" / "generator")
    generator = Generator.from_pretrained(tmp_path / "whole" / "generator", encoder=encoder)
    trained_on = [name for name in collection.names if name != held_out]
    hidden = [
        text[text.any(-1)]
        for name in trained_on
        for text in encoder.encode(
            [example.prompt for example in collection.dataset(name).examples], condition.length
        )
    ]
    expected = Whitening(encoder.width)
    expected.fit(hidden)
    torch.testing.assert_close(
        generator.whitening(hidden[0]), expected(hidden[0]), rtol=1e-2, atol=1e-2
    )
    plain = tmp_path / "plain"
    train_run(run_config, collection, plain, encoder=encoder)
    logs = [
        (tmp_path / name / "log.jsonl").read_text().splitlines()[0] for name in ("whole", "plain")
    ]
    losses = [json.loads(line)["loss"] for line in logs]
    assert losses[0] != losses[1]  # the decoder is trained on what it will be given


@pytest.mark.parametrize(("losses", "best"), [([3.0, 1.0, 2.0], 2), ([3.0, 2.0, 1.0], None)])
def test_the_best_generator_is_kept_too(
    run_config, collection, encoder, tmp_path, monkeypatch, losses, best
):
    planted = iter(losses)
    monkeypatch.setattr("dnd_fast.train.generator.trainer.Loss.mean", lambda *args: next(planted))
    recipe = dataclasses.replace(RECIPE, phases=(MSE,))
    changed = dataclasses.replace(
        run_config, recipe=recipe, trainer_config=TrainerConfig(evaluate_every=1)
    )
    assert train_run(changed, collection, tmp_path / "run", encoder=encoder)
    assert (tmp_path / "run" / "generator-best").is_dir() == (best is not None)
    for name, step in (("generator", 3), ("generator-best", best)):
        if step is not None:
            found = Generator.from_pretrained(tmp_path / "run" / name).decoder.state_dict()
            kept = load_file(tmp_path / f"run/checkpoints/step-{step:06d}/weights.safetensors")
            assert all(torch.equal(found[key], value) for key, value in kept.items())


@pytest.mark.parametrize(("form", "per_data_set"), [("mix", 2), ("prompt+answer", 1)])
def test_other_forms_of_condition(run_config, collection, encoder, tmp_path, form, per_data_set):
    recipe = dataclasses.replace(RECIPE, phases=(MSE,))
    changed = dataclasses.replace(
        run_config,
        recipe=recipe,
        form=form,
        strategy="x<-x",
        candidates=8,
        trainer_config=TrainerConfig(),
    )
    assert train_run(changed, collection, tmp_path / "run", encoder=encoder)
    assert len(list((tmp_path / "run" / "cache").iterdir())) == 3 * per_data_set


def test_the_base_has_the_name_that_peft_knows(collection):
    """Adapters for the packaged SmolLM2 name the hub's, others what they were collected on."""
    base = collection.manifest.base
    assert generator_config(RECIPE, collection).layout["base_model"] == base
    packaged = copy.copy(collection)
    packaged.manifest = dataclasses.replace(collection.manifest, base="smollm2")
    name = generator_config(RECIPE, packaged).layout["base_model"]
    assert name == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_what_cannot_work_is_refused_first(run_config, collection, encoder, tmp_path):
    def refused(message, run_config=run_config, collection=collection):
        with pytest.raises(InvalidInput, match=message):
            train_run(run_config, collection, tmp_path / "run", encoder=encoder)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)

    def with_recipe(**changes):
        return dataclasses.replace(run_config, recipe=dataclasses.replace(RECIPE, **changes))

    refused(r"says nothing about training: add a \[\[phases\]\]", with_recipe(phases=()))
    lora = dataclasses.replace(RECIPE.lora, rank=8)
    refused(r"rank and alpha \(8, 8\), those of .* have \(4, 8\)", with_recipe(lora=lora))
    everything = dataclasses.replace(run_config, held_out=tuple(collection.names))
    refused("are held out: none is left", everything)
    all_of_24 = dataclasses.replace(run_config, strategy="x<-x")
    refused("Give --candidates 8", all_of_24)
    trainer_config = TrainerConfig(micro_batch=3)
    refused(
        "micro_batch=3 does not divide",
        dataclasses.replace(run_config, trainer_config=trainer_config),
    )


def test_another_model_in_the_bases_place(run_config, collection, encoder, tmp_path):
    config = AutoConfig.for_model(**RECIPE.base.config | {"intermediate_size": 96})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    moved = copy.copy(collection)
    moved.manifest = dataclasses.replace(collection.manifest, base=str(tmp_path / "base"))
    message = f"the base '{tmp_path}/base' is not what the recipe 'demo' is for"
    with pytest.raises(InvalidInput, match=message):
        train_run(run_config, moved, tmp_path / "run", encoder=encoder)
    assert not (tmp_path / "run").exists()


def test_a_damaged_adapter_is_named(run_config, shared_collection, encoder, tmp_path):
    folder = tmp_path / "collection"
    shutil.copytree(shared_collection, folder)
    collection = Collection.open(folder)
    checkpoint = collection.checkpoints(collection.names[1])[1]
    file = checkpoint / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, file)
    with pytest.raises(InvalidInput, match=f"{checkpoint.parent.name}/{checkpoint.name}.*NaN"):
        train_run(run_config, collection, tmp_path / "run", encoder=encoder)


def test_two_processes_do_not_share_a_run(run_config, collection, encoder, tmp_path):
    with (
        locked(tmp_path / "run", "dnd-fast train"),
        pytest.raises(InvalidInput, match="another dnd-fast train is at work"),
    ):
        train_run(run_config, collection, tmp_path / "run", encoder=encoder)


def test_a_tracker_that_is_not_there_is_named_first(run_config, collection, encoder, tmp_path):
    with pytest.raises(InvalidInput, match=r"tracker 'no-such': not installed.*tensorboard"):
        train_run(run_config, collection, tmp_path, encoder=encoder, trackers=["no-such"])
    assert not (tmp_path / "cache").exists()


def test_trackers_get_every_number(tmp_path, monkeypatch):
    """Steps and evaluations alike, beside the log's own lines."""
    seen = []

    class Tracker:
        requires_logging_directory = True

        def __init__(self, name, folder):
            seen.append((name, folder))

        def start(self):
            seen.append("start")

        def log(self, values, step):
            seen.append((step, values))

        def finish(self):
            seen.append("finish")

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Tracker)
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["tensorboard"])
    log = Log(tmp_path / "log.jsonl", ["tensorboard"])
    log.on_step_end(StepMetrics(3, "mse", 3, 9, 0.5, 1e-3, 2.0, 0.1))
    log.on_evaluate(3, 0.7)
    log.finish()
    assert seen == [
        (tmp_path.name, tmp_path),
        "start",
        (3, {"loss": 0.5, "learning_rate": 1e-3, "gradient_norm": 2.0, "seconds": 0.1}),
        (3, {"held_out_loss": 0.7}),
        "finish",
    ]


def test_names(collection, tmp_path):
    first = collection.names[0]
    skill = first.split("-")[0]
    fitting = [name for name in collection.names if name.startswith(f"{skill}-")]
    assert 0 < len(fitting) < len(collection.names)
    assert find_names(collection, [f"{skill}-*", first]) == fitting
    file = tmp_path / "names.txt"
    file.write_text(f"{first}\nnot-collected\n")
    assert find_names(collection, [f"@{file}"]) == [first, "not-collected"]
    with pytest.raises(InvalidInput, match=f"no data set 'nothing'; it has {first}"):
        find_names(collection, ["nothing"])


def invoke(*arguments):
    app = typer.Typer()
    app.command()(train)
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_the_command(shared_collection, tmp_path, held_out):
    recipe = tmp_path / "mini.toml"
    text = (RECIPES / "demo.toml").read_text()
    text = text.replace("steps = 900", "steps = 2").replace("batch = 16", "batch = 2")
    recipe.write_text(text)
    common = ["--recipe", recipe, "--collection", shared_collection, "--out", tmp_path / "run"]
    options = ["--hold-out", held_out[:-3] + "*", "--phases", "mse", "--seed", 3]
    found = invoke(*common, *options, "--data", shared_collection / "datasets")
    assert "no phase that draws" in str(found.exception)
    found = invoke(*common, *options)
    assert found.exit_code == 0, found.output
    assert "Wrote a generator to" in found.output
    assert "loss" in found.output
    assert (tmp_path / "run" / "generator" / "model.safetensors").is_file()
    found = invoke(*common, *options)
    assert "Already finished" in found.output
    found = invoke(*common, *options[:-1], 4)
    assert isinstance(found.exception, InvalidInput)
    assert "seed = 3" in str(found.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "demo"], "give --collection and --out"),
        (["--recipe", "coding-7b", "--phases", "mse,sft"], "has no phase 'sft'; it has mse"),
        (
            "--recipe demo --phases mse --estimate --gpu-memory 0.001 --gpus 16 --micro-batch 1 "
            "--checkpointing --shard".split(),
            "needs .* GB on each of 16 .* no option",
        ),
    ],
)
def test_the_command_refuses(arguments, message):
    found = invoke(*arguments)
    assert isinstance(found.exception, InvalidInput)
    assert re.search(message, str(found.exception))


def test_the_command_estimates():
    found = invoke("--recipe", "demo", "--estimate", "--gpu", "cpu", "--phases", "mse")
    assert found.exit_code == 0, found.output
    for word in ("weights", "workspace", "mse", "rates."):
        assert word in found.output
