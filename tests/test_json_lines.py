"""Lines are whole or not there, whoever is killed or however full the disk is."""

import json
import multiprocessing

import pytest

from dnd_fast.json_lines import append, read

from .bad_input import disk_full

RECORDS = [{"a": 1}, {"b": "é\n"}]


def test_lines_are_added(tmp_path):
    path = tmp_path / "it.jsonl"
    for record in RECORDS:
        append(path, record)
    assert read(path) == RECORDS
    assert [json.loads(line) for line in path.read_text().splitlines()] == RECORDS


def test_half_a_line_goes(tmp_path):
    """At every byte at which a process may have been killed: once the next line was glued to it."""
    path = tmp_path / "it.jsonl"
    for record in RECORDS:
        append(path, record)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(first, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert read(path) == RECORDS[:1]
        append(path, RECORDS[1])
        assert path.read_bytes() == whole


def test_a_last_line_without_its_end_stays(tmp_path):
    """As an editor may leave it."""
    path = tmp_path / "it.jsonl"
    path.write_text('{"a": 1}')
    assert read(path) == RECORDS[:1]
    append(path, RECORDS[1])
    assert read(path) == RECORDS


def test_a_full_disk(tmp_path):
    path = tmp_path / "it.jsonl"
    append(path, RECORDS[0])
    before = path.read_bytes()
    with disk_full(), pytest.raises(OSError, match=r"too large|No space left"):
        append(path, {"long": "x" * 1000})
    assert path.read_bytes() == before


def test_another_damaged_line_is_not_passed_over(tmp_path):
    path = tmp_path / "it.jsonl"
    path.write_text('{"a"\n{"b": 1}\n')
    with pytest.raises(ValueError, match="delimiter"):
        read(path)


def add(path, number):
    for index in range(20):
        append(path, {"number": number, "index": index, "long": "x" * 9000})


def test_processes_add_to_one_file(tmp_path):
    path = tmp_path / "it.jsonl"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=add, args=(path, number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    found = [(record["number"], record["index"]) for record in read(path)]
    assert sorted(found) == [(number, index) for number in range(4) for index in range(20)]
