"""Fault rules: their grammar and when they act."""

import pytest

from workers.faults import NO_FAULTS, InjectedFault, parse_faults


def test_no_rules_do_nothing() -> None:
    assert NO_FAULTS.hit("worker.step") is None
    assert parse_faults("").hit("worker.step") is None


def test_a_rule_acts_at_its_visit_only() -> None:
    faults = parse_faults("worker.step:raise@n=2")

    assert faults.hit("worker.step") is None
    assert faults.hit("worker.load") is None
    with pytest.raises(InjectedFault, match=r"worker\.step"):
        faults.hit("worker.step")
    assert faults.hit("worker.step") is None


def test_a_rule_acts_for_its_request_only() -> None:
    faults = parse_faults("worker.logits:nan@req=chatcmpl-1, worker.load:raise")

    assert faults.hit("worker.logits", "other") is None
    assert faults.hit("worker.logits", "chatcmpl-1") == "nan"
    with pytest.raises(InjectedFault):
        faults.hit("worker.load")


@pytest.mark.parametrize("text", ["worker.step", "worker.step:explode", "worker.step:kill@m=3", "kill@n=1"])
def test_a_rule_that_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not site:action"):
        parse_faults(text)
