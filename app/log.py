"""How log lines look: one line per event, the fields that were passed as `extra` behind the message.

Prompts and outputs are never logged; variant, job and request ids are.
"""

import logging
import sys
from typing import Final

# What every LogRecord carries by itself; the rest was given by the caller as `extra`.
_OWN_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class FieldFormatter(logging.Formatter):
    """`2026-01-31T12:00:00 INFO app.core.catalog: variant is ready variant=a/int8`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # the name is logging's
        """The message and, behind it, the caller's own fields as key=value."""
        fields = "".join(f" {key}={value}" for key, value in vars(record).items() if key not in _OWN_FIELDS)
        return super().formatMessage(record) + fields


def configure_logging(level: str) -> None:
    """Send everything from `level` (debug, info, warning, error) up to stderr, once per process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FieldFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
