"""Detokenisation by kernel against the layout's own."""

from dataclasses import replace

import pytest
import torch
import triton

from dnd_fast.kernels.lora_scatter import LoraScatterTable
from dnd_fast.kernels.triton import detokenize as module
from dnd_fast.kernels.triton.codegen import SHARED_LIMIT
from dnd_fast.kernels.triton.detokenize import DetokenizeConfig, detokenize
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.lora.target_modules import LoraModule

SIZES = [(13, 30), (7, 1), (16, 12)]  # chunks of 6: cut, one column, exact


def make_layout(scale="static", rank=3, chunk=6):
    modules = [LoraModule(f"layers.{i}.proj", *pair) for i, pair in enumerate(SIZES)]
    return TokenLayout(
        modules, rank, lora_alpha=1, target_modules=["proj"], scale=scale, chunk=chunk
    )


def fitted(layout):
    torch.manual_seed(1)
    mean = torch.randn(layout.num_tokens, *layout.token_shape)
    layout.set_statistics(mean, torch.rand(layout.num_tokens, 1, 1))
    return layout


def scatter_of(layout, device="cpu"):
    return layout.targets(torch.device(device))


def compare(layout, dtype=torch.float32, out_dtype=torch.float32, rtol=1e-5, **options):
    """Strided random tokens through both; written into poisoned memory."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layout = layout.to(device)
    rows, columns = layout.token_shape
    tokens = torch.randn(2, columns, layout.num_tokens, rows, device=device).to(dtype)
    tokens = tokens.permute(0, 2, 3, 1)
    scatter = scatter_of(layout, device)
    out = torch.full((2, scatter.elements), torch.nan, dtype=out_dtype, device=device)
    detokenize(tokens, scatter, out, **options)
    expected = layout.detokenize(tokens)
    found = scatter.views(out)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].float(), tensor, rtol=rtol, atol=1e-6)


def test_targets_cover_every_element_once():
    layout = make_layout()
    scatter = scatter_of(layout)
    assert len(scatter.table) == layout.num_tokens
    found = torch.zeros(scatter.elements, dtype=torch.int64)
    for offset, columns, row_stride, column_stride in scatter.table.tolist():
        rows = torch.arange(layout.rank)[:, None] * row_stride
        found[offset + rows + torch.arange(columns) * column_stride] += 1
    assert (found == 1).all()


def test_views_are_the_tensors_in_order():
    layout = make_layout()
    scatter = scatter_of(layout)
    whole = torch.arange(scatter.elements)
    views = scatter.views(whole)
    assert {name: tuple(view.shape) for name, view in views.items()} == layout.tensor_shapes()
    assert torch.equal(torch.cat([view.flatten() for view in views.values()]), whole)


def test_mixed_ranks_are_refused():
    with pytest.raises(ValueError, match="of one rank"):
        LoraScatterTable.make({"x.lora_A.weight": (2, 8), "x.lora_B.weight": (8, 3)}, 8)


def test_more_than_32_bits_of_elements_are_refused():
    with pytest.raises(ValueError, match="2147483648 elements"):
        LoraScatterTable.make({"x.lora_A.weight": (1 << 16, 1 << 15)}, 1 << 15)


@pytest.mark.interpret
def test_wrong_arguments_are_refused():
    scatter = scatter_of(make_layout())
    out = torch.empty(1, scatter.elements)
    tokens = torch.empty(1, len(scatter.table), 3, 6)
    with pytest.raises(ValueError, match="tokens has shape"):
        detokenize(tokens, replace(scatter, border=True), out)
    with pytest.raises(ValueError, match="out has shape"):
        detokenize(tokens, scatter, out[:, 1:])
    with pytest.raises(ValueError, match="std is missing; expected mean and std together"):
        replace(scatter, mean=tokens[0])
    mean, std = tokens[0].mT.contiguous().mT, torch.empty(len(scatter.table), 1, 1)
    with pytest.raises(ValueError, match="contiguous, of shape"):
        replace(scatter, mean=mean, std=std)
    with pytest.raises(ValueError, match="carry their own mean and std"):
        replace(scatter, mean=tokens[0], std=std, border=True)


@pytest.mark.interpret
def test_an_empty_batch():
    scatter = scatter_of(make_layout())
    tokens = torch.empty(0, len(scatter.table), 3, 6)
    detokenize(tokens, scatter, torch.empty(0, scatter.elements))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.skipif(triton.knobs.runtime.interpret, reason="the interpreter needs none")
def test_without_a_gpu_it_says_so():
    with pytest.raises(ValueError, match="need an NVIDIA GPU"):
        compare(make_layout())


@pytest.mark.interpret
@pytest.mark.parametrize("scale", ["static", "border"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_equals_the_layout(scale, dtype):
    compare(make_layout(scale), dtype)


@pytest.mark.interpret
def test_static_statistics_over_several_column_blocks():
    compare(fitted(make_layout()), config=DetokenizeConfig(columns=2, num_warps=4))


@pytest.mark.interpret
@pytest.mark.parametrize(("rank", "chunk"), [(1, 6), (2, 1), (1, 1), (5, 64)])
def test_degenerate_sizes(rank, chunk):
    compare(fitted(make_layout(rank=rank, chunk=chunk)))


@pytest.mark.gpu
@pytest.mark.parametrize("scale", ["static", "border"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("chunk", [8, 512])
def test_on_the_gpu(chunk, scale, dtype):
    layout = make_layout(scale, rank=16, chunk=chunk)
    compare(layout, dtype)
    compare(layout, dtype, out_dtype=torch.bfloat16, rtol=2**-8)


@pytest.mark.gpu
def test_static_statistics_on_the_gpu():
    compare(fitted(make_layout(rank=16, chunk=512)), torch.bfloat16)


@pytest.mark.codegen
@pytest.mark.parametrize("capability", list(SHARED_LIMIT))
@pytest.mark.parametrize("scale", ["none", "static", "border"])
def test_compiles_without_spills(scale, capability, compiled):
    """Tokens of 16 x 512, as for a 7B model; static ones with every candidate."""
    scatter = LoraScatterTable.make({"x.lora_A.weight": (16, 2048)}, 512, "meta")
    border = 2 * (scale == "border")
    scatter = replace(scatter, border=border > 0)
    tokens = torch.empty(1, 4, 16 + border, 512 + border, dtype=torch.bfloat16, device="meta")
    out = torch.empty(1, scatter.elements, device="meta")
    if scale == "static":
        mean, std = torch.empty(4, 16, 512, device="meta"), torch.empty(4, 1, 1, device="meta")
        scatter = replace(scatter, mean=mean, std=std)
    for config in module.CANDIDATES if scale == "static" else module.CANDIDATES[:1]:
        compiled(
            f"{scale}, {config}",
            module,
            "_detokenize_kernel",
            capability,
            lambda c=config: detokenize(tokens, scatter, out, config=c),
        )


@pytest.mark.parametrize("scale", ["static", "border"])
def test_all_tokens_of_a_recipe(sized, scale):
    if sized.layout is None:
        compare(fitted(make_layout(scale)) if scale == "static" else make_layout(scale))
        return
    layout = TokenLayout.from_dict(sized.layout.to_dict() | {"scale": scale})
    compare(fitted(layout) if scale == "static" else layout, torch.bfloat16)
