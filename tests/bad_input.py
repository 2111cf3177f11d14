"""Ways to hand in something unusable; what must come of it is in every module's own tests.

Unusable input is an InvalidInput that names it; a failure of the system stays an OSError. Most
tests make the same call with good input first, so that nothing else can be what fails.
"""

import errno
import io
import json
import os
import resource
import shutil
import sys
from contextlib import contextmanager

import pytest
import safetensors.torch
import torch

from dnd_fast import InvalidInput
from dnd_fast.cli import main
from dnd_fast.convert import RENAMED

PROMPTS = ["reverse rice", "count the letters in tea", "echo fig", "copy oak"]
FEATURES = [(3, 5, 4), (3, 4, 6), (5, 4, 6)]
Q = "base_model.model.model.layers.0.self_attn.q_proj"
A = f"{Q}.lora_A.weight"
NAN, INF = float("nan"), float("inf")


def published(decoder):
    """A decoder's state dict under the names of the paper's code."""
    theirs = {ours: name for name, ours in RENAMED.items()}
    state = {}
    for key, value in decoder.state_dict().items():
        _, index, name = key.split(".", 2)
        state[f"decoder.module_list.{index}.{theirs[name]}"] = value
    return state


def fails(message, call, *arguments, error=InvalidInput, **options):
    """The whole message of the error that the call must raise."""
    with pytest.raises(error, match=message) as caught:
        call(*arguments, **options)
    return str(caught.value)


GONE, FOLDER = object(), object()


def damaged(source, target, name, damage):
    """A copy of a folder in which one file is changed, gone, or a folder."""
    shutil.copytree(source, target)
    file = target / name
    whole = file.read_bytes()
    file.unlink()
    if damage is FOLDER:
        file.mkdir()
    elif damage is not GONE:
        file.write_bytes(damage(whole) if callable(damage) else damage)
    return target


def entries(**changes):
    """Of a JSON object, at any depth (``a__b`` is ``b`` of ``a``); ``...`` removes one."""

    def damage(whole):
        content = json.loads(whole)
        for path, value in changes.items():
            *parents, last = path.split("__")
            table = content
            for parent in parents:
                table = table[parent]
            table[last] = value
            if value is ...:
                del table[last]
        return json.dumps(content).encode()

    return damage


def tensors(part, change):
    """Of a safetensors file, all whose name has ``part``; GONE removes them."""

    def damage(whole):
        state = safetensors.torch.load(whole)
        names = [name for name in state if part in name]
        assert names
        for name in names:
            value = state.pop(name)
            if change is not GONE:
                state[name] = change(value)
        return safetensors.torch.save(state)

    return damage


def extra_tensor(whole):
    return safetensors.torch.save(safetensors.torch.load(whole) | {"extra": torch.ones(2)})


class Trap:
    """Whoever unpickles it creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def contents(folder):
    """All that is below a folder, hidden files included."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@contextmanager
def disk_full():
    """No file can grow beyond a block: what the system does, without a disk to fill."""
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def disk_full_at_sync():
    """As network file systems do, which accept writes and report later."""

    def fsync(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


def run(patch, *arguments):
    """Exit code and the lines on stderr of ``dnd-fast``, in this process."""
    stderr = io.StringIO()
    patch.setattr(sys, "argv", ["dnd-fast", *map(str, arguments)])
    patch.setattr(sys, "stderr", stderr)
    for variable in ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
        patch.setenv(variable, os.environ.get(variable, "1"))
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code, stderr.getvalue()
