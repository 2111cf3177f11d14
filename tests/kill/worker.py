"""A warm process that forks writers, and says what became of what they wrote.

One line in: a task as JSON. One line out: what came of it. A script of its own, so that no thread
of the tests' process is lost in a fork.
"""

import contextlib
import json
import os
import random
import shutil
import sys
import traceback
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from harness import (
    NO_SPACE,
    finish,
    full_at,
    killed_after,
    killed_at,
    points_of,
    seconds_of,
    visible,
    whole,
)
from writers import WRITERS

from dnd_fast.filesystem import sweep


class Place:
    """One writer's folders: what was there before, what is there in the end, and one to try in."""

    def __init__(self, writer, folder):
        self.writer, self.folder = writer, folder
        self.before, self.root = folder / "before", folder / "root"
        shutil.rmtree(folder, ignore_errors=True)
        self.before.mkdir(parents=True)
        finish(lambda: writer.old(self.before))
        self.renew()
        finish(self.write)
        self.new, self.old = whole(self.root), whole(self.before)

    def write(self):
        self.writer.write(self.root)

    def renew(self):
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self.before, self.root)

    def check(self):
        """What a reader must find at any time."""
        if self.writer.check is not None:
            finish(lambda: self.writer.check(self.root))
        else:
            found = visible(self.root)
            assert found in (visible(self.before), self.new), difference(found, self.new)

    def check_end(self):
        finish(self.write)
        if not self.writer.sweeps:
            sweep(self.root)  # as the next write does
        found = whole(self.root)
        assert self.same(found) == self.same(self.new), difference(found, self.new)

    def same(self, found):
        return {name: self.writer.same(name, content) for name, content in found.items()}


def difference(first, second):
    names = [name for name in first.keys() | second.keys() if first.get(name) != second.get(name)]
    return f"these differ from what was to be written: {sorted(names)}"


def kill(place, points):
    """Kill at so many of the points, or at every one if 0."""
    place.renew()
    count = points_of(place.write)
    chosen = some(count, points)
    for point in chosen:
        with said(f"killed at point {point} of {count}"):
            place.renew()
            assert killed_at(place.write, point)
            place.check()
            place.check_end()
    return {"points": count, "kills": len(chosen)}


def kill_at_random(place, kills):
    """Again and again in the same folder, whose writer goes on where it was killed."""
    place.renew()
    seconds, rng, killed = seconds_of(place.write), random.Random(0), 0
    place.renew()
    while killed < kills:
        with said(f"after {killed} kills"):
            if killed_after(place.write, rng.uniform(0, seconds)):
                killed += 1
                place.check()
            else:  # it was done sooner
                place.check_end()
                place.renew()
    place.check_end()
    return {"kills": killed}


def fill(place, points):
    """The disk is full at so many of the points, or at every one if 0; nothing is left over."""
    place.renew()
    count, failures = points_of(place.write, NO_SPACE), 0
    for point in some(count, points):
        with said(f"the disk is full at point {point} of {count}"):
            place.renew()
            failed = full_at(place.write, point)
            place.check()
            if failed and place.writer.check is None:
                assert whole(place.root) in (place.old, place.new), "something is left over"
            failures += failed
            place.check_end()
    return {"points": count, "failures": failures}


def some(count, wanted):
    """So many of the numbers below ``count``, or all."""
    if not wanted or wanted >= count:
        return range(count)
    return sorted(random.Random(count).sample(range(count), wanted))


@contextlib.contextmanager
def said(what):
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from error


def main(folder):
    torch.set_num_threads(1)
    sys.dont_write_bytecode = True  # which would be further events
    warnings.simplefilter("ignore")
    modes = {"kill": kill, "random": kill_at_random, "full": fill}
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what writers print is none of the answers
    for line in sys.stdin:
        mode, name, number = json.loads(line)
        try:
            answer = modes[mode](Place(WRITERS[name], Path(folder, "it")), number)
        except BaseException:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
