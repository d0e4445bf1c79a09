"""What a GPU's driver tells of it: energy, and the memory of one process. Nothing without a GPU or without NVML.

nvidia-ml-py is optional (`pip install slimserve[cuda]`). Energy is the device's, so a neighbour's share is in it.
"""

import logging
from types import ModuleType

logger = logging.getLogger(__name__)


class DeviceMeter:
    """Reads the counters of one device. uuid: as torch and the driver name it, "" for none: then all is None."""

    def __init__(self, uuid: str) -> None:
        self._nvml = _nvml() if uuid else None
        self._handle: object = None
        if self._nvml is not None:
            try:
                self._handle = self._nvml.nvmlDeviceGetHandleByUUID(uuid)
            except self._nvml.NVMLError as error:
                logger.warning("the driver does not know this GPU: %s", error)
                self._nvml = None

    def energy_joules(self) -> float | None:
        """Energy that the device has taken since the driver was loaded."""
        if self._nvml is None:
            return None
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000
        except self._nvml.NVMLError:
            return None

    def process_bytes(self, pid: int) -> int | None:
        """Device memory of a process, its CUDA context included; None where the driver sees other process ids."""
        if self._nvml is None:
            return None
        try:
            processes = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except self._nvml.NVMLError:
            return None
        return next((process.usedGpuMemory for process in processes if process.pid == pid), None)

    def driver(self) -> str | None:
        """The driver's version."""
        return None if self._nvml is None else str(self._nvml.nvmlSystemGetDriverVersion())


def _nvml() -> ModuleType | None:
    """NVML, initialized; None where the library or the driver is not."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        logger.info("no counters of energy: %s", error)
        return None
    module: ModuleType = pynvml
    return module
