"""README must say what the committed results say."""

from pathlib import Path

import pytest

from dnd_fast.bench import decoder, demo, training

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.parametrize(
    ("name", "module"), [("demo", demo), ("decoder", decoder), ("training", training)]
)
def test_tables_are_the_committed_ones(name, module):
    text = README.read_text()
    table = text.split(f"<!-- {name} table -->")[1].split(f"<!-- end of {name} table -->")[0]
    assert table.strip() == module.markdown()
