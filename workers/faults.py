"""Failures on purpose, for tests: named sites in the code at which a child process can be told to go wrong.

Grammar, comma separated: `site:action[=value][@key=value]`, for instance `worker.step:kill@n=5`,
`worker.step:hang=60`, `worker.logits:nan@req=bad`, `worker.load:raise`. `n` is the n-th visit of the site, counted
from 1 (without it: every visit); `req` is a request id.
"""

import os
import re
import signal
import time
from dataclasses import dataclass

_ACTIONS = ("kill", "hang", "raise", "nan")
_RULE = re.compile(r"(?P<site>[a-z.]+):(?P<action>[a-z]+)(=(?P<value>[0-9.]+))?(@(?P<key>n|req)=(?P<when>[^,@]+))?")


class InjectedFault(RuntimeError):
    """The exception that the action `raise` raises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultRule:
    """One parsed rule: what happens where, and when."""

    site: str
    action: str
    seconds: float = 0.0
    visit: int | None = None
    request_id: str | None = None


class Faults:
    """All rules of this process. Without rules (`NO_FAULTS`) every site does nothing."""

    def __init__(self, rules: tuple[FaultRule, ...] = ()) -> None:
        self._rules = rules
        self._visits: dict[str, int] = {}

    def hit(self, site: str, request_id: str | None = None) -> str | None:
        """Visit a site: die, sleep or raise if a rule says so.

        Returns the action that the caller must carry out itself (`nan`), else None.
        """
        if not self._rules:
            return None
        visit = self._visits[site] = self._visits.get(site, 0) + 1
        for rule in self._rules:
            if rule.site == site and rule.visit in (None, visit) and rule.request_id in (None, request_id):
                return _carry_out(rule)
        return None


NO_FAULTS = Faults()


def parse_faults(text: str) -> Faults:
    """The rules in `text`; an empty text has none. Raises ValueError for a rule that is not understood."""
    return Faults(tuple(_parse_rule(part.strip()) for part in text.split(",") if part.strip()))


def _parse_rule(text: str) -> FaultRule:
    match = _RULE.fullmatch(text)
    if match is None or match["action"] not in _ACTIONS:
        raise ValueError(f"fault {text!r} is not site:action[=value][@n=...|@req=...], action one of {_ACTIONS}")
    return FaultRule(
        site=match["site"],
        action=match["action"],
        seconds=float(match["value"] or 0),
        visit=int(match["when"]) if match["key"] == "n" else None,
        request_id=match["when"] if match["key"] == "req" else None,
    )


def _carry_out(rule: FaultRule) -> str | None:
    if rule.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if rule.action == "hang":
        time.sleep(rule.seconds)
        return None
    if rule.action == "raise":
        raise InjectedFault(f"injected at {rule.site}")
    return rule.action
