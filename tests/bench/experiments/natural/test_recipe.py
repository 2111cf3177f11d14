"""The suite's recipe: its decoder makes the tokens of the base's adapters."""

import tomllib

import torch
from transformers import AutoConfig

from dnd_fast import HyperConvDecoder, Recipe, TokenLayout
from dnd_fast.recipe import RECIPES, from_table

PATH = RECIPES / "smollm2.toml"


def test_the_decoder_makes_the_adapters_of_layers_15_to_29():
    recipe = Recipe.load(PATH)
    layout = TokenLayout.for_model(
        config(recipe), recipe.lora.rank, layers=recipe.lora.layers, lora_alpha=recipe.lora.alpha
    )
    assert recipe.decoder.features[-1] == [layout.num_tokens, *layout.token_shape]


def test_all_else():
    table = tomllib.loads(PATH.read_text())
    assert table["lora"].pop("layers") == [15, 29]
    recipe = from_table(Recipe, table, "smollm2")
    # Half of the layers have half of the tokens.
    layout = TokenLayout.for_model(config(recipe), recipe.lora.rank)
    assert recipe.decoder.features[-1] == [layout.num_tokens // 2, *layout.token_shape]
    condition = recipe.condition
    assert recipe.decoder.features[0] == [condition.prompts, condition.length, 384]
    with torch.device("meta"):
        decoder = HyperConvDecoder(recipe.decoder.features, recipe.decoder.kernel_size)
    assert sum(parameter.numel() for parameter in decoder.parameters()) == 2_752_859
    assert [phase.objective for phase in recipe.phases] == ["mse", "sft"]


def config(recipe):
    return AutoConfig.for_model(**recipe.base.config)
