"""When a crashed worker is started again."""

from app.supervisor.restart import Backoff, RestartPolicy


class Clock:
    """Seconds that a test sets."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_waits_grow_and_the_fifth_crash_within_the_window_is_the_last() -> None:
    backoff = Backoff(RestartPolicy(), Clock())

    assert [backoff.next_delay_s() for _ in range(5)] == [0.2, 1, 2, 4, None]


def test_crashes_older_than_the_window_do_not_count() -> None:
    clock = Clock()
    backoff = Backoff(RestartPolicy(window_s=600), clock)
    for _ in range(4):
        backoff.next_delay_s()

    clock.now_s += 600

    assert backoff.next_delay_s() == 0.2


def test_longest_wait_is_kept_for_patient_policies() -> None:
    backoff = Backoff(RestartPolicy(max_crashes=100), Clock())

    delays = [backoff.next_delay_s() for _ in range(12)]

    assert delays[-1] == delays[6] == 30
