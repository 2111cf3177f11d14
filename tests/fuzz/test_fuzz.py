"""Seeded damage to everything that is read: an error that names it, or what was there before.

2,000 cases by default; ``DND_FAST_FUZZ=20000 pytest -m fuzz`` runs more. One of them again:
``python tests/fuzz/worker.py FOLDER NUMBER NUMBER+1``.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

CASES = int(os.environ.get("DND_FAST_FUZZ", 2000))
WORKER = Path(__file__).with_name("worker.py")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}


def campaign(folder, cases):
    """What came of every case, and what the worker said of all.

    A process that one of them ends is started again behind it.
    """
    results, about, first = [], {}, 0
    while first < cases:
        command = [sys.executable, str(WORKER), str(folder), str(first), str(cases)]
        ended = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | ENVIRONMENT, check=False
        )
        records = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
        assert len(records) > 1, ended.stderr[-3000:]
        about, *records = records
        results += [record for record in records if "came" in record]
        if not ended.returncode:
            break
        what = f"the process ended with {ended.returncode}: {ended.stderr[-300:]}"
        first = records[-1]["begun"]
        results.append({"case": first, "format": "?", "came": "FAULT", "what": what})
        first += 1
    return results, about


@pytest.mark.fuzz
def test_damaged_files_end_in_clear_errors(tmp_path):
    """No other exception, no other values under a checksum, no hang, no gigabyte, no crash."""
    results, about = campaign(tmp_path / "fuzz", CASES)
    came = Counter(result["came"] for result in results)
    print(dict(came))
    assert not [result for result in results if result["came"] == "FAULT"]
    assert len(results) == CASES
    assert came["refused"] > CASES / 2
    assert came["equal"] > CASES / 20
    assert about["replaced"] < CASES / 2, "most cases are to be seeded ones"
    seeded = Counter(result["format"] for result in results[about["replaced"] :])
    assert seeded.keys() == set(about["formats"])
