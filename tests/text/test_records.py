"""Files of data: one content in every form, and every way to be no such file."""

import io
import json
import sys
from contextlib import suppress

import pytest

from dnd_fast import InvalidInput
from dnd_fast.text.records import as_json_lines, parse_records, read_source

ROWS = [{"prompt": 'a "b",\n c', "response": "é\u2028"}, {"prompt": "d", "response": "e"}]
CSV = 'prompt,response,system\r\n"a ""b"",\n c",é\u2028,\r\nd,e,\r\n'


def parquet(rows):
    pyarrow = pytest.importorskip("pyarrow")
    written = io.BytesIO()
    table = pyarrow.Table.from_pylist(rows)
    pytest.importorskip("pyarrow.parquet").write_table(table, written)
    return written.getvalue()


FORMS = {
    "a.jsonl": lambda: "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode(),
    "a.json": lambda: ("\ufeff \n" + json.dumps(ROWS, indent=1)).encode(),
    "lines.json": lambda: "".join(json.dumps(row) + "\r\n" for row in ROWS).encode(),
    "a.csv": lambda: ("\ufeff" + CSV).encode(),
    "a.parquet": lambda: parquet([row | {"system": None} for row in ROWS]),
    "-": lambda: json.dumps(ROWS).encode(),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_agree(tmp_path, monkeypatch, name):
    content = FORMS[name]()
    if name == "-":
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        path = tmp_path.__class__("-")
    else:
        path = tmp_path / name
        path.write_bytes(content)
    records = parse_records(read_source(path), path)
    assert [record for _, record in records] == ROWS
    again = parse_records(as_json_lines(records), tmp_path / "again.jsonl")
    assert [record for _, record in again] == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "a.jsonl holds no examples"),
        ("a.json", b"[]", "a.json holds no examples"),
        ("a.json", b"[1]", "entry 1: found a int, expected an object"),
        ("a.json", b'[{"a": 1}', "a.json is not valid JSON"),
        ("a.json", b'{"a": 1}\n{', "line 2 is not valid JSON"),
        ("a.csv", b"a,b\n", "holds no examples"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", "line 3: there are more cells than names"),
        ("a.csv", b'a,b\n"1,2\n', "line [12]: not valid CSV"),
        ("a.csv", b"a,b\n" + b"x" * 200_000, "not valid CSV .field larger.*save it as .jsonl"),
        ("a.csv", "é".encode("latin-1"), "not UTF-8 text"),
        ("a.parquet", b"PAR1", "is damaged, or no parquet file"),
        ("a.txt", b"a", "files that end in .jsonl, .json, .csv, .parquet, or from '-'"),
    ],
)
def test_unusable_files(tmp_path, name, content, message):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(InvalidInput, match=message) as caught:
        parse_records(content, tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidInput, match=r"needs pyarrow: pip install 'dnd-fast\[parquet\]'"):
        parse_records(b"PAR1", tmp_path / "a.parquet")


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_damaged_parquet_file(tmp_path, share):
    whole = parquet(ROWS * 100)
    position = int(share * len(whole))
    for damaged in (whole[:position], whole[:position] + bytes(30) + whole[position + 30 :]):
        with suppress(InvalidInput):
            parse_records(damaged, tmp_path / "a.parquet")
