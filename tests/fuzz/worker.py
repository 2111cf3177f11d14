"""Run cases of the campaign, each in a folder of its own, and print what came of them.

A case that computes for more than ten seconds, or waits for ten minutes, ends the process; one that
needs more than a gigabyte fails. Only what never ends takes ten minutes, however busy the machine.
"""

import json
import os
import random
import resource
import shutil
import signal
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import runs
import tensors
import texts
import torch
from form import SEALED
from mutate import BYTEWISE, IN_ITS_PLACE, damage

from dnd_fast import InvalidInput

FORMATS = texts.FORMATS | tensors.FORMATS | runs.FORMATS
SECONDS, WAIT, MEMORY = 10, 600, 1 << 30  # of the processor, of the clock; bytes


def plain(value):
    """Something that equals itself: tensors as bytes, NaN as text."""
    if isinstance(value, torch.Tensor):
        dense = value.detach().contiguous()
        return (
            str(dense.dtype),
            tuple(dense.shape),
            dense.flatten().view(torch.uint8).numpy().tobytes(),
        )
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return repr(value)


def prepare(good):
    """Write a good one of each format; what reading it gives."""
    values = {}
    for name, form in FORMATS.items():
        torch.manual_seed(0)
        (good / name).mkdir(parents=True)
        form.write(good / name)
        values[name] = plain(form.read(good / name))
    return values


def replacements(good):
    """All files of all formats, each with all that may stand in its place."""
    return [
        (name, file.relative_to(good / name), what)
        for name in FORMATS
        for file in files_of(good / name)
        for what in IN_ITS_PLACE
    ]


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")


def run(number, good, place, values):
    rng, first = random.Random(number), replacements(good)
    if number < len(first):
        name, path, what = first[number]
    else:
        names = list(FORMATS)
        name = rng.choices(names, [FORMATS[name].share for name in names])[0]
        path, what = rng.choice(files_of(good / name)).relative_to(good / name), None
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(good / name, place)
    if what is None:
        way = damage(place / path, rng)
        what = way.__name__
    else:
        way = IN_ITS_PLACE[what]
        (place / path).unlink()
        way(place / path)
    case = {"case": number, "format": name, "file": path.name, "way": what}
    try:
        found = plain(FORMATS[name].read(place))
    except (InvalidInput, OSError) as error:
        return case | {"came": "refused", "what": f"{type(error).__name__}: {error}"}
    except BaseException as error:
        return case | {"came": "FAULT", "what": f"{type(error).__name__}: {error}"[:300]}
    if found == values[name]:
        return case | {"came": "equal"}
    came = "FAULT" if is_sealed(FORMATS[name], place / path, way) else "other"
    return case | {"came": came, "what": "other values"}


def is_sealed(form, file, way):
    """Whether a file still says by a checksum what its values are."""
    if form.foreign or file.suffix not in SEALED or not file.is_file():
        return False
    return way in BYTEWISE if file.suffix != ".safetensors" else b'"sha256":"' in file.read_bytes()


def main(folder, first, last):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    good, place = folder / "good", folder / "case"
    shutil.rmtree(folder, ignore_errors=True)
    values = prepare(good)  # also the first use of anything, before memory is counted
    print(json.dumps({"formats": list(FORMATS), "replaced": len(replacements(good))}), flush=True)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, -1))
    for number in range(first, last):
        print(json.dumps({"begun": number}), flush=True)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, WAIT)
        came = run(number, good, place, values)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(came), flush=True)


main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
