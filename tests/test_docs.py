"""README and docs/ must be right: their Python, their commands, their links, and their length."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
import typer

from dnd_fast.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
COMMANDS = typer.main.get_command(app).commands


def blocks(language):
    """Code blocks of a language, as test cases."""
    return [
        pytest.param(block, id=f"{name}-{index}")
        for name, text in TEXTS.items()
        for index, block in enumerate(re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL))
    ]


def command_lines():
    """What the pages show of the command line, in blocks and within lines, as test cases."""
    lines = {}
    for name, text in TEXTS.items():
        in_blocks = re.findall(r"^.*?\b(dnd-fast [a-z-]+ .*)$", text, re.MULTILINE)
        in_text = re.findall(r"`(dnd-fast [a-z-]+[^`]*)`", text)
        for line in [*in_blocks, *in_text]:
            lines[line.split("`")[0]] = name
    return [pytest.param(line, id=f"{name}: {line[:60]}") for line, name in lines.items()]


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 180


@pytest.mark.parametrize("block", blocks("python"))
def test_python(block):
    """It compiles, and what it takes from dnd_fast exists."""
    tree = ast.parse(block)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "dnd_fast":
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "dnd_fast":
            assert hasattr(importlib.import_module("dnd_fast"), node.attr)


def test_names_of_dnd_fast_exist():
    """Dotted names in the text, a module's or what is in it."""
    names = {
        name for text in TEXTS.values() for name in re.findall(r"`(dnd_fast(?:\.\w+)+)`", text)
    }
    for name in names:
        parent, _, last = name.rpartition(".")
        module = importlib.import_module(parent)
        assert hasattr(module, last) or importlib.import_module(name), name


@pytest.mark.parametrize("line", command_lines())
def test_commands(line):
    """The command is one, and so are its options."""
    _, name, *words = shlex.split(line, comments=True)
    assert name in COMMANDS
    known = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("line", re.findall(r"python -m (bench[.\w]+)", "".join(TEXTS.values())))
def test_benchmarks(line):
    if line != "bench.NAME":
        importlib.import_module(f"dnd_fast.{line}")


@pytest.mark.parametrize("name", TEXTS)
def test_links(name):
    """Files and images exist, and so do the headings that links point to."""
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]):
        if target.startswith("https://"):
            continue
        path, _, heading = target.partition("#")
        page = (ROOT / name).parent / path if path else ROOT / name
        assert page.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
            kept = (re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings)
            assert heading in kept, target


def test_the_tree_of_the_architecture_is_the_tree():
    """What it names exists, and every module of the library and of the kernels is in it."""
    tree = re.findall(r"```\n(dnd_fast/ .*?)```", TEXTS["docs/architecture.md"], re.DOTALL)[0]
    named, folders = set(), []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        entry = line.split()[0]
        folders[depth:] = [entry]
        named.add("".join(folders))
    missing = [path for path in named if not (ROOT / path).exists()]
    modules = {
        str(path.relative_to(ROOT))
        for folder in ("dnd_fast", "kernels")
        for path in (ROOT / folder).rglob("*.py")
        if path.stem != "__init__" and path.parent.name not in ("cli", "demo")
    }
    assert not missing
    assert modules <= named


def test_what_holds_a_promise_is_there():
    """Every test that the page of promises names."""
    file, found = None, 0
    for path, name in re.findall(r"`([\w/]+\.py)?(?:::(\w+))?`", TEXTS["docs/reliability.md"]):
        file = ROOT / "tests" / path if path else file
        assert file.is_file(), path
        found += 1
        if name:
            assert f"def {name}(" in file.read_text(encoding="utf-8"), f"{file}::{name}"
    assert found > 20
