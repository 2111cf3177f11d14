"""What tokens cost to make and to unmake, on a CPU and by the kernel."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig

from dnd_fast import TokenLayout

from .test_layout import TINY, make_layout, random_state


@pytest.mark.parametrize("scale", ["static", "border"])
def test_detokenize_is_differentiable(scale):
    """Training through the adapter's effect needs exact gradients, border scales included."""
    layout = make_layout([(4, 3), (2, 4)], rank=2, chunk=2, scale=scale)
    if scale == "static":
        layout.fit(layout.tokenize(random_state(layout, 3)))
    tokens = layout.tokenize(random_state(layout, seed=1)).nan_to_num().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: tuple(layout.detokenize(t).values()), tokens)


class CountOps(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("scale", ["static", "border"])
def test_no_loop_over_tokens(scale):
    """Ten times the tokens, as many operations: the published loop took seconds per adapter."""

    def count(chunk, repeat):
        layout = make_layout([(120, 240)] * repeat, rank=2, chunk=chunk, scale=scale)
        state = random_state(layout)
        layout.detokenize(layout.tokenize(state))  # builds the index once
        with CountOps() as tokenize:
            tokens = layout.tokenize(state)
        with CountOps() as detokenize:
            layout.detokenize(tokens)
        return layout.num_tokens, tokenize.count, detokenize.count

    few, many, deep = count(120, 2), count(12, 2), count(120, 20)
    assert many[0] == deep[0] == 10 * few[0]
    assert many[1] <= few[1] + 2  # a copy more or less, depending on strides
    assert max(many[2], deep[2]) <= few[2] + 2


@pytest.mark.interpret
@pytest.mark.parametrize("scale", ["static", "border"])
def test_the_kernel_writes_what_detokenize_gives(scale, monkeypatch):
    torch.manual_seed(0)
    layout = TokenLayout.for_model(AutoConfig.for_model("qwen2", **TINY), 2, scale=scale)
    tokens = torch.randn(2, layout.num_tokens, *layout.token_shape) * 0.1
    if scale == "static":
        layout.fit(tokens + torch.randn_like(tokens))
    expected = layout.detokenize(tokens)
    monkeypatch.setattr("dnd_fast.lora.weight_layout.can_run_triton", lambda device, dtype: True)
    found = layout.unpack(layout.scatter(tokens).cpu())
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
