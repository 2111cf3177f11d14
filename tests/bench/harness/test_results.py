"""Results must never be lost, and must say where they come from."""

import json

import pytest

from dnd_fast.bench.harness import results


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    return tmp_path


def test_results_are_only_added_to(here):
    for figures in ({"a": 1, "x": 1}, {"a": 2, "x": 2}, {"a": 1, "x": 3}):
        path = results.append("it", figures | {"seed": 5})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["x"] for line in lines] == [1, 2, 3]
    assert [line["x"] for line in results.latest("it", "a")] == [3, 2]
    assert results.latest("nothing", "a") == []
    for key in ("schema_version", "revision", "time", "device", "threads", "python", "seed"):
        assert lines[0][key]
    assert {"driver", "cuda"} <= lines[0].keys()
    assert {"torch", "transformers", "peft", "numpy"} <= lines[0]["versions"].keys()


def test_a_result_without_its_seed_is_refused(here):
    with pytest.raises(ValueError, match="a result of it must tell its seed"):
        results.append("it", {"x": 1})
    assert not list(here.iterdir())


def test_a_library_that_is_missing_is_left_out(monkeypatch):
    monkeypatch.setattr(results, "LIBRARIES", ("torch", "no-such-library"))
    assert list(results.provenance()["versions"]) == ["torch"]


def test_the_hash_of_prompts_keeps_their_borders():
    assert results.prompts_hash(["a", "b"]) != results.prompts_hash(["a\nb"])
    assert results.prompts_hash(["a"]) == results.prompts_hash(("a",))


@pytest.mark.parametrize(
    "path", sorted(results.RESULTS.glob("*.jsonl")), ids=lambda path: path.stem
)
def test_committed_results_say_where_they_come_from(path):
    for line in path.read_text(encoding="utf-8").splitlines():
        figures = json.loads(line)
        assert {"schema_version", "revision", "time", "device", "versions"} <= figures.keys()
        if figures["schema_version"] >= 3:
            assert {"seed", "driver", "cuda"} <= figures.keys()
