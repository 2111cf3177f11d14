"""Find the blocks that every Triton kernel runs fastest with on this GPU, and keep them.

    python -m bench.tune --recipe coding-7b

Needs an NVIDIA GPU. The recipe's planned decoder runs with random weights. The first time that a
kernel meets a problem, its candidates are timed right there, on the pass's own operands and from a
cold L2 cache, as in a pass, where other layers' weights have been through it. A candidate is
dropped if it does not compile, does not fit into the processor, or gives another result than the
default by more than rounding. The winners go to this device's table in the user's cache folder
(``DND_FAST_CACHE`` names another one), or, to be committed, in kernels/triton/configs.
"""

from __future__ import annotations

import functools
import gc
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import torch
import triton
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor
from triton.errors import TritonError

from dnd_fast.bench.harness.timing import console
from dnd_fast.cli.console import Weights
from dnd_fast.decoder.model import HyperConvDecoder
from dnd_fast.generator import GeneratorConfig
from dnd_fast.kernels.device import calibrate
from dnd_fast.kernels.planner.cost_model import plan_decoder
from dnd_fast.kernels.triton import block as triton_block
from dnd_fast.kernels.triton import detokenize, tuning
from dnd_fast.kernels.triton import fft_conv as triton_conv
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.recipe import Recipe, recipe_names

# Where every launcher is called from.
LAUNCHERS = (
    (triton_block, "direct_conv2d"),
    (triton_block, "layer_norm_stats"),
    (triton_conv, "dft_forward_triton"),
    (triton_conv, "bin_gemm"),
    (triton_conv, "bin_gemm_weight_gradient"),
    (triton_conv, "dft_inverse_triton"),
    (detokenize, "detokenize"),
)
Timer = Callable[[Callable[[], object]], float]


@dataclass(frozen=True)
class Launch:
    """A call of a kernel's launcher.

    Attributes:
        key: What a table calls the problem.
        candidates: Configs, the default first.
        run: Launches with a config; returns tensors, or None where it writes to given ones.
        written: Given tensors that it writes to, each with what it held before, None where that
            does not matter.
    """

    key: str
    candidates: Sequence[Any]
    run: Callable[[Any], Sequence[Tensor] | None]
    written: Sequence[tuple[Tensor, Tensor | None]]

    def results(self, config: Any) -> list[Tensor]:
        """Results of one launch that starts from what the first one met; written tensors hold them
        too."""
        for tensor, before in self.written:
            if before is not None:
                tensor.copy_(before)
        return list(self.run(config) or [tensor for tensor, _ in self.written])


@dataclass(frozen=True)
class Choice:
    """The fastest candidate of a problem.

    Attributes:
        config: The candidate.
        seconds: Time of a launch with it.
        default_seconds: Time of a launch with the default.
        dropped: Why other candidates were dropped, by candidate.
    """

    config: Any
    seconds: float
    default_seconds: float
    dropped: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def launches(handle: Callable[[Launch], None]) -> Iterator[None]:
    """Have every launch of a tunable kernel reported, after it ran with the default.

    What ``handle`` leaves in the tensors that a launch writes is what the pass goes on with.
    """
    with ExitStack() as stack:
        for module, name in LAUNCHERS:
            reporting = _reporting(getattr(module, name), handle)
            stack.enter_context(patch.object(module, name, reporting))
        yield


def _reporting(launcher: Callable[..., Any], handle: Callable[[Launch], None]) -> Any:
    signature = inspect.signature(launcher)

    @functools.wraps(launcher)
    def launch(*args: Any, **options: Any) -> Any:
        problems: list[tuple[str, Sequence[Any]]] = []

        def default(candidates: Sequence[Any], _: object, kernel: str, *problem: Any) -> Any:
            problems.append((tuning.key(kernel, problem), candidates))
            return candidates[0]

        given = signature.bind(*args, **options).arguments
        out, amax, other = (given.get(name) for name in ("out", "amax", "other"))
        adds = out is not None and other is not None and out.data_ptr() == other.data_ptr()
        written = [] if out is None else [(out, out.clone() if adds else None)]
        written += [] if amax is None else [(amax, amax.clone())]
        written += [(tensor, None) for tensor in given.get("stats") or ()]
        with patch.object(tuning, "config", default):
            result = launcher(*args, **options)
        for key, candidates in problems:
            run = functools.partial(_run, launcher, args, options)
            handle(Launch(key, candidates, run, written))
        return result

    return launch


def _run(launcher: Callable[..., Any], args: Any, options: Any, config: Any) -> Any:
    return launcher(*args, **{**options, "config": config})


def choose(launch: Launch, timer: Timer) -> Choice:
    """Time every candidate that gives the default's result; that is left behind."""
    default, *others = launch.candidates
    expected = [tensor.clone() for tensor in launch.results(default)]
    seconds = {default: timer(lambda: launch.run(default))}
    dropped = {}
    for config in others:
        try:
            results = launch.results(config)
        except (TritonError, RuntimeError) as error:
            dropped[str(config)] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            continue
        wrong = [
            f"its result differs by {_difference(mine, theirs):.2g}"
            for mine, theirs in zip(results, expected, strict=True)
            # Another order of float32 sums, and what that does to rounding.
            if not _difference(mine, theirs) <= max(1e-5, torch.finfo(mine.dtype).eps)
        ]
        if wrong:
            dropped[str(config)] = wrong[0]
            continue
        seconds[config] = timer(lambda config=config: launch.run(config))  # type: ignore[misc]
    launch.results(default)
    best = min(seconds, key=lambda config: seconds[config])
    return Choice(best, seconds[best], seconds[default], dropped)


def _difference(result: Tensor, expected: Tensor) -> float:
    """Relative difference in the Euclidean norm, by slices: both may fill half the memory."""
    squares = torch.zeros(2, dtype=torch.float64, device=result.device)
    slices = (torch.atleast_1d(tensor).split(1) for tensor in (result, expected))
    for mine, theirs in zip(*slices, strict=True):
        exact = theirs.double()
        squares[0] += (mine.double() - exact).square().sum()
        squares[1] += exact.square().sum()
    return (squares[0] / squares[1]).sqrt().item() if squares[0] != 0 else 0.0


def cold(run: Callable[[], object]) -> float:
    """Median seconds of a launch that finds none of its operands in the L2 cache."""
    return 1e-3 * triton.testing.do_bench(run, return_mode="median")


def tune(
    run_pass: Callable[[], object],
    timer: Timer = cold,
    report: Callable[[str, int, int], None] = lambda key, done, total: None,
) -> dict[str, Choice]:
    """Choose for every problem that a pass meets; the pass is run twice.

    Args:
        run_pass: The pass.
        timer: Measures the seconds of a launch.
        report: Called with a problem, how many are done, and their number.

    Returns:
        Choices by key.
    """
    problems: set[str] = set()
    with launches(lambda launch: problems.add(launch.key)):
        run_pass()
    chosen: dict[str, Choice] = {}

    def handle(launch: Launch) -> None:
        if launch.key not in chosen:
            report(launch.key, len(chosen), len(problems))
            chosen[launch.key] = choose(launch, timer)

    with launches(handle):
        run_pass()
    return chosen


def save(
    chosen: Mapping[str, Choice], device: torch.device | str, *, packaged: bool = False
) -> Path:
    """Add choices to the device's table, at once or not at all; returns its file.

    Args:
        chosen: What :func:`tune` found.
        device: Device that it was found on.
        packaged: Write the package's table, to be committed, instead of the user's.
    """
    configs = {key: asdict(choice.config) for key, choice in chosen.items()}
    major, minor = torch.cuda.get_device_capability(device)
    about = {"capability": 10 * major + minor, "triton": triton.__version__}
    path = tuning.TABLES.save(device, configs, packaged=packaged, **about)
    tuning.forget_tables()
    return path


def recipe_pass(
    recipe: Recipe, batch: int, weights: Weights, training: bool, device: torch.device
) -> Callable[[], object]:
    """A pass, or a training step, of a recipe's planned decoder in bfloat16, and detokenisation."""
    spec = recipe.decoder
    torch.manual_seed(0)
    with device:
        decoder = HyperConvDecoder(spec.features, spec.kernel_size)
    decoder.requires_grad_(training).to(torch.bfloat16)
    condition = torch.randn(batch, *spec.features[0], device=device, dtype=torch.bfloat16)
    plan = plan_decoder(
        spec.features,
        spec.kernel_size,
        calibrate(device, torch.bfloat16, fused_2d_dft=True),
        batch=batch,
        memory=None if training else 0.6 * torch.cuda.mem_get_info(device)[0],
        weights="streamed" if training else weights.value,
        training=training,
    )
    decoder.set_plan(plan)
    layout = TokenLayout.from_dict(GeneratorConfig.from_recipe(recipe).layout)
    if layout.scale == "static":  # as if fitted
        size = layout.num_tokens, *layout.token_shape
        layout.set_statistics(torch.zeros(size), torch.ones(layout.num_tokens, 1, 1))
    layout.to(device)

    def step() -> None:
        decoder(condition).square().mean().backward()
        decoder.zero_grad()

    @torch.no_grad()
    def generate() -> None:
        # An engine's first pass launches kernels, while later ones replay a graph.
        targets = layout.targets(device)
        decoder.make_engine(targets)
        layout.detokenize_to_cpu(decoder(condition))
        if decoder.engine is not None and not targets.border:
            decoder.engine.weights(condition)

    return step if training else generate


def main(
    recipe: Annotated[str, typer.Option(help="A recipe's name or file, or 'all'.")] = "all",
    batch: Annotated[int, typer.Option(help="Adapters per pass.", min=1)] = 1,
    weights: Annotated[
        Weights, typer.Option(help="How transformed weights are kept.")
    ] = Weights.cached,
    training: Annotated[
        bool, typer.Option("--training", help="A training step instead; weights streamed.")
    ] = False,
    into_package: Annotated[
        bool, typer.Option("--into-package", help="Write the package's table, to be committed.")
    ] = False,
) -> None:
    """Tune the kernels at a recipe's shapes."""
    if not torch.cuda.is_available():
        raise SystemExit("bench.tune times Triton kernels: it needs an NVIDIA GPU.")
    device = torch.device("cuda", torch.cuda.current_device())
    for name in recipe_names() if recipe == "all" else [recipe]:
        run_pass = recipe_pass(Recipe.load(name), batch, weights, training, device)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bars:
            bar = bars.add_task(name, total=None)

            def report(key: str, done: int, total: int, bar: Any = bar, bars: Any = bars) -> None:
                bars.update(bar, description=key, completed=done, total=total)

            chosen = tune(run_pass, report=report)
        path = save(chosen, device, packaged=into_package)
        _print(name, chosen)
        console.print(f"Wrote [bold]{path}[/bold].")
        del run_pass
        gc.collect()
        torch.cuda.empty_cache()


def _print(name: str, chosen: Mapping[str, Choice]) -> None:
    table = Table("problem", "blocks", title=name, box=None)
    for column in ("us", "default us"):
        table.add_column(column, justify="right")
    for key, choice in chosen.items():
        blocks = " ".join(map(str, asdict(choice.config).values()))
        times = (f"{1e6 * seconds:.1f}" for seconds in (choice.seconds, choice.default_seconds))
        table.add_row(key, blocks, *times)
    console.print(table)
    for key, choice in chosen.items():
        for config, reason in choice.dropped.items():
            console.print(f"{key}: dropped {config}: {reason}", markup=False)


if __name__ == "__main__":
    typer.run(main)
