"""Which folder is built on which: the package is used without what trains it."""

import ast

import pytest

from dnd_fast.bench.report import ROOT

FORBIDDEN = {
    "kernels": ("dnd_fast.train", "dnd_fast.bench"),
    "dnd_fast": ("dnd_fast.train", "dnd_fast.bench"),
    "train": ("dnd_fast.bench",),
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_point_one_way(folder):
    """Also those within functions."""
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        for name in imported(file)
        if f"{name}.".startswith(tuple(f"{package}." for package in FORBIDDEN[folder]))
    ]
    assert not wrong
