"""The one place on the device side where any exception becomes an answer.

A request, a load or a job that fails must end with a code and a message its user can read, and must not take its
neighbours along. What only the operator may see (the traceback) goes to the log.
"""

import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from workers.protocol.errors import WorkerError, WorkerErrorCode

logger = logging.getLogger(__name__)

T = TypeVar("T")

# torch reports a failed allocation on the CPU as a plain RuntimeError with one of these in its text.
_CPU_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory")

_CODE_OF_ERRNO = {
    errno.ENOSPC: WorkerErrorCode.DISK_FULL,
    errno.EDQUOT: WorkerErrorCode.DISK_FULL,
    errno.ENOMEM: WorkerErrorCode.INSUFFICIENT_MEMORY,
    errno.EIO: WorkerErrorCode.VARIANT_CORRUPT,
}

_MESSAGE_OF_CODE = {
    WorkerErrorCode.INSUFFICIENT_MEMORY: "the device ran out of memory; use a smaller variant or shorter requests",
    WorkerErrorCode.DISK_FULL: "the disk is full; free space and try again",
    WorkerErrorCode.VARIANT_CORRUPT: "reading the files of the model failed; check the disk and fetch the model again",
    WorkerErrorCode.INTERNAL: "an unexpected error; the server's log has the details",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What went wrong, for the user; is_fatal: the device itself is lost, only a new process can go on."""

    code: WorkerErrorCode
    message: str
    is_fatal: bool = False


def attempt(action: Callable[[], T], *, what: str, is_retried: bool = False) -> T | Failure:
    """The action's result, or why there is none. `what` names the action in the log and holds no user text.

    is_retried: the caller will try again in parts; the traceback is left to the part that fails for good.
    The end of the socket is not a failure of the action: OSErrors of a connection pass through.
    """
    try:
        return action()
    except WorkerError as error:
        logger.warning("%s: %s: %s", what, error.code.value, error.message)
        return Failure(code=error.code, message=error.message)
    except ConnectionError:
        raise
    except Exception as error:
        code = failure_code(error)
        if is_retried:
            logger.warning("%s failed: %s (%s); trying its parts", what, code.value, type(error).__name__)
        else:
            logger.exception("%s failed: %s", what, code.value)
        return Failure(code=code, message=_MESSAGE_OF_CODE[code], is_fatal=is_device_lost(error))


def failure_code(error: BaseException) -> WorkerErrorCode:
    """Which code an exception that nobody foresaw gets: memory, disk or internal."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return WorkerErrorCode.INSUFFICIENT_MEMORY
    if isinstance(error, RuntimeError) and any(text in str(error) for text in _CPU_OUT_OF_MEMORY):
        return WorkerErrorCode.INSUFFICIENT_MEMORY
    if isinstance(error, OSError) and error.errno is not None:
        return _CODE_OF_ERRNO.get(error.errno, WorkerErrorCode.INTERNAL)
    return WorkerErrorCode.INTERNAL


def is_device_lost(error: BaseException) -> bool:
    """True if the accelerator's context is poisoned.

    A device assert or an illegal access fails every later call, a rejected launch does not: so ask the device.
    """
    is_candidate = isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)
    if not is_candidate or not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
