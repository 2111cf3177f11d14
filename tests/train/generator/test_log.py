"""The log of a run that goes on: what a killed or a foreign process left in it does no harm."""

import json

import pytest

from dnd_fast.train.generator.log import Log

WHOLE = [json.dumps({"step": step, "loss": 1 / step}).encode() + b"\n" for step in (1, 2, 3)]


@pytest.mark.parametrize(
    "garbage",
    [
        b'{"step": 2, "lo',
        b'{"step": 3}',  # whole, but for the end of its line
        b"\n",
        b"\xff\xfe\x00\n",
        b"[" * 100_000 + b"\n",
        b'{"step": "2"}\n',
        b'{"loss": 1.0}\n',
        b"[2]\n",
        b"nan\n",
    ],
)
@pytest.mark.parametrize("place", [0, 2, 3])
def test_lines_that_are_none_are_left_out(tmp_path, garbage, place):
    if place < 3 and not garbage.endswith(b"\n"):
        garbage += b"\n" if garbage.endswith(b"lo") else b"x\n"
    file = tmp_path / "log.jsonl"
    file.write_bytes(b"".join([*WHOLE[:place], garbage, *WHOLE[place:]]))
    Log(file).on_train_begin(2)
    assert file.read_bytes() == b"".join(WHOLE[:2])


def test_a_run_that_begins_has_no_log(tmp_path):
    Log(tmp_path / "log.jsonl").on_train_begin(0)
    assert not list(tmp_path.iterdir())
