"""Calibration: that it measures something plausible, and within its time."""

import time

from dnd_fast.kernels.device import DeviceProfile, calibrate, device_name


def test_calibration_measures_this_machine():
    start = time.perf_counter()
    profile = calibrate(seconds=0.2)
    assert time.perf_counter() - start < 5
    assert isinstance(profile, DeviceProfile)
    assert profile.name == f"{device_name()} (measured)"
    for rate in (profile.direct_flops, profile.gemm_flops, profile.transform_flops):
        assert 1e8 < rate < 1e15
    assert 1e8 < profile.bandwidth < 1e13
