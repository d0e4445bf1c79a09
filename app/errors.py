"""Every error an HTTP client can get, as one tree. Only this file knows which status belongs to which failure.

A message names the value, the rule and the way out. It never holds a path, an address or the text of an exception.
"""

from collections.abc import Mapping
from typing import Final

from workers.protocol.errors import WorkerErrorCode

_HUB_RETRY_S: Final = 30


class ApiError(Exception):
    """The root: an HTTP status, OpenAI's `type`, a machine-readable `code`, the offending `param` and headers."""

    status = 500
    type = "server_error"
    code: str | None = "internal"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code if code is not None else self.code
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, dict[str, str | None]]:
        """OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InvalidRequest(ApiError):
    """400: the body breaks a rule; `code` names the rule and `param` the field."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class ContextLengthExceeded(InvalidRequest):
    """400: the prompt, or the prompt and the tokens asked for, are more than the model takes."""

    code = "context_length_exceeded"


class Unauthorized(ApiError):
    """401: no key, or not one of ours; the same answer for every wrong key."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class Forbidden(ApiError):
    """403: the key is right but its scope does not cover this route."""

    status = 403
    type = "permission_error"
    code = "insufficient_scope"


class NotFound(ApiError):
    """404: no such URL, model, variant or job."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFound(NotFound):
    """404: no variant of this name; the message names the nearest ones."""

    code = "model_not_found"


class MethodNotAllowed(ApiError):
    """405: the URL exists, this verb does not."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_supported"


class RequestTimeout(ApiError):
    """408: the client did not send its body in time. The connection ends: the rest may still come."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"connection": "close"})


class Conflict(ApiError):
    """409: the state forbids it; trying again unchanged does not help."""

    status = 409
    type = "conflict_error"
    code = "conflict"

    def __init__(self, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message, code=code, param=param, headers={"x-should-retry": "false"})


class ContentTooLarge(ApiError):
    """413: the body is over the limit. The connection ends: nobody reads the rest."""

    status = 413
    type = "invalid_request_error"
    code = "content_too_large"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"connection": "close"})


class UnsupportedMediaType(ApiError):
    """415: the body is not declared as application/json."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class RateLimited(ApiError):
    """429: too much at once; Retry-After says when there is room."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"

    def __init__(self, message: str, *, retry_after_s: int, code: str = "queue_full") -> None:
        super().__init__(message, code=code, headers={"retry-after": str(retry_after_s)})


class Internal(ApiError):
    """500: our fault."""


class WorkerCrashed(ApiError):
    """500: the process behind the variant died, and the request could not be retried."""

    code = "worker_crashed"


class Unavailable(ApiError):
    """503: not now; Retry-After (at most 120 s) says when."""

    status = 503
    type = "service_unavailable_error"
    code = "model_loading"

    def __init__(self, message: str, *, retry_after_s: int, code: str = "model_loading") -> None:
        super().__init__(message, code=code, headers={"retry-after": str(min(retry_after_s, 120))})


class DeadlineExceeded(ApiError):
    """504: the request was accepted and took longer than the server allows."""

    status = 504
    code = "deadline_exceeded"


class DoesNotFit(ApiError):
    """507: not enough memory for this model; needed and free bytes are in the message."""

    status = 507
    type = "insufficient_memory"
    code = "does_not_fit"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"x-should-retry": "false"})


class NoRoomNow(DoesNotFit):
    """507: as DoesNotFit, but it would fit if variants that are busy now were idle."""


class DiskFull(ApiError):
    """507: not enough disk for what was asked."""

    status = 507
    type = "insufficient_storage"
    code = "disk_full"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"x-should-retry": "false"})


_FROM_WORKER: dict[WorkerErrorCode, type[ApiError]] = {
    WorkerErrorCode.INVALID_REQUEST: InvalidRequest,
    WorkerErrorCode.CONTEXT_LENGTH_EXCEEDED: ContextLengthExceeded,
    WorkerErrorCode.NO_VALID_TOKEN: InvalidRequest,
    WorkerErrorCode.UNSAFE_CHECKPOINT: InvalidRequest,
    WorkerErrorCode.UNSUPPORTED_MODEL: InvalidRequest,
    WorkerErrorCode.BASE_NOT_FOUND: NotFound,
    WorkerErrorCode.INSUFFICIENT_MEMORY: DoesNotFit,
    WorkerErrorCode.DISK_FULL: DiskFull,
}


def from_worker(code: WorkerErrorCode, message: str) -> ApiError:
    """The HTTP error for what a worker or a job reported; the code travels unchanged where HTTP has no better one."""
    if code is WorkerErrorCode.HUB_UNREACHABLE:
        return Unavailable(message, retry_after_s=_HUB_RETRY_S, code=code.value)
    kind = _FROM_WORKER.get(code, Internal)
    if kind in (DoesNotFit, DiskFull):
        return kind(message)
    return kind(message, code=code.value)
