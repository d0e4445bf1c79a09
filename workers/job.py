"""The job process: one `StartJob` in, progress out, then `JobDone` or `Failed`, and the end of the process.

Each kind of job imports what it needs when it starts: inspecting a model must answer in a fraction of a second, and
importing torch alone takes longer.
"""

import errno
import os
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import psutil

from workers.checkpoint.save import disk_full
from workers.process import prepare
from workers.protocol.errors import WorkerError, WorkerErrorCode
from workers.protocol.framing import SocketChannel
from workers.protocol.messages import Failed, JobDone, JobProgress, StartJob, ToJob
from workers.protocol.recipes import AutoRecipe
from workers.protocol.specs import CompressSpec, InspectSpec, JobSpec, MeasureSpec, ProbeSpec, VerifySpec

# Jobs give way to serving workers wherever the two share cores.
_NICENESS = 10
_MIN_INTERVAL_S = 0.1

_TorchSpec = CompressSpec | VerifySpec | MeasureSpec | ProbeSpec


class FrontEndGoneError(ConnectionError):
    """The other end of the socket has closed: nobody waits for the result."""


class JobLink:
    """The job's side of the conversation: progress goes out, a wish to stop comes in."""

    def __init__(self, channel: SocketChannel[ToJob]) -> None:
        self._channel = channel
        self._sent_at_s = 0.0
        self._phase = ""

    def report(self, progress: JobProgress) -> None:
        """Send progress and the memory that the process holds.

        What follows within a tenth of a second in the same phase is left out, unless it is news.
        """
        now_s = time.monotonic()
        is_news = progress.error_after is not None or progress.phase != self._phase or progress.done >= progress.total
        if is_news or now_s - self._sent_at_s >= _MIN_INTERVAL_S:
            self._sent_at_s, self._phase = now_s, progress.phase
            rss_bytes = psutil.Process().memory_info().rss
            self._channel.send(msgspec.structs.replace(progress, rss_bytes=rss_bytes))

    def poll(self) -> None:
        """Raise if the job should end: WorkerError (cancelled) on any message, FrontEndGoneError at the end of file."""
        messages, is_open = self._channel.receive_available()
        if not is_open:
            raise FrontEndGoneError
        if messages:
            raise WorkerError(WorkerErrorCode.CANCELLED, "the job was cancelled; nothing of it is left on disk")


def main(fd: int) -> int:
    """Run the one job that comes over the socket. Returns 0 if it is done, 1 if it failed or nobody listens."""
    channel: SocketChannel[ToJob] = SocketChannel(prepare(fd), ToJob)
    start = channel.receive()
    if not isinstance(start, StartJob):
        return 1
    # a probe says what serving workers can have, which have not been made to give way
    if not isinstance(start.spec, ProbeSpec):
        os.nice(_NICENESS)
    try:
        answer = _run(start.spec, JobLink(channel))
        channel.send(answer)
    except ConnectionError:
        return 1
    return 1 if isinstance(answer, Failed) else 0


def _run(spec: JobSpec, link: JobLink) -> JobDone | Failed:
    try:
        # Cancelled already? Then not even the imports are worth their seconds.
        link.poll()
        if isinstance(spec, InspectSpec):
            return _inspect(spec, link)
    except WorkerError as error:
        return Failed(code=error.code, message=error.message)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return Failed(code=WorkerErrorCode.DISK_FULL, message=disk_full().message)
    return _run_with_torch(spec, link)


def _run_with_torch(spec: _TorchSpec, link: JobLink) -> JobDone | Failed:
    import torch

    from workers.boundary import Failure, attempt

    if isinstance(spec, CompressSpec) and spec.memory_bytes is not None:
        # Data and private mappings: files that are only read do not count.
        resource.setrlimit(resource.RLIMIT_DATA, (spec.memory_bytes, spec.memory_bytes))
    if spec.num_threads is not None:
        torch.set_num_threads(spec.num_threads)
    result = attempt(_action(spec, link), what="job")
    if not isinstance(result, Failure):
        return result
    is_memory = result.code is WorkerErrorCode.INSUFFICIENT_MEMORY
    return Failed(code=result.code, message=_out_of_memory(spec) if is_memory else result.message)


def _out_of_memory(spec: _TorchSpec) -> str:
    """What the user of a job can do about it."""
    if not isinstance(spec, CompressSpec):
        return "the job ran out of memory; unload variants and try again"
    way_out = "fewer or shorter calibration samples need less"
    if spec.memory_bytes is None:
        return f"the job ran out of memory; {way_out}, and unloading variants gives it more"
    return (
        f"the job ran out of memory at its limit of {spec.memory_bytes:,} bytes (SLIMSERVE_JOB_MEMORY_BYTES); "
        f"it needs one layer, its inputs and about 400 MB for the program: raise the limit; {way_out}"
    )


def _action(spec: _TorchSpec, link: JobLink) -> Callable[[], JobDone]:
    if isinstance(spec, CompressSpec):
        return partial(_compress, spec, link)
    if isinstance(spec, MeasureSpec):
        return partial(_measure, spec, link)
    if isinstance(spec, ProbeSpec):
        return partial(_probe, spec)
    return partial(_verify, spec, link)


def _compress(spec: CompressSpec, link: JobLink) -> JobDone:
    if isinstance(spec.recipe, AutoRecipe):
        from workers.auto.search import compress_within_budget

        return JobDone(compressed=compress_within_budget(spec, link.report, link.poll))
    from workers.compress.pipeline import compress_checkpoint

    return JobDone(compressed=compress_checkpoint(spec, link.report, link.poll))


def _verify(spec: VerifySpec, link: JobLink) -> JobDone:
    from workers.measure.verify import verify_variant

    return JobDone(verified=verify_variant(spec, link.report, link.poll))


def _measure(spec: MeasureSpec, link: JobLink) -> JobDone:
    from workers.measure.comparison import measure_variant

    return JobDone(measured=measure_variant(spec, link.report, link.poll))


def _probe(spec: ProbeSpec) -> JobDone:
    from workers.measure.bandwidth import probe_device

    return JobDone(probed=probe_device(spec))


def _inspect(spec: InspectSpec, link: JobLink) -> JobDone:
    from workers.checkpoint.base import describe_base

    target = Path(spec.target_dir)
    folder = Path(spec.path) if spec.path is not None else _fetch(spec, target, link)
    return JobDone(base=describe_base(folder, target))


def _fetch(spec: InspectSpec, target: Path, link: JobLink) -> Path:
    from workers.checkpoint.hub import download

    if spec.hub_id is None:
        raise WorkerError(WorkerErrorCode.INVALID_REQUEST, "name a folder or a model of the hub")
    return download(spec.hub_id, spec.revision, target, _byte_progress("downloading", link))


def _byte_progress(phase: str, link: JobLink) -> Callable[[int, int], None]:
    def on_progress(done: int, total: int) -> None:
        link.report(JobProgress(phase=phase, done=done, total=total))
        link.poll()

    return on_progress
