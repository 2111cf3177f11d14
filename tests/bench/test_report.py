"""README and docs/ must say what the committed results say."""

import pytest

from dnd_fast.bench import plots, report
from dnd_fast.bench.harness.timing import speedup

FOUND = {
    name: text
    for page in report.PAGES
    for name, text in report.tables(page.read_text(encoding="utf-8")).items()
}


@pytest.mark.parametrize("name", report.TABLES)
def test_tables_are_the_committed_ones(name):
    assert FOUND[name] == report.TABLES[name]()


def test_no_table_but_these_is_marked():
    assert FOUND.keys() == report.TABLES.keys()


@pytest.fixture
def pages(tmp_path, monkeypatch):
    """Two pages with the tables a, and b."""
    marks = "Above.\n\n<!-- {0} table -->\n\nold\n\n<!-- end of {0} table -->\n\nBelow.\n"
    paths = tmp_path / "README.md", tmp_path / "page.md"
    for path, name in zip(paths, "ab", strict=True):
        path.write_text(marks.format(name))
    monkeypatch.setattr(report, "PAGES", paths)
    monkeypatch.setattr(report, "TABLES", {"a": lambda: "old", "b": lambda: r"new \1"})
    monkeypatch.setattr(plots, "draw_all", list)
    return paths


def test_a_table_that_says_something_else_fails_the_check(pages):
    before = pages[0].read_text()
    with pytest.raises(SystemExit, match=r"results say \(page.md: b\)"):
        report.main(check=True)
    report.main(check=False)
    assert pages[0].read_text() == before
    assert pages[1].read_text().startswith("Above.\n\n<!-- b table -->\n\nnew \\1\n\n<!-- end")
    report.main(check=True)


def test_tables_and_marks_belong_together(pages, monkeypatch):
    monkeypatch.setattr(report, "TABLES", {"a": str, "c": str})
    with pytest.raises(SystemExit, match=r"in a page: \['c'\]; marks without a table: \['b'\]"):
        report.main(check=False)
    assert "old" in pages[0].read_text()


def test_the_readme_shows_ratios_alone():
    """Of the committed results, and none of the absolute times of a CPU."""
    for figures in report.decoder.load():
        seconds = figures["seconds"]
        ratio = speedup(seconds, report.decoder.EAGER_FP32, report.decoder.PLANNED)
        assert f"| eager float32 | {figures['device']} | {ratio:.1f}x faster |" in FOUND["speed"]
