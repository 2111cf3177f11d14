"""Train in forked processes: once to the end, then killed again and again. Prints what it found.

A script of its own, so that no thread of the tests' process is lost in a fork.
"""

import dataclasses
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from toy import MSE, SFT, new_trainer

torch.set_num_threads(1)
KILLS = 10
PHASES = [
    dataclasses.replace(MSE, steps=25),
    dataclasses.replace(SFT, steps=25),
]


def train(folder):
    """In a child process; returns its id."""
    child = os.fork()
    if child == 0:
        trainer = new_trainer(folder, PHASES, save_every=1)
        trainer.fit()
        torch.save(trainer.decoder.state_dict(), folder / "done.pt")
        os._exit(0)
    return child


def main(folder):
    folder.mkdir(exist_ok=True)
    whole, broken = folder / "whole", folder / "broken"
    whole.mkdir()
    broken.mkdir()
    started = time.perf_counter()
    os.waitpid(train(whole), 0)
    seconds = time.perf_counter() - started
    rng, steps = random.Random(0), []
    for _ in range(KILLS):
        child = train(broken)
        time.sleep(rng.uniform(0.02, seconds / 4))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        state = new_trainer(broken, PHASES).checkpoints.latest()
        steps.append((state.step if state else 0, os.WIFSIGNALED(status)))
    _, status = os.waitpid(train(broken), 0)
    first, second = (torch.load(each / "done.pt", weights_only=True) for each in (whole, broken))
    equal = all(torch.equal(first[key], second[key]) for key in first)
    print(json.dumps({"steps": steps, "equal": equal, "status": status}))


main(Path(sys.argv[1]))
