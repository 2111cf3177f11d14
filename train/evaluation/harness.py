"""Standard tasks through EleutherAI's lm-evaluation-harness, on a model that is already loaded.

Needs the extra ``eval``: ``pip install "dnd-fast[eval]"``. Tasks fetch their data sets from the
hub, except those whose YAML file names local files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnd_fast.errors import InvalidInput
from dnd_fast.files import read_bytes

if TYPE_CHECKING:
    from dnd_fast.train.evaluation.metrics import EvalBatch

# Of what a task reports for each question, the first that is there.
REPORTED = ("exact_match", "acc_norm", "acc", "pass@1", "f1")


def harness_scores(task: str, *, run_code: bool = False) -> Callable[[EvalBatch], list[float]]:
    """Make scores of a task's own questions, put by the tokenizer's chat template.

    Args:
        task: A name that lm-eval knows, or a YAML file that defines one of the file's name.
        run_code: Whether such a file may run code: the functions that it names, and expressions in
            its templates, which lm-eval does not confine.

    Raises:
        OSError: there is no such file.
        InvalidInput: lm-eval is not installed, knows no such task, or would run a file's code
            without leave.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise InvalidInput(
            'lm-eval:TASK needs the lm-evaluation-harness: pip install "dnd-fast[eval]".'
        ) from error
    path = Path(task)
    name = task
    if path.suffix in (".yaml", ".yml"):
        name = path.stem
        if not run_code:
            raise InvalidInput(
                f"lm-eval runs code that {task} names (!function, metrics, templates), as you and "
                "without limits. Read it, and allow it: --run-generated-code."
            )
        read_bytes(path)  # raises where it is none
        manager = TaskManager(include_path=str(path.parent), include_defaults=False)
    else:
        manager = TaskManager()
    if name not in manager.all_subtasks:
        raise InvalidInput(
            f"lm-eval has no task {name!r}; list them by: lm-eval ls tasks. Of a group, name the "
            "tasks one by one."
        )

    def score(batch: EvalBatch) -> list[float]:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        model = HFLM(
            pretrained=batch.model, tokenizer=batch.tokenizer, batch_size=batch.settings.batch
        )
        results: Any = simple_evaluate(
            model, tasks=[name], task_manager=manager, apply_chat_template=True, bootstrap_iters=0
        )
        samples = results["samples"][name]
        reported = next((key for key in REPORTED if key in samples[0]), None)
        if reported is None:
            raise InvalidInput(
                f"lm-eval's task {name!r} reports none of {', '.join(REPORTED)} for a question; "
                "such tasks are not supported."
            )
        return [float(sample[reported]) for sample in samples]

    return score
