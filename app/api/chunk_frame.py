"""The frame that every chunk of one stream shares, written once: only the choice in its middle changes."""

import secrets
import time

from app.api.sse import event, json_string
from app.api.usage import request_metrics, usage, usage_json
from app.core.generation import Run
from app.schemas.sampling import StreamOptions


class ChunkFrame:
    """`data: {id, object, created, model, choices: [...], usage}` around one choice's JSON."""

    def __init__(self, prefix: str, kind: str, run: Run, options: StreamOptions | None) -> None:
        self._run = run
        self._envelope = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": run.variant.id,
            "system_fingerprint": None,
        }
        fields = ",".join(
            f'"{name}":{value if isinstance(value, int) else "null" if value is None else json_string(str(value))}'
            for name, value in self._envelope.items()
        )
        self._head = f'data: {{{fields},"choices":['
        self._has_usage = bool(options and options.include_usage)
        self._is_continuous = bool(options and options.continuous_usage_stats)
        self._tail = ',"usage":null}\n\n' if self._has_usage else "}\n\n"

    def around(self, choice: str, fields: str = "") -> str:
        """One event with this choice. fields: JSON that stands beside `choices`, beginning with its comma."""
        if self._is_continuous:
            return f'{self._head}{choice}]{fields},"usage":{usage_json(self._run)}}}\n\n'
        return f"{self._head}{choice}]{fields}{self._tail}"

    def end(self) -> str:
        """The chunk with the whole usage and no choice, if it was asked for."""
        if not self._has_usage:
            return ""
        of_run = {"usage": usage(self._run), "metrics": request_metrics(self._run)}
        return event({**self._envelope, "choices": [], **of_run}).decode()
