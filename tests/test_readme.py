"""README must say what the committed results say."""

import pytest

from dnd_fast.bench.report import README, TABLES, section


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_the_committed_ones(name):
    assert section(README.read_text(), name) == TABLES[name]()
