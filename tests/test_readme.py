"""README must say what the committed results say."""

import pytest

from dnd_fast.bench.report import README, TABLES, split


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_the_committed_ones(name):
    assert split(README.read_text(), name)[1] == TABLES[name]()
