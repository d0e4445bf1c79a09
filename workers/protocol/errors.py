"""Errors a child process reports by code; only `app.errors` knows which HTTP status a code becomes."""

from enum import StrEnum


class WorkerErrorCode(StrEnum):
    """Every reason for which a worker or a job gives up on a request, a load or a job."""

    INVALID_REQUEST = "invalid_request"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    NONFINITE_LOGITS = "nonfinite_logits"
    NO_VALID_TOKEN = "no_valid_token"
    INTERNAL = "internal"
    UNSAFE_CHECKPOINT = "unsafe_checkpoint"
    UNSUPPORTED_MODEL = "unsupported_model"
    VARIANT_CORRUPT = "variant_corrupt"
    BASE_NOT_FOUND = "base_not_found"
    HUB_UNREACHABLE = "hub_unreachable"
    INSUFFICIENT_MEMORY = "insufficient_memory"
    DISK_FULL = "disk_full"
    VERIFICATION_FAILED = "verification_failed"
    CANCELLED = "cancelled"


class WorkerError(Exception):
    """A failure with a code that the front end can act on and a message that its user can read.

    The message names the value, the rule and the way out. It contains no file path outside the model's own
    folder and no prompt text.
    """

    def __init__(self, code: WorkerErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class ProtocolError(Exception):
    """The other side of the socket broke the framing or sent a message that does not decode."""
