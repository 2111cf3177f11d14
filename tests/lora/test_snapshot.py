"""What a model is, put back after an error."""

import pytest
import torch
from torch import nn

from dnd_fast.lora.snapshot import unchanged_on_error


@torch.no_grad()
def interrupted(model, change):
    """Change the model, with the snapshot at hand, and be interrupted."""
    with unchanged_on_error(model) as snapshot:
        change(snapshot)
        raise KeyboardInterrupt


def test_what_is_written_to_twice():
    """What was kept last was put back last: an earlier adapter's biases were lost."""
    model = nn.Linear(2, 2)
    before = model.bias.clone()

    def write(snapshot):
        for value in (1, 2):
            snapshot.keep([model.bias])
            model.bias.fill_(value)

    with pytest.raises(KeyboardInterrupt):
        interrupted(model, write)
    assert torch.equal(model.bias, before)


def test_modules_parameters_and_flags():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    first, weight, values = model[0], model[0].weight, model[0].weight.clone()

    def change(snapshot):
        model[0] = nn.Identity()
        first.weight = nn.Parameter(torch.ones(3, 3))
        weight.data = torch.zeros(2, 2)
        weight.requires_grad_(False)
        model.eval().extra = 1

    with pytest.raises(KeyboardInterrupt):
        interrupted(model, change)
    assert model[0] is first
    assert first.weight is weight
    assert torch.equal(weight, values)
    assert weight.requires_grad
    assert model.training
    assert model[1].training
    assert not hasattr(model, "extra")
