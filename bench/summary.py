"""README's two tables: what generated adapters are worth, and how much sooner they are there."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mean

from dnd_fast.bench import alternatives, decoder, generation, training
from dnd_fast.bench.experiments import demo
from dnd_fast.bench.harness.markdown import faster, table
from dnd_fast.bench.harness.timing import speedup

# Row of the demo's result files, by what README calls it.
QUALITY = {
    "base model alone": "base",
    "training adapter whose prompts are nearest": "training adapters, nearest by embedding",
    "generated from another task's prompts": "wrong prompts, mse+sft",
    "**generated**, trained by MSE (the paper's objective)": "generated, mse",
    "**generated**, trained by MSE, then end to end (ours)": "generated, mse+sft",
    "LoRA trained on the task's own 192 answers": "oracle",
}
BASELINES = {"eager float32": decoder.EAGER_FP32, "compiled float32": decoder.COMPILED_FP32}


def quality() -> str:
    """Exact match on the demo's unseen tasks: mean, lowest and highest of the seeds."""
    results = demo.load()
    rows = []
    for label, name in QUALITY.items():
        values = [result["zero_shot"][name] for result in results]
        rows.append((label, f"{mean(values):.2f}", f"{min(values):.2f} to {max(values):.2f}"))
    return table(("12 unseen tasks", f"exact match, mean of {len(results)} seeds", "range"), rows)


def speed() -> str:
    """Ratios, each within one run on one machine."""
    return table(("what", "against", "machine", "ratio"), list(_speedups()))


def _speedups() -> Iterator[tuple[str, str, str, str]]:
    for figures in generation.load():
        if figures["generator"] == generation.MIDDLE:
            ratio = faster(figures["speedup_over"][generation.DIRECT])
            yield "generate(), middle-sized decoder", generation.DIRECT, figures["device"], ratio
    for figures in decoder.load():
        for name, baseline in BASELINES.items():
            if baseline in (seconds := figures["seconds"]):
                ratio = faster(speedup(seconds, baseline, decoder.PLANNED))
                yield f"decoder, {figures['recipe']}", name, figures["device"], ratio
    for figures in training.load():
        what = "training step, middle-sized decoder"
        yield what, "eager float32", figures["device"], faster(figures["speedup"])
    for figures in alternatives.load():
        demo_figures = figures["demo"]
        for steps in alternatives.STEPS:
            name = f"LoRA, {steps} steps"
            ratio = f"{demo_figures['ratio'][name]:.0f}x faster"
            yield "adapter for a task of the demo", name, demo_figures["device"], ratio
