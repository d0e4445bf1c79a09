"""Names of devices and dtypes, and memory as the process may use it."""

from pathlib import Path

import pytest
import torch

from workers import device
from workers.protocol.errors import WorkerError, WorkerErrorCode
from workers.protocol.specs import DtypeName

CPU = torch.device("cpu")


def test_auto_takes_what_is_there() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"

    assert device.resolve_device("auto").type == expected
    assert device.resolve_device("cpu") == CPU


@pytest.mark.parametrize("name", ["gpu", "", "cuda:", "cuda:x", "cuda:-1", "cuda:1000", "cpu:0", "meta", "cuda:²"])
def test_absent_or_unknown_device_is_an_invalid_request(name: str) -> None:
    with pytest.raises(WorkerError, match="device") as caught:
        device.resolve_device(name)

    assert caught.value.code is WorkerErrorCode.INVALID_REQUEST


@pytest.mark.parametrize(
    ("name", "stored", "has_bf16", "expected"),
    [
        ("auto", torch.float32, True, torch.float32),
        ("auto", torch.bfloat16, True, torch.bfloat16),
        ("auto", torch.bfloat16, False, torch.float32),
        ("auto", torch.float16, True, torch.bfloat16),
        ("auto", torch.float16, False, torch.float32),
        ("auto", torch.float64, True, torch.float32),
        ("bf16", torch.float32, False, torch.bfloat16),
        ("fp16", torch.float32, True, torch.float16),
        ("fp32", torch.bfloat16, True, torch.float32),
    ],
)
def test_dtype_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, name: DtypeName, stored: torch.dtype, has_bf16: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(device, "cpu_has_fast_bf16", lambda: has_bf16)

    assert device.resolve_dtype(name, CPU, stored) is expected


def test_memory_is_measured() -> None:
    before = device.memory_used_bytes(CPU)
    block = torch.ones(8 * 2**20)

    assert device.memory_used_bytes(CPU) - before > 0.9 * block.nbytes
    assert 0 < device.memory_free_bytes(CPU) < 2**50
    assert device.device_name(CPU)


def test_peak_stays_when_the_memory_is_given_back() -> None:
    block = torch.ones(2**26)
    held = device.memory_used_bytes(CPU)
    num_bytes = block.nbytes

    del block

    assert device.memory_used_bytes(CPU) < held - 0.9 * num_bytes
    # the kernel counts in batches: some hundred kB may be missing, of 268 MB
    assert device.memory_peak_bytes(CPU) > held - 2**21


def write_cgroup(folder: Path, names: tuple[str, str], limit: str, usage: int, cache: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\n")


V1, V2 = ("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current")


@pytest.mark.parametrize(
    ("line", "where", "names"),
    [("0::/", ".", V2), ("0::/a/b", "a", V2), ("4:cpu,memory:/docker/x", "memory/docker/x", V1), ("0::/../c", "c", V2)],
    ids=["v2-root", "v2-parent", "v1", "v2-outside-the-namespace"],
)
def test_limit_of_the_container_counts(tmp_path: Path, line: str, where: str, names: tuple[str, str]) -> None:
    membership = tmp_path / "membership"
    membership.write_text(f"9:cpuset:/\n{line}\n")
    write_cgroup(tmp_path / "fs" / where, names, "1000", usage=700, cache=200)

    assert device._cgroup_free_bytes(tmp_path / "fs", membership) == [500]


@pytest.mark.parametrize("limit", ["max", str(2**63 - 4096)])
def test_no_limit_is_no_limit(tmp_path: Path, limit: str) -> None:
    membership = tmp_path / "membership"
    membership.write_text("0::/\n")
    write_cgroup(tmp_path / "fs", V2, limit, usage=700, cache=0)

    assert device._cgroup_free_bytes(tmp_path / "fs", membership) == []
    assert device._cgroup_free_bytes(tmp_path / "fs", tmp_path / "absent") == []
