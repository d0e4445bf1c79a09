"""The server that the table is played against."""

from dataclasses import dataclass
from pathlib import Path

import psutil
from raw_http import KEY

MAX_QUEUE = 4
SETTINGS = {
    "SLIMSERVE_MAX_QUEUE": str(MAX_QUEUE),
    "SLIMSERVE_API_KEYS": KEY,
    "SLIMSERVE_INFERENCE_KEYS": "infer",
    "SLIMSERVE_AUTOLOAD": "false",
    # a long answer takes a minute and more: it still runs when the queue is looked at
    "SLIMSERVE_ECHO_ITL_S": "0.02",
}


@dataclass(frozen=True)
class Server:
    """A running server with keys; models_dir: where it may load models from."""

    url: str
    models_dir: Path
    process: psutil.Process
