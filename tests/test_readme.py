"""README must say what the committed results say."""

from pathlib import Path

from dnd_fast.bench.demo import markdown

README = Path(__file__).parents[1] / "README.md"


def test_demo_table_is_the_committed_one():
    text = README.read_text()
    table = text.split("<!-- demo table -->")[1].split("<!-- end of demo table -->")[0]
    assert table.strip() == markdown()
