"""Train in two processes, as replicas and as shards, and print how each compares with one process.

Forked from one script, which is quicker than importing everything in every process.
"""

import json
import os
import signal
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from toy import new_trainer

from dnd_fast.train.generator.distributed import DistributedContext, whole_weights

torch.set_num_threads(1)


class Stop(Exception):
    pass


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def train(folder, result, context, stop=None, **options):
    """Records and final weights into the file ``result``; stops after ``stop`` steps."""
    trainer = new_trainer(folder, **options)
    trainer.context = context
    trainer.held_out = (trainer.tasks, trainer.pairing)
    records, scores = [], []

    def on_step_end(metrics):
        records.append((metrics.loss, metrics.learning_rate, metrics.gradient_norm))
        if metrics.step == stop:
            raise Stop

    trainer.on_step_end = on_step_end
    trainer.on_evaluate = lambda step, loss: scores.append(loss)
    try:
        trainer.fit()
    except Stop:
        return
    weights = whole_weights(trainer.decoder)
    if context.main:
        torch.save(weights, f"{result}.pt")
    Path(f"{result}-{context.rank}.json").write_text(json.dumps([records, scores]))


def two_processes(*args, **options):
    port, children = free_port(), []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            try:
                context = DistributedContext.start()
                train(*args, context, **options)
                context.end()
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    codes = [os.waitpid(child, 0)[1] for child in children]
    if any(codes):
        sys.exit(f"two processes ended with {codes}: {args} {options}")


def main(folder):
    every = {"evaluate_every": 3}
    two_processes(folder / "ddp", folder / "ddp-result", **every)
    two_processes(folder / "fsdp", folder / "fsdp-result", shard=True, **every)
    two_processes(
        folder / "small",
        folder / "small-result",
        shard=True,
        micro_batch=1,
        checkpointing=True,
        **every,
    )
    two_processes(None, folder / "accumulated-result", micro_batch=1, **every)
    # Begun with one kind of processes, gone on with another.
    two_processes(folder / "mixed", None, shard=True, stop=5, **every)
    train(folder / "mixed", None, DistributedContext(), stop=9, **every)
    two_processes(folder / "mixed", folder / "mixed-result", **every)
    train(folder / "one", folder / "one-result", DistributedContext(), **every)


def die(folder):
    """Under torchrun: the second process is killed after three steps."""
    trainer = new_trainer(folder)
    trainer.context = DistributedContext.start()

    def on_step_end(metrics):
        if metrics.step == 3 and trainer.context.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer.on_step_end = on_step_end
    trainer.fit()


{"compare": main, "die": die}[sys.argv[1]](Path(sys.argv[2]))
