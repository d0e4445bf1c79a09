"""The probe of a device, on the CPU of whoever runs this: speeds are not judged, only that they are speeds."""

import pytest
import torch

from workers.measure import bandwidth
from workers.protocol.errors import WorkerError
from workers.protocol.specs import ProbeSpec


def test_probe_names_the_device_and_its_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "_BUFFER_BYTES", 2**24)

    found = bandwidth.probe_device(ProbeSpec(device="cpu"))

    assert found.device == "cpu"
    assert found.device_name
    assert found.num_threads == torch.get_num_threads()
    assert (found.uuid, found.cuda) == ("", "")
    # a memory slower than a disk or faster than any cache is no measurement
    assert 1e7 < found.read_bytes_per_s < 1e14


def test_speed_is_bytes_over_the_median_time(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([9.0, 9.0, 2.0, 1.0, 2.0, 3.0, 2.0, 2.0, 8.0])
    monkeypatch.setattr(bandwidth, "_seconds", lambda read, device: next(times))

    assert bandwidth.read_bytes_per_s(torch.device("cpu"), 4096) == 4096 / 2.0


def test_probe_of_a_device_that_is_not_here_says_so() -> None:
    with pytest.raises(WorkerError, match="cuda:31"):
        bandwidth.probe_device(ProbeSpec(device="cuda:31"))
