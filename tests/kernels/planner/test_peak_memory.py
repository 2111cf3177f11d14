"""The count of bytes against sums done by hand."""

import pytest
import torch

from dnd_fast.kernels.planner.peak_memory import peak_bytes


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_by_hand(device):
    def run():
        x = torch.zeros(1000, device=device)  # 4000
        y = x + 1  # 8000
        z = y.view(10, 100) * 2  # 12000: the peak
        del x, y  # 4000
        z += 1
        return torch.cat([z, z[:5]])  # 10000

    assert peak_bytes(run) == 12000


def test_what_was_there_before_counts_until_it_is_freed():
    held = {"old": torch.zeros(1000)}

    def run():
        new = held["old"] + 1  # 8000
        held.clear()  # 4000
        torch.cat([new, new[:500]])  # 10000 with the 4000 that are left

    assert peak_bytes(run, beside=held.values()) == 10000
    assert peak_bytes(lambda: torch.zeros(10)) == 40


def test_scratch_of_a_convolution():
    x, weight = torch.zeros(1, 2, 8, 8), torch.zeros(3, 2, 3, 3)
    expected = 2 * (4 * 3 * 8 * 8) + x.nbytes + weight.nbytes
    found = peak_bytes(lambda: torch.nn.functional.conv2d(x, weight, padding=1))
    assert found == expected
