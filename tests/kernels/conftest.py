"""What tests of several kernels need: launches compiled for a GPU that need not be present, and the
largest convolutions of recipes."""

from collections import defaultdict
from dataclasses import dataclass, replace

import pytest
import torch
from torch.nn.functional import layer_norm

from dnd_fast.generator import GeneratorConfig
from dnd_fast.kernels.device import PROFILES
from dnd_fast.kernels.fft.tiling import FFTConvPlan
from dnd_fast.kernels.lora_scatter import LoraScatterTable
from dnd_fast.kernels.planner.cost_model import ConvPlan, plan_decoder
from dnd_fast.kernels.reference import CONVOLUTIONS
from dnd_fast.kernels.triton import layer_norm as layer_norm_stats_module
from dnd_fast.kernels.triton.block import image_order
from dnd_fast.kernels.triton.checks import LayerNorm
from dnd_fast.kernels.triton.codegen import SHARED_LIMIT, compile_launch
from dnd_fast.kernels.triton.layer_norm import layer_norm_stats
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.recipe import Recipe


@pytest.fixture
def launched(monkeypatch):
    """What a call launches a module's kernel with, on tensors that need not exist."""

    def record(module, kernel, call):
        found = {}
        with monkeypatch.context() as patch:
            for part in (layer_norm_stats_module, module):  # the first may be launched by others
                patch.setattr(part, "require_gpu", lambda *tensors: None)
                for name in [each for each in vars(part) if each.endswith("_kernel")]:
                    ignored = {} if (part, name) != (module, kernel) else found
                    patch.setattr(part, name, defaultdict(lambda to=ignored: to.update))
            call()
        return found

    return record


@pytest.fixture
def compiled(launched, note_compiled):
    """Compile what a call launches, and check that it fits into a processor's memories."""

    def compile_and_check(title, module, kernel, capability, call, multiplied=None):
        arguments = launched(module, kernel, call)
        found = compile_launch(getattr(module, kernel), arguments, capability)
        note_compiled(kernel, title, capability, found)
        assert found["spills"] == 0
        assert found["shared"] <= SHARED_LIMIT[capability]
        if multiplied in (torch.float16, torch.bfloat16):  # on tensor cores
            assert found["wgmma" if capability == 90 else "mma"] > 0
        return found

    return compile_and_check


def exact_stats(x):
    """LayerNorm's mean and reciprocal standard deviation over the last two dimensions."""
    rows = x.double().flatten(-2)
    return rows.mean(-1), (rows.var(-1, correction=0) + 1e-5).rsqrt()


@pytest.fixture
def check_stats():
    """Compare the statistics that a kernel wrote with those of what it stored."""

    def check(stats, stored):
        for found, expected in zip(stats, exact_stats(stored), strict=True):
            assert ((found - expected).abs() / expected.abs().clamp_min(1)).max().item() <= 2e-6

    return check


@dataclass(frozen=True)
class Sized:
    """A decoder's largest convolutions, as a block runs them; tests check slices of the results.

    Attributes:
        device, dtype: of the tensors.
        features: of the decoder.
        plans: the largest convolution of every name, with its tiles.
        layout: of the tokens; None for the tiny decoder.
    """

    device: torch.device
    dtype: torch.dtype
    features: list
    plans: dict[str, ConvPlan]
    layout: TokenLayout | None

    def view(self, shape, order, dtype=None):
        """Random ``[B, C, H, W]``, in memory as ``order`` says."""
        memory = [shape[order.index(dim)] for dim in range(4)]
        return torch.randn(memory, device=self.device).to(dtype or self.dtype).permute(order)

    def image(self, name):
        """Input of a convolution, its LayerNorm (None: it has none), and the outcome in float64."""
        shape, convolution = self.plans[name].shape, CONVOLUTIONS[name]
        order = image_order(convolution, convolution.source)
        x = self.view((1, shape.channels_in, shape.height, shape.width), order)
        if convolution.source != "x":
            return x, None, x.double()
        memory = x.permute([order.index(dim) for dim in range(4)])
        affine = [torch.randn(memory.shape[2:], device=self.device).to(self.dtype) for _ in "wb"]
        normed = layer_norm(memory.double(), memory.shape[2:], *(part.double() for part in affine))
        norm = LayerNorm(*layer_norm_stats(memory), *affine, order)
        return x, norm, normed.permute(order)

    def output(self, name):
        """Of a convolution: NaN everywhere; and an epilogue with random operands for it."""
        shape, convolution = self.plans[name].shape, CONVOLUTIONS[name]
        order, epilogue = image_order(convolution, convolution.target), convolution.epilogue
        sizes = 1, shape.channels_out, shape.height, shape.width
        out, other = (self.view(sizes, order) for _ in range(2))
        options = {"epilogue": epilogue}
        if epilogue == "tanh_bias":  # [L', C'], along N
            bias = torch.randn(shape.height, shape.channels_out, device=self.device)
            options["bias"] = bias.to(self.dtype).T[:, :, None].expand(-1, -1, shape.width)
        if epilogue == "bias_residual":
            options["bias"] = torch.randn(shape.channels_out, device=self.device).to(self.dtype)
        if epilogue in ("mix", "bias_residual"):
            options["other"] = other
        return out.fill_(torch.nan), options

    def scatter(self):
        """For the layer-wise convolution's result as tokens, half of A and half of B, scaled."""
        shape = self.plans["layerwise"].shape
        count, rank, chunk = shape.channels_out, shape.height, shape.width
        half = count // 2 * chunk
        shapes = {"x.lora_A.weight": (rank, half), "x.lora_B.weight": (count * chunk - half, rank)}
        mean = torch.randn(count, rank, chunk, device=self.device)
        std = torch.rand(count, 1, 1, device=self.device)
        return replace(LoraScatterTable.make(shapes, chunk, self.device), mean=mean, std=std)

    def finish(self, y, options, index):
        """An epilogue, in float64, of values at positions (b, c, h, w)."""
        epilogue, bias, other = (options.get(each) for each in ("epilogue", "bias", "other"))
        if epilogue == "tanh_bias":
            return y.tanh() + bias.double()[index[1:]]
        if epilogue == "mix":
            return (y + other[index].double()) / 3
        if epilogue == "bias_residual":
            return y + bias.double()[index[1]] + other[index].double()
        return y

    def positions(self, tiling, shape, columns):
        """(b, c, h, w) ``[P, columns]`` of all positions of some (tile, channel), and which of them
        are inside the image."""
        batch, channels, height, width = shape
        tile, c = columns // channels, columns % channels
        down, along = tile // (batch * tiling.tiles_w), tile // batch % tiling.tiles_w
        p = torch.arange(tiling.size_h * tiling.size_w, device=self.device)[:, None]
        h = down * tiling.step_h - tiling.before_h + p // tiling.size_w
        w = along * tiling.step_w - tiling.before_w + p % tiling.size_w
        inside = (h >= 0) & (h < height) & (w >= 0) & (w < width)
        sides = (tile % batch).expand_as(h), c.expand_as(h)
        return (*sides, h.clamp(0, height - 1), w.clamp(0, width - 1)), inside


@pytest.fixture(
    params=[
        pytest.param("tiny", marks=pytest.mark.interpret),
        pytest.param("common-sense-0.5b", marks=pytest.mark.gpu),
        pytest.param("coding-7b", marks=pytest.mark.gpu),
    ]
)
def sized(request):
    """One set of tests for three sizes, of which Triton's interpreter can afford the first."""
    torch.manual_seed(0)
    if request.param == "tiny":
        features, kernel, layout = [(3, 5, 4), (2, 6, 7)], 3, None
        device, dtype = torch.device("cpu"), torch.float16
    else:
        recipe = Recipe.load(request.param)
        features, kernel = recipe.decoder.features, recipe.decoder.kernel_size
        layout = TokenLayout.from_dict(GeneratorConfig.from_recipe(recipe).layout)
        device, dtype = torch.device("cuda"), torch.bfloat16
    plan = plan_decoder(features, kernel, PROFILES["h200"], algorithm="fft")
    by_size = sorted(plan.convolutions, key=lambda each: each.shape.direct_flops)
    plans = {choice.shape.convolution.name: choice for choice in by_size}  # the last one stays
    if request.param == "tiny":  # several tiles along most axes, as in a recipe
        for name, choice in plans.items():
            shape = choice.shape
            fft_plan = FFTConvPlan.make(shape.height, shape.width, kernel, 4, 4)
            plans[name] = replace(choice, fft_plan=fft_plan)
    return Sized(device, dtype, features, plans, layout)
