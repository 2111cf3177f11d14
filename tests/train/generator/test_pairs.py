"""Pairs of conditions and adapters: what may be drawn, how often, and that nothing else matters."""

import dataclasses
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnd_fast import InvalidInput
from dnd_fast.recipe import Phase
from dnd_fast.text.datasets import Example
from dnd_fast.train.generator.config import TrainerConfig
from dnd_fast.train.generator.distributed import DistributedContext
from dnd_fast.train.generator.pairs import Pair, Pairing, condition_texts

sizes = st.lists(
    st.tuples(st.integers(1, 40), st.integers(1, 9), st.integers(1, 30)), min_size=1, max_size=6
)
forms = st.sampled_from(["prompt", "prompt+answer", "answer", "mix"])
places = st.integers(0, 10**6)


def make(sizes, prompts=8, seed=0, **options):
    candidates, checkpoints, examples = zip(*sizes, strict=True)
    return Pairing(seed, prompts, candidates, checkpoints, examples, **options)


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(1, 20), forms, places, places, st.integers(0, 4))
def test_a_pair_is_within_its_data_set(sizes, prompts, form, step, position, examples):
    pair = make(sizes, prompts, form=form).draw(step, position, examples)
    candidates, checkpoints, count = sizes[pair.dataset]
    assert 0 <= pair.checkpoint < checkpoints
    assert len(pair.texts) == len(pair.answers) == prompts
    assert len(pair.examples) == examples
    assert all(0 <= index < candidates for index in pair.texts)
    assert all(0 <= index < count for index in pair.examples)
    # Nothing twice before everything once.
    assert len(set(pair.texts)) == min(prompts, candidates)
    assert form == "mix" or not any(pair.answers)


@settings(max_examples=40, deadline=None)
@given(sizes, st.integers(), places, places)
def test_a_pair_depends_on_seed_step_and_position_alone(sizes, seed, step, position):
    """Not on what was drawn before: a resumed run, or one GPU of many, draws the same."""
    pairing = make(sizes, seed=seed)
    expected = pairing.draw(step, position, 3)
    for other in range(5):
        pairing.draw(other, other)
    again = make(sizes, seed=seed)
    assert again.draw(step, position, 3) == expected
    # More examples, as in another phase, change nothing else before them.
    fewer = again.draw(step, position)
    assert fewer.texts == expected.texts
    assert fewer.checkpoint == expected.checkpoint


def test_data_sets_without_adapters_are_drawn_for_examples_alone():
    pairing = make([(9, 2, 5), (9, 0, 5), (9, 3, 5), (9, 0, 5)])
    places = [(step, position) for step in range(30) for position in range(20)]
    targets = [pairing.draw(*place) for place in places]
    assert {pair.dataset for pair in targets} == {0, 2}
    # As if the others were not there.
    alone = [make([(9, 2, 5), (9, 3, 5)]).draw(*place) for place in places]
    tried = Counter(pairing.draw(*place, 2).dataset for place in places)
    assert tried.keys() == {0, 1, 2, 3}
    assert max(abs(count - 150) for count in tried.values()) < 4 * (600 * 3 / 16) ** 0.5
    assert [dataclasses.replace(p, dataset=p.dataset // 2) for p in targets] == alone


def test_draws_are_those_of_earlier_versions():
    """A run begun before data sets could lack adapters goes on as it began."""
    pairing = make([(40, 9, 30)] * 4, prompts=3)
    assert pairing.draw(5, 7, 2) == Pair(
        2, 0, (36, 5, 16), (False,) * 3, (4, 18), noise_seed=9156732667796869068
    )


def test_seed_step_and_position_all_matter():
    pairing = make([(40, 9, 30)] * 4)
    drawn = {pairing.draw(step, position) for step in range(20) for position in range(20)}
    assert len(drawn) == 400
    assert dataclasses.replace(pairing, seed=1).draw(3, 4) != pairing.draw(3, 4)
    assert pairing.draw(3, 4) != pairing.draw(4, 3)


def test_data_sets_are_equally_likely_whatever_their_checkpoints():
    """Drawing among all adapters alike would let a data set with many drown the others."""
    pairing = make([(10, 1, 1), (10, 50, 1), (500, 3, 1)])
    drawn = [pairing.draw(step, position) for step in range(60) for position in range(50)]
    counts = Counter(pair.dataset for pair in drawn)
    assert max(abs(count - 1000) for count in counts.values()) < 4 * (3000 * 2 / 9) ** 0.5
    inside = Counter(pair.checkpoint for pair in drawn if pair.dataset == 1)
    assert len(inside) == 50


def test_all_of_x():
    """The same texts in the same order each time (the paper's first strategy)."""
    pairing = make([(8, 3, 1), (8, 2, 1)], strategy="x<-x")
    assert {pairing.draw(step, 1).texts for step in range(9)} == {tuple(range(8))}
    with pytest.raises(InvalidInput, match=r"8 to 9, and the recipe's condition has 8"):
        make([(8, 3, 1), (9, 2, 1)], strategy="x<-x")


def test_mix_is_four_to_one_and_drawn_anew():
    pairing = make([(100, 1, 1)], 100, form="mix")
    answers = [pairing.draw(step, 0).answers for step in range(100)]
    share = sum(map(sum, answers)) / 10_000
    assert abs(share - 0.2) < 4 * (0.2 * 0.8 / 10_000) ** 0.5
    assert len(set(answers)) == 100


def test_what_is_embedded():
    examples = [Example("one?", "1"), Example("two?", "2", "system")]
    assert condition_texts(examples, "prompt") == (["one?", "two?"],)
    assert condition_texts(examples, "answer") == (["1", "2"],)
    assert condition_texts(examples, "prompt+answer") == (["one?\n1", "two?\n2"],)
    assert condition_texts(examples, "mix") == (["one?", "two?"], ["1", "2"])


@pytest.mark.parametrize("sizes", [[], [(0, 1, 1)], [(1, 0, 1)]])
def test_nothing_to_draw_from(sizes):
    with pytest.raises(InvalidInput, match="needs a text and an adapter"):
        Pairing(0, 2, *zip(*sizes, strict=True)) if sizes else Pairing(0, 2, (), (), ())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 6), st.integers(0, 50))
def test_processes_and_micro_batches_share_out_the_same_batch(processes, passes, size, step):
    """Together they draw every position of the batch once, in order."""
    from dnd_fast.train.generator.data import MicroBatches

    phase = Phase("mse", 100, 1e-3, processes * passes * size)
    pairing = make([(40, 9, 30)] * 3)
    trainer_config = TrainerConfig(micro_batch=size)
    assert trainer_config.pass_size(phase, processes) == size
    positions = []
    for rank in range(processes):
        batches = MicroBatches(
            [],
            pairing,
            phase,
            length=1,
            context=DistributedContext(rank, processes),
            size=size,
            first_step=7,
        )
        assert batches.per_step == passes
        for turn in range(passes):
            positions += batches.places_in_batch(step * passes + turn)
    assert positions == [(7 + step, position) for position in range(phase.batch)]


def test_uneven_shares_are_refused():
    phase = Phase("mse", 1, 1e-3, 12)
    with pytest.raises(InvalidInput, match="batch of 12 cannot be shared out evenly to 5"):
        TrainerConfig().pass_size(phase, 5)
    with pytest.raises(InvalidInput, match="micro_batch=4 does not divide the 6 adapters"):
        TrainerConfig(micro_batch=4).pass_size(phase, 2)
