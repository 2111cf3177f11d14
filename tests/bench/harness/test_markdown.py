"""Tables of results as Markdown."""

import pytest

from dnd_fast.bench.harness import markdown


def test_table():
    assert markdown.table(("a", "b"), iter([("1", ""), ("3", "4")])).splitlines() == [
        "| a | b |",
        "| --- | --- |",
        "| 1 |  |",
        "| 3 | 4 |",
    ]
    assert markdown.table(("a", "b"), []) == markdown.NO_RESULTS


@pytest.mark.parametrize(("ratio", "text"), [(0.04, "0.0x"), (9.94, "9.9x"), (2500.4, "2,500x")])
def test_times(ratio, text):
    assert markdown.times(ratio) == text
    assert markdown.faster(4.84) == "4.8x faster"
