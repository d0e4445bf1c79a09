"""Counting requests in and out."""

import pytest

from app.core.admission import Admission
from app.errors import RateLimited


def test_full_queue_refuses_with_a_time_to_come_back() -> None:
    admission = Admission(max_queue=2)
    admission.enter("a/fp32")
    admission.enter("a/fp32")

    with pytest.raises(RateLimited) as caught:
        admission.enter("a/fp32")

    assert caught.value.code == "queue_full"
    assert 1 <= int(caught.value.headers["retry-after"]) <= 30


def test_variants_do_not_share_a_queue_and_leaving_makes_room() -> None:
    admission = Admission(max_queue=1)
    admission.enter("a/fp32")
    admission.enter("b/fp32")
    admission.leave("a/fp32")

    admission.enter("a/fp32")

    assert admission.admitted("a/fp32") == 1
