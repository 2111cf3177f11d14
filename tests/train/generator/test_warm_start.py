"""Runs that train on from a generator: what is taken over, and what is refused."""

import dataclasses

import pytest
import torch

from dnd_fast import Generator, InvalidInput
from dnd_fast.train.generator.config import RunConfig, TrainerConfig
from dnd_fast.train.generator.run import train_run

from .test_run import MSE, RECIPE, SFT, Stopped, weights

WHITENED = dataclasses.replace(
    RECIPE, condition=dataclasses.replace(RECIPE.condition, whitening=True)
)


@pytest.fixture
def trained(collection, encoder, tmp_path):
    """A generator with whitening."""
    recipe = dataclasses.replace(WHITENED, phases=(MSE,))
    config = RunConfig(recipe, (collection.names[-1],))
    train_run(config, collection, tmp_path / "first", encoder=encoder)
    return tmp_path / "first" / "generator"


def started(trained, recipe=WHITENED, phase=SFT):
    """A run on the data set that the first one has not seen."""
    recipe = dataclasses.replace(recipe, phases=(phase,))
    return RunConfig(recipe, start=str(trained), trainer_config=TrainerConfig(save_every=1))


def test_weights_and_statistics_are_taken_over(
    trained,
    collection,
    encoder,
    tmp_path,
):
    """Also where the data sets, and so their statistics, are others."""
    still = dataclasses.replace(SFT, learning_rate=1e-12)
    config = started(trained, phase=still)
    train_run(config, collection, tmp_path / "second", encoder=encoder)
    before, after = weights(trained), weights(tmp_path / "second" / "generator")
    assert before.keys() == after.keys()
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=1e-6, atol=1e-9)
    for key in ("layout.mean", "layout.std", "whitening.mean", "whitening.matrix"):
        assert torch.equal(after[key], before[key])
    moved = started(trained)
    train_run(moved, collection, tmp_path / "third", encoder=encoder)
    after = weights(tmp_path / "third" / "generator")
    assert not torch.equal(after["decoder.blocks.0.bias"], before["decoder.blocks.0.bias"])
    assert Generator.from_pretrained(tmp_path / "third" / "generator", encoder=encoder)


def test_it_goes_on_from_the_same_generator_only(
    trained,
    collection,
    encoder,
    tmp_path,
):
    def on_step_end(metrics):
        raise Stopped

    config, out = started(trained), tmp_path / "second"
    with pytest.raises(Stopped):
        train_run(config, collection, out, encoder=encoder, on_step_end=on_step_end)
    for other in (None, str(trained.with_name("generator-other"))):
        if other:
            changed = Generator.from_pretrained(trained, encoder=encoder)
            with torch.no_grad():
                changed.decoder.blocks[0].bias += 1
            changed.save_pretrained(other)
        again = dataclasses.replace(config, start=other)
        with pytest.raises(InvalidInput, match="start_sha256"):
            train_run(again, collection, out, encoder=encoder)
    moved = trained.rename(trained.with_name("moved"))  # content counts, not the place
    assert train_run(
        dataclasses.replace(config, start=str(moved)), collection, out, encoder=encoder
    )


def test_what_cannot_be_taken_over_is_refused(
    trained,
    collection,
    encoder,
    tmp_path,
):
    out = tmp_path / "second"
    with pytest.raises(InvalidInput, match=r"condition\.whitening is True, the recipe's False"):
        train_run(started(trained, RECIPE), collection, out, encoder=encoder)
    first, middle, *rest = RECIPE.decoder.features
    features = [first, [middle[0] + 2, *middle[1:]], *rest]
    wider = dataclasses.replace(
        WHITENED, decoder=dataclasses.replace(WHITENED.decoder, features=features)
    )
    with pytest.raises(InvalidInput, match=r"decoder\.features is"):
        train_run(started(trained, wider), collection, out / "b", encoder=encoder)
    with pytest.raises(FileNotFoundError):
        train_run(started(tmp_path), collection, out / "c", encoder=encoder)
