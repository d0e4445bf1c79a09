"""Who may call what, and how often: the configured keys.

Only digests are kept, and all of them are compared every time, so that the time of an answer does not tell which key
was near. What a key for inference opens is listed; every other route, also one that is new, is closed to it.
"""

import hashlib
import hmac
import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Final

from app.errors import Forbidden, RateLimited, Unauthorized
from app.settings import Settings

_INFERENCE: Final = re.compile(
    r"/v1/(?:chat/completions|completions|responses|messages|messages/count_tokens|embeddings|generate)"
    r"|/v/.+|/tokenize|/detokenize"
)
# Looking at what there is to ask costs nothing and counts for nothing.
_LOOKING: Final = re.compile(r"/v1/models(?:/.+)?|/models|/tokenizer_info|/health|/version")
_WINDOW_S: Final = 60.0


class Keys:
    """The keys of one server; without any, everybody may call everything."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._is_admin = {_digest(key): False for key in settings.inference_keys}
        self._is_admin |= {_digest(key): True for key in settings.api_keys}
        self._rates = Rates(settings.key_requests_per_minute, clock)

    def check(self, path: str, headers: Mapping[str, str]) -> None:
        """Raises Unauthorized without a right key, Forbidden for a route it does not open, RateLimited if too often."""
        if not self._is_admin:
            return
        key = self._find(headers.get("authorization", ""), headers.get("x-api-key", ""))
        is_inference = _INFERENCE.fullmatch(path) is not None
        if not (self._is_admin[key] or is_inference or _LOOKING.fullmatch(path)):
            raise Forbidden("This key is for inference; this route needs one of SLIMSERVE_API_KEYS.")
        if is_inference:
            self._rates.take(key)

    def _find(self, authorization: str, api_key: str) -> bytes:
        """Anthropic's clients send a key as x-api-key; the Authorization header wins where both are there."""
        scheme, _, key = (authorization or f"bearer {api_key}").partition(" ")
        given = _digest(key.strip())
        matches = [known for known in self._is_admin if hmac.compare_digest(given, known)]
        if scheme.lower() != "bearer" or not matches:
            raise Unauthorized(
                "Incorrect API key provided; send 'Authorization: Bearer <key>'.",
                headers={"www-authenticate": "Bearer"},
            )
        return matches[0]


class Rates:
    """At most `per_minute` requests per key in a burst, and as many per minute in the long run; None sets no limit."""

    def __init__(self, per_minute: int | None, clock: Callable[[], float]) -> None:
        self._interval_s = None if per_minute is None else _WINDOW_S / per_minute
        self._clock = clock
        # When each key's past requests are used up, if one costs an interval.
        self._used_up_at_s: dict[bytes, float] = {}

    def take(self, key: bytes) -> None:
        """Count one request. Raises RateLimited with the time after which there is room for one."""
        if self._interval_s is None:
            return
        now_s = self._clock()
        used_up_at_s = max(self._used_up_at_s.get(key, now_s), now_s) + self._interval_s
        # the tolerance is for sums of floats: the last request of a full burst ends exactly at the window's end
        over_s = used_up_at_s - now_s - _WINDOW_S
        if over_s > 1e-6:
            raise RateLimited(
                f"This key has used up its {round(_WINDOW_S / self._interval_s)} requests per minute; try again later.",
                retry_after_s=math.ceil(over_s),
                code="rate_limit_exceeded",
            )
        self._used_up_at_s[key] = used_up_at_s


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
