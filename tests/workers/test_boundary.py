"""Every exception becomes a code, and only the log learns the rest."""

import errno

import pytest
import torch

from workers.boundary import Failure, attempt, failure_code, is_device_lost
from workers.protocol.errors import WorkerError, WorkerErrorCode


def raising(error: BaseException) -> object:
    def action() -> object:
        raise error

    return attempt(action, what="the test")


def test_a_result_passes() -> None:
    assert attempt(lambda: 5, what="the test") == 5


def test_a_worker_error_keeps_its_code_and_message() -> None:
    error = WorkerError(WorkerErrorCode.UNSAFE_CHECKPOINT, "no pickles")

    assert raising(error) == Failure(code=WorkerErrorCode.UNSAFE_CHECKPOINT, message="no pickles")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        pytest.param(MemoryError(), WorkerErrorCode.INSUFFICIENT_MEMORY, id="python-memory"),
        pytest.param(
            torch.OutOfMemoryError("CUDA out of memory"), WorkerErrorCode.INSUFFICIENT_MEMORY, id="cuda-memory"
        ),
        pytest.param(OSError(errno.ENOSPC, "full", "/secret"), WorkerErrorCode.DISK_FULL, id="disk"),
        pytest.param(OSError(errno.EIO, "broken", "/secret"), WorkerErrorCode.VARIANT_CORRUPT, id="read-error"),
        pytest.param(KeyError("secret"), WorkerErrorCode.INTERNAL, id="anything"),
    ],
)
def test_an_exception_becomes_a_code_without_its_text(
    error: Exception, code: WorkerErrorCode, caplog: pytest.LogCaptureFixture
) -> None:
    failure = raising(error)

    assert isinstance(failure, Failure)
    assert failure.code is code
    assert not failure.is_fatal
    assert "secret" not in failure.message
    assert "Traceback" in caplog.text


def test_torch_out_of_memory_on_the_cpu_is_recognized() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)

    assert failure_code(caught.value) is WorkerErrorCode.INSUFFICIENT_MEMORY


def test_the_traceback_is_left_to_the_last_try(caplog: pytest.LogCaptureFixture) -> None:
    attempt(lambda: 1 // 0, what="a step of 2 rows", is_retried=True)

    assert "ZeroDivisionError" in caplog.text
    assert "Traceback" not in caplog.text


def test_the_end_of_the_socket_passes_through() -> None:
    with pytest.raises(BrokenPipeError):
        raising(BrokenPipeError())


def test_a_keyboard_interrupt_passes_through() -> None:
    with pytest.raises(KeyboardInterrupt):
        raising(KeyboardInterrupt())


def test_no_error_is_fatal_where_there_is_no_device_to_lose() -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without CUDA")
    assert not is_device_lost(RuntimeError("CUDA error: device-side assert triggered"))
