"""Recipes: the paper's models, built without memory on the meta device."""

import dataclasses

import pytest
import torch

from dnd_fast import Generator, HyperConvDecoder, InvalidInput, Recipe
from dnd_fast.generator_config import GeneratorConfig
from dnd_fast.recipe import RECIPES, Phase, from_table, recipe_names

from .bad_input import fails

PARAMETERS = {
    "common-sense-0.5b": 1113134904,
    "coding-1.5b": 1715168296,
    "math-1.5b": 1775193368,
    "coding-7b": 1936310072,
    "math-7b": 1936310072,
    "multimodal-3b": 2409499352,
}
MINIMAL = """
name = "x"
description = ""
[base]
id = "some/base"
config = { model_type = "qwen2" }
[lora]
rank = 2
alpha = 4
[condition]
encoder = "some/encoder"
prompts = 3
length = 5
[decoder]
kernel_size = 3
features = [[3, 5, 8], [7, 2, 4]]
"""
PHASE = """
[[phases]]
objective = "mse"
steps = 9
batch = 4
learning_rate = 1e-3
"""


def test_the_papers_recipes_and_the_demos_are_there():
    assert recipe_names() == sorted([*PARAMETERS, "demo", "smollm2"])


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    """Counts of the published code's models: any other shape or kernel size changes them."""
    spec = Recipe.load(name).decoder
    with torch.device("meta"):
        decoder = HyperConvDecoder(spec.features, spec.kernel_size)
    assert sum(parameter.numel() for parameter in decoder.parameters()) == PARAMETERS[name]


BATCHES = {
    "common-sense-0.5b": 128,
    "coding-1.5b": 128,
    "math-1.5b": 128,
    "coding-7b": 48,
    "math-7b": 48,
    "multimodal-3b": 64,
}


@pytest.mark.parametrize("name", BATCHES)
def test_training_is_the_papers(name):
    """Table 7; the objective is the paper's alone."""
    (phase,) = Recipe.load(name).phases
    assert phase == Phase(
        objective="mse",
        steps=5000,
        learning_rate=3e-5,
        batch=BATCHES[name],
        weight_decay=0.1,
        clip=1.0,
        noise=1e-4,
        weighted=True,
    )


@pytest.mark.parametrize("name", recipe_names())
def test_generators_build(name):
    """The layout derived from the base's config is exactly the decoder's last shape."""
    recipe = Recipe.load(name)
    assert recipe.name == name
    with torch.device("meta"):
        generator = Generator(GeneratorConfig.from_recipe(recipe))
    layout = generator.layout
    assert [layout.num_tokens, *layout.token_shape] == recipe.decoder.features[-1]
    assert layout.base_model == recipe.base.id
    assert (layout.rank, layout.lora_alpha) == (recipe.lora.rank, recipe.lora.alpha)
    spec = recipe.condition
    assert generator.decoder.condition_shape == (spec.prompts, spec.length, 384)
    assert (generator.decoder.projection is not None) == (spec.projected_length is not None)
    assert recipe.decoder.features[0][1] == (spec.projected_length or spec.length)


def test_printed_token_sizes_leave_no_room_for_a_border():
    """Writing it into (8, 128) all the same would destroy 26 % of the weights."""
    recipe = Recipe.load("common-sense-0.5b")
    border = dataclasses.replace(recipe, lora=dataclasses.replace(recipe.lora, scale="border"))
    with torch.device("meta"), pytest.raises(InvalidInput, match=r"needs \(4296, 10, 130\)"):
        Generator(GeneratorConfig.from_recipe(border))


def test_a_recipe_from_a_file(tmp_path):
    file = tmp_path / "x.toml"
    file.write_text(MINIMAL)
    recipe = Recipe.load(file)
    assert recipe.condition.projected_length is None
    assert recipe.lora.scale == "static"
    assert from_table(Recipe, dataclasses.asdict(recipe), "again") == recipe


def test_a_recipe_that_adapts_some_layers(tmp_path):
    file = tmp_path / "x.toml"
    config = '{ model_type = "qwen2", num_hidden_layers = 4 }'
    text = MINIMAL.replace('{ model_type = "qwen2" }', config)
    file.write_text(text.replace("alpha = 4", "alpha = 4\nlayers = [0, 2]"))
    recipe = Recipe.load(file)
    assert recipe.lora.layers == (0, 2)
    assert from_table(Recipe, dataclasses.asdict(recipe), "again") == recipe
    modules = GeneratorConfig.from_recipe(recipe).layout["modules"]
    assert {name.split(".")[2] for name in modules} == {"0", "1", "2"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rank = 2", "rank = 0", "lora: rank: found 0, expected a positive integer"),
        ("rank = 2", "rank = true", "lora: rank: found True, expected int"),
        ("rank = 2", "", "lora: entry 'rank' is missing"),
        ("rank = 2", "rank = 2\nrnk = 2", "lora: unknown entry 'rnk'"),
        ("alpha = 4", "alpha = 4\nscale = 'log'", "lora: scale: found 'log', expected one of"),
        ("length = 5", "length = 5\nprojected_length = '5'", "projected_length: found '5'"),
        ("[7, 2, 4]", "[7, 2, 4.0]", r"decoder: features\[1\]\[2\]: found 4.0, expected int"),
        ("[7, 2, 4]", "7", r"features\[1\]: found 7, expected a list"),
        ("[lora]", "[lora", "not valid TOML"),
        ("[lora]", PHASE.replace("mse", "gan") + "[lora]", r"phases\[0\]: objective: found 'gan'"),
        ("[lora]", PHASE.replace("1e-3", "nan") + "[lora]", "learning_rate: found nan"),
        ("[lora]", PHASE.replace("1e-3", "-1.0") + "[lora]", "found -1.0, expected a number of"),
        ("[lora]", PHASE.replace("steps = 9", "") + "[lora]", "entry 'steps' is missing"),
        ("[lora]", PHASE + "dropout = 1.0\n[lora]", r"dropout=1\.0: it must be a share"),
        ("[lora]", PHASE + "prompt_dropout = 1.5\n[lora]", r"phases\[0\]: prompt_dropout=1\.5"),
        ("alpha = 4", "alpha = 4\nlayers = [1]", r"layers=\[1\]: it must be two numbers"),
        ("alpha = 4", "alpha = 4\nlayers = [-1, 2]", r"layers\[0\]: found -1, expected an integer"),
        ("alpha = 4", "alpha = 4\nlayers = 3", "layers: found 3, expected a list"),
        ("[lora]\nrank = 2\nalpha = 4", "", "entry 'lora' is missing"),
        ("[lora]\nrank = 2\nalpha = 4", "[[lora]]\nrank = 2", "lora: expected a table"),
    ],
)
def test_mistakes_are_named(tmp_path, old, new, message):
    """A misspelt or mistyped entry must not silently become a default."""
    assert old in MINIMAL
    file = tmp_path / "x.toml"
    file.write_text(MINIMAL.replace(old, new))
    with pytest.raises(InvalidInput, match=message) as caught:
        Recipe.load(file)
    assert str(file) in str(caught.value)


def test_unknown_recipes_and_bases():
    with pytest.raises(FileNotFoundError, match=r"common-sense-0\.5b"):
        Recipe.load("common-sense")
    recipe = Recipe.load("demo")
    for config in ({"model_type": "no-such-model"}, {"hidden_size": 8}):
        odd = dataclasses.replace(recipe, base=dataclasses.replace(recipe.base, config=config))
        with pytest.raises(InvalidInput, match="recipe demo: the base's config"):
            GeneratorConfig.from_recipe(odd)


@pytest.mark.parametrize("layers", [1001, 2**31, 10**400])
def test_a_base_without_end(layers):
    """Some configs list their layers: that took all memory."""
    recipe = Recipe.load("demo")
    config = recipe.base.config | {"num_hidden_layers": layers}
    odd = dataclasses.replace(recipe, base=dataclasses.replace(recipe.base, config=config))
    with pytest.raises(InvalidInput, match=r"recipe demo: num_hidden_layers=.* 1000 at most"):
        GeneratorConfig.from_recipe(odd)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "entry 'name' is missing"),
        (lambda text: text + "[lora", "not valid TOML"),
        (lambda text: text + "# é", "not valid TOML"),  # in latin-1
        (lambda text: "x = " + "[" * 10_000, "not valid TOML"),
        (lambda text: "x = " + "[" * 100_000, "100004 bytes; at most 32768 are read"),
        (lambda text: "a." * 60 + "a = 1", "nested more than 50 levels deep"),
        (lambda text: "a." * 10_000 + "a = 1", "nested more than 50 levels deep"),
        (lambda text: "title = 1\n" + text, "unknown entry 'title'; known are name, description"),
        (lambda text: text.replace("[lora]", "[lora]\nrnk = 4"), "lora: unknown entry 'rnk'"),
        (
            lambda text: text.replace("kernel_size = 3", ""),
            "decoder: entry 'kernel_size' is missing",
        ),
        (lambda text: text.replace("kernel_size = 3", "kernel_size = '3'"), "found '3', expected"),
        (
            lambda text: text.replace("kernel_size = 3", "kernel_size = -3"),
            "found -3, expected a p",
        ),
        (lambda text: text.replace("[lora]", "[lora]\nscale = []"), "scale: found .*expected one"),
    ],
)
def test_recipes(tmp_path, change, message):
    file, text = tmp_path / "a.toml", (RECIPES / "demo.toml").read_text()
    assert change(text) != text
    file.write_bytes(change(text).encode("latin-1"))
    assert str(file) in fails(message, Recipe.load, file)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('model_type = "qwen2"', 'model_type = "qwen0"', "recipe demo: .*identifier: qwen0"),
        ('model_type = "qwen2"', "", "recipe demo: .*'model_type'"),
        ('model_type = "qwen2"', 'model_type = "bert"', "recipe demo: .*has no list 'layers'"),
        ("hidden_size = 128", 'hidden_size = "128"', "recipe demo: .*hidden_size"),
        ("num_attention_heads = 4", "num_attention_heads = 0", "recipe demo: .*no model"),
        ("hidden_size = 128", "hidden_size = -128", "recipe demo: .*no model: .*-128"),
        ("kernel_size = 3", "kernel_size = 4", "kernel_size=4: it must be an odd"),
        ("rank = 4", "rank = 5", r"the layout needs \(96, 5, 64\)"),
    ],
)
def test_recipes_that_describe_nothing(tmp_path, old, new, message):
    file, text = tmp_path / "a.toml", (RECIPES / "demo.toml").read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    recipe = Recipe.load(file)
    with torch.device("meta"):
        fails(message, lambda: Generator(GeneratorConfig.from_recipe(recipe)))


def test_missing_recipes(tmp_path):
    (tmp_path / "folder.toml").mkdir()
    for name in ("maths", tmp_path / "missing.toml", tmp_path / "folder.toml"):
        message = f"no recipe '{name}'; give a .toml file or one of: .*math-7b"
        fails(message, Recipe.load, name, error=FileNotFoundError)
