"""Whatever is killed, or finds the disk full: what was there or what was written, never a mixture.

A few hundred kills by default. ``DND_FAST_KILL=1000 pytest -m kill`` kills every writer at every
point, and a thousand times at random moments.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from .writers import WRITERS

KILLS = int(os.environ.get("DND_FAST_KILL", 0))
WORKER = Path(__file__).with_name("worker.py")
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
}
SLOW = {"base", "collection", "demo models", "training run", "trained expert"}
RUNS = ["checkpoints", "checkpoints of an expert", "collection", "training run", "trained expert"]
RANDOM = ["adapter over another", "generator", "results", *RUNS]
pytestmark = pytest.mark.kill


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """Ask the one warm process that all kills are forked from."""
    process = subprocess.Popen(
        [sys.executable, str(WORKER), str(tmp_path_factory.mktemp("kill"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | ENVIRONMENT,
    )

    def answer(*question):
        if question[1] == "natural export" and find_spec("faker") is None:
            pytest.skip('needs pip install "dnd-fast[natural]"')
        print(json.dumps(question), file=process.stdin, flush=True)
        found = json.loads(process.stdout.readline())
        print(question, found)
        assert "error" not in found, found["error"]
        return found

    yield answer
    process.stdin.close()
    assert process.wait(10) == 0


@pytest.mark.parametrize("name", WRITERS)
def test_killed_at_a_point(ask, name):
    """Just before and just after every rename, link, removal and wait for the disk."""
    found = ask("kill", name, 0 if KILLS else 4 if name in SLOW else 10)
    assert found["points"] > 5
    assert found["kills"] == found["points"] or not KILLS
    assert found["kills"] >= 4


@pytest.mark.parametrize("name", RANDOM)
def test_killed_at_random_moments(ask, name):
    kills = KILLS // len(RANDOM) or (3 if name in SLOW else 10)
    assert ask("random", name, kills)["kills"] == kills


@pytest.mark.parametrize("name", [name for name in WRITERS if KILLS or name not in SLOW])
def test_the_disk_is_full(ask, name):
    """At any event, or in the middle of any file."""
    found = ask("full", name, 0 if KILLS else 8)
    assert found["failures"] > 1
