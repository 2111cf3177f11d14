"""Intervals and means of an evaluation, against their definitions and figures made by hand."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnd_fast import InvalidInput
from dnd_fast.train.evaluation.scores import Evaluation, merged, wilson


@given(st.integers(1, 300), st.data())
def test_wilson_contains_what_may_be_true(count, data):
    """Against its definition: the shares whose own spread reaches the one found."""
    right = data.draw(st.integers(0, count))
    share = right / count
    low, high = wilson(share, count)
    assert 0 <= low <= share + 1e-9
    assert share - 1e-9 <= high <= 1
    for bound in {low, high} - {0.0, 1.0}:
        assert abs(bound - share) == pytest.approx(
            1.959964 * (bound * (1 - bound) / count) ** 0.5, abs=1e-6
        )
    assert high > low  # also where every answer is wrong, unlike a bootstrap's


def toy(**columns):
    row = {name: [scores] for name, scores in columns.items()}
    return Evaluation(
        "exact", {"base": row, "generated": {n: [s, s] for n, (s,) in row.items()}}, {}
    )


def test_means_over_data_sets():
    found = toy(a=[1.0, 0.0], b=[1.0] * 4)
    overall = found.overall(found.rows["generated"])
    assert overall.mean == 0.75  # each data set counts the same
    assert overall.batches == (0.75, 0.75)
    assert overall.spread == 0
    assert (overall.low, overall.high) == wilson(0.75, 4 / (1 / 2 + 1 / 4))
    assert found.overall({"a": [[1.0]]}) is None  # b is missing: not comparable
    table = json.loads(json.dumps(found.to_dict()))
    assert table["methods"]["base"]["data"]["b"]["mean"] == 1.0
    assert table["questions"] == {"a": 2, "b": 4}


def test_leave_one_out_runs_become_one_table():
    table = merged([toy(a=[1.0]), toy(b=[0.0])])
    assert table.columns == ["a", "b"]
    assert table.overall(table.rows["base"]).mean == 0.5
    with pytest.raises(InvalidInput, match="more than one run holds out 'a'"):
        merged([toy(a=[1.0]), toy(a=[0.0])])
