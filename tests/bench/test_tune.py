"""Tuning: what it times, drops, chooses and writes; and that every table's kernels compile."""

import dataclasses
import itertools
import json

import pytest
import torch

from dnd_fast import HyperConvDecoder
from dnd_fast.bench import tune
from dnd_fast.kernels import device, device_tables
from dnd_fast.kernels.device import PROFILES
from dnd_fast.kernels.device_tables import DeviceTables
from dnd_fast.kernels.fft.tiling import FFTConvPlan
from dnd_fast.kernels.fft.weight import TransformedWeight
from dnd_fast.kernels.lora_scatter import LoraScatterTable
from dnd_fast.kernels.planner.cost_model import decoder_convolutions, plan_decoder
from dnd_fast.kernels.triton import (
    bin_gemm,
    detokenize,
    dft_forward,
    dft_inverse,
    direct_conv,
    layer_norm,
    tuning,
)
from dnd_fast.kernels.triton.block import PackedBlock, hyper_conv_block_triton
from dnd_fast.kernels.triton.checks import Config
from dnd_fast.kernels.triton.codegen import SHARED_LIMIT, compile_launch
from dnd_fast.kernels.triton.fft_conv import PackedWeight, Workspace

MODULES = (dft_forward, dft_inverse, bin_gemm, direct_conv, layer_norm, detokenize)
FEATURES = [(3, 5, 4), (2, 6, 7)]
FIRST, SLOW, FAST, WRONG, BROKEN = (Config(16, 16, size, 1, 1) for size in (1, 2, 3, 4, 5))


def launch_of(out):
    """Writes ones; with a wrong config something else, with a broken one nothing."""

    def run(config):
        if config == BROKEN:
            raise RuntimeError("no such blocks\nat all")
        out.fill_(1.1 if config == WRONG else 1.0)

    return tune.Launch("a", (FIRST, SLOW, FAST, WRONG, BROKEN), run, [(out, out.clone())])


def test_the_fastest_right_candidate_is_chosen():
    times = iter([3.0, 4.0, 2.0])
    found = tune.choose(launch_of(torch.zeros(3)), lambda run: (run(), next(times))[1])
    assert (found.config, found.seconds, found.default_seconds) == (FAST, 2.0, 3.0)
    assert found.dropped == {
        str(WRONG): "its result differs by 0.1",
        str(BROKEN): "RuntimeError: no such blocks",
    }


def test_what_was_dropped_is_shown():
    choice = tune.choose(launch_of(torch.zeros(3)), lambda run: 1.0)
    with tune.console.capture() as shown:
        tune._print("a recipe", {"dft_forward 1x2": choice})
    assert "1000000.0" in shown.get()
    assert "no such blocks" in shown.get()


@pytest.mark.parametrize("found", [torch.tensor(2.0), torch.full((3, 2), torch.nan)])
def test_difference(found):
    assert tune._difference(found, found.clone().fill_(1.0)) == pytest.approx(
        found.flatten()[0].item() - 1, nan_ok=True
    )
    zeros = torch.zeros(2)
    assert tune._difference(zeros, zeros) == 0
    assert tune._difference(zeros + 1, zeros) == torch.inf


def test_the_default_wins_a_tie():
    assert tune.choose(launch_of(torch.zeros(3)), lambda run: 1.0).config == FIRST


@pytest.fixture
def a_gpu(tmp_path, monkeypatch):
    """A GPU that has no tables yet, and folders for them."""
    tables = DeviceTables(tmp_path / "package/configs", "configs")
    monkeypatch.setattr(tuning, "TABLES", tables)
    monkeypatch.setenv("DND_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(device, "device_name", lambda device: "A GPU")
    monkeypatch.setattr(device_tables, "device_name", lambda device: "A GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    tuning.forget_tables()
    yield tmp_path
    tuning.forget_tables()


@pytest.mark.parametrize("packaged", [False, True])
def test_tables_are_added_to(a_gpu, packaged):
    tune.save({"b": tune.Choice(FAST, 1.0, 2.0)}, "cuda", packaged=packaged)
    path = tune.save({"a": tune.Choice(SLOW, 1.0, 2.0)}, "cuda", packaged=packaged)
    assert [file for file in a_gpu.rglob("*") if file.is_file()] == [path]
    assert path == a_gpu / ("package" if packaged else "cache") / "configs/A-GPU.json"
    table = json.loads(path.read_text())
    assert (table["device"], table["capability"]) == ("A GPU", 90)
    assert table["configs"] == {"a": dataclasses.asdict(SLOW), "b": dataclasses.asdict(FAST)}


@pytest.mark.interpret
def test_a_pass_is_tuned_and_unchanged(monkeypatch):
    """Every launch's problem, also where a kernel adds to what its output held before."""
    small = tuple(Config(16, 16, size, 1, 1) for size in (16, 32))
    for module, name in ((dft_forward, "HALF"), (dft_forward, "NORMED"), (dft_inverse, "HALF")):
        monkeypatch.setattr(module, name, small)
    torch.manual_seed(0)
    decoder = HyperConvDecoder(FEATURES, 3, impl="triton").requires_grad_(False).half()
    tiled, direct = (
        plan_decoder(FEATURES, 3, PROFILES["cpu"], weights="streamed", algorithm=algorithm)
        for algorithm in ("fft", "direct")
    )
    mixed = (*direct.convolutions[:1], *tiled.convolutions[1:2], *direct.convolutions[2:])
    decoder.set_plan(dataclasses.replace(direct, convolutions=mixed))  # a_height adds
    scatter = LoraScatterTable.make({"x.lora_A.weight": (6, 14)}, 7)
    decoder.make_engine(scatter)
    x, results = torch.randn(1, *FEATURES[0]).half(), []

    @torch.no_grad()
    def run_pass():
        results.append(torch.cat([decoder(x).flatten(), decoder.engine.weights(x).flatten()]))

    run_pass()
    reported = []
    chosen = tune.tune(run_pass, lambda run: 1.0, lambda *progress: reported.append(progress))
    assert all(torch.equal(result, results[0]) for result in results)
    assert [done for _, done, _ in reported] == list(range(len(chosen)))
    assert {total for _, _, total in reported} == {len(chosen)}
    assert not any(choice.dropped for choice in chosen.values())
    kernels = {key.split()[0] for key in chosen}
    assert kernels == {"dft_forward", "bin_gemm", "dft_inverse", "direct_conv", "layer_norm_stats"}


def test_says_that_it_needs_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("for machines without a GPU")
    with pytest.raises(SystemExit, match="needs an NVIDIA GPU"):
        tune.main()


def meta(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def meta_block(features, tiled, stored):
    """A block whose parameters need not exist, its weights stored in a dtype."""
    (_, *norm_shape), shape_out = features
    tiles, weights = {}, {}
    for shape in decoder_convolutions(features, 9):
        name = shape.convolution.name
        channels = shape.channels_out, shape.channels_in
        if not tiled:
            weights[name] = meta(81, *channels)
            continue
        plan = FFTConvPlan.make(shape.height, shape.width, 9, 18, 18)
        values = meta(plan.bins, 2, *channels, dtype=stored)
        scale = meta(plan.bins, 1, channels[0], dtype=torch.float32)
        kept = TransformedWeight(values, scale if stored == torch.int8 else None)
        raw = meta(*channels, 9, 9)
        tiles[name], weights[name] = plan, PackedWeight(raw if stored is None else kept)
    norm = meta(*norm_shape), meta(*norm_shape), meta(1, dtype=torch.float32)
    biases = meta(*shape_out[1:]), meta(shape_out[0])
    return PackedBlock(shape_out, 9, tiles, weights, *norm, *biases)


def words_of(key):
    """Of a problem, without its sizes."""
    return key.rpartition(" ")[0]


def run_every_kernel():
    """In all the ways a table distinguishes: aligned and odd channels, weights of every kind."""
    for features in ([(64, 48, 32), (64, 40, 96)], [(3, 50, 25), (7, 30, 125)]):
        for tiled, stored in itertools.product((True, False), (torch.float16, torch.int8, None)):
            block = meta_block(features, tiled, stored)
            out_stats = meta(2, 1, features[1][0], dtype=torch.float32).unbind()
            hyper_conv_block_triton(meta(1, *features[0]), block, Workspace(), out_stats=out_stats)
            n, rank, chunk = features[1]
            scales = meta(n, rank, chunk, dtype=torch.float32), meta(n, 1, 1, dtype=torch.float32)
            table = meta(n, 4, dtype=torch.int32)
            shapes = {"x.lora_A.weight": (rank, n * chunk)}
            scatter = LoraScatterTable(shapes, rank, chunk, table, *scales)
            hyper_conv_block_triton(meta(1, *features[0]), block, Workspace(), scatter=scatter)
    for channels in (64, 25):
        for dtype in (torch.float16, torch.float32):
            x, dy = (meta(40, planes, 9, channels, dtype=dtype) for planes in (3, 2))
            out = meta(40, 2, channels, channels, dtype=torch.float32)
            tune.triton_conv.bin_gemm_weight_gradient(dy, x, out)
    scatter = LoraScatterTable.make({"x.lora_A.weight": (16, 2048)}, 512, "meta")
    for border in (0, 2):
        tokens = meta(1, 4, 16 + border, 512 + border)
        out = meta(1, scatter.elements, dtype=torch.float32)
        detokenize.detokenize(tokens, dataclasses.replace(scatter, border=border > 0), out)


@pytest.fixture
def launched(monkeypatch):
    """What kernels are launched with: pairs of a kernel and its arguments."""
    found = []

    def recorder(kernel):
        class Recorder:
            def __getitem__(self, grid):
                return lambda **arguments: found.append((kernel, arguments))

        return Recorder()

    for module in MODULES:
        monkeypatch.setattr(module, "require_gpu", lambda *tensors: None)
        for name in [each for each in vars(module) if each.endswith("_kernel")]:
            monkeypatch.setattr(module, name, recorder(getattr(module, name)))
    return found


def check_table(path, launched, note_compiled):
    """Compile every config of a table for its device."""
    table, known = json.loads(path.read_text()), {}
    with tune.launches(lambda launch: known.setdefault(words_of(launch.key), launch)):
        run_every_kernel()
    for key, fields in table["configs"].items():
        launch = known[words_of(key)]
        launched.clear()
        launch.run(type(launch.candidates[0])(**fields))
        assert launched
        for kernel, arguments in launched:
            report = compile_launch(kernel, arguments, table["capability"])
            note_compiled(kernel.__name__, f"{path.stem}, {key}", table["capability"], report)
            assert report["spills"] == 0
            assert report["shared"] <= SHARED_LIMIT[table["capability"]]


@pytest.mark.codegen
@pytest.mark.parametrize(
    "path", sorted(tuning.TABLES.packaged.glob("*.json")), ids=lambda path: path.stem
)
def test_committed_tables_compile_without_spills(path, launched, note_compiled):
    check_table(path, launched, note_compiled)


@pytest.mark.codegen
def test_a_table_is_used_and_compiles(a_gpu, monkeypatch, launched, note_compiled):
    """Of every kernel's last candidate; one problem of each kernel is compiled."""
    problems = {}
    with tune.launches(lambda launch: problems.setdefault(launch.key, launch)):
        run_every_kernel()
    last = {key: tune.Choice(launch.candidates[-1], 1.0, 1.0) for key, launch in problems.items()}
    path = tune.save(last, "cuda")

    chosen, find = [], tuning.config

    def on_a_gpu(candidates, device, kernel, *problem):
        found = find(candidates, torch.device("cuda"), kernel, *problem)
        chosen.append((tuning.key(kernel, problem), found))
        return found

    monkeypatch.setattr(tuning, "config", on_a_gpu)
    launched.clear()
    run_every_kernel()
    assert {key for key, _ in chosen} == set(last)
    assert all(found == last[key].config for key, found in chosen)
    blocks = {arguments.get("BLOCK_K") for kernel, arguments in launched}
    assert blocks >= {found.block_k for _, found in chosen if hasattr(found, "block_k")}

    first = {key.split()[0]: key for key in sorted(last)}
    path.unlink()
    tune.save({key: last[key] for key in first.values()}, "cuda")
    check_table(path, launched, note_compiled)
