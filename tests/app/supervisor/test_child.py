"""What a child inherits, what is kept of its stderr, and how its end is put into words."""

import pytest

from app.supervisor.child import StderrRing, describe_exit
from app.supervisor.environment import child_environment


def test_ring_keeps_the_end_of_what_was_written() -> None:
    ring = StderrRing(limit=100)

    for number in range(1000):
        ring.write(f"line {number}\n".encode())

    assert len(ring.text()) == 100
    assert ring.last_lines(2) == "line 998\nline 999"


def test_ring_survives_a_chunk_larger_than_itself_and_broken_characters() -> None:
    ring = StderrRing(limit=4)

    ring.write(b"0123456789\xff")

    assert ring.text() == "789\ufffd"


@pytest.mark.parametrize(
    ("returncode", "words"),
    [(0, "the process exited"), (70, "status 70"), (-11, "SIGSEGV"), (-9, "ran out of memory")],
)
def test_exit_is_described_for_people(returncode: int, words: str) -> None:
    assert words in describe_exit(returncode)


def test_children_inherit_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {"SLIMSERVE_API_KEYS": "k", "AWS_SECRET_ACCESS_KEY": "s", "HF_TOKEN": "t", "PYTHONPATH": "/elsewhere"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")

    environment = child_environment(faults="", needs_hub=False)

    assert not secrets.keys() & environment.keys()
    assert environment["OMP_NUM_THREADS"] == "3"
    assert "SLIMSERVE_FAULTS" not in environment


@pytest.mark.parametrize("is_job", [False, True], ids=["worker", "job"])
def test_how_threads_wait_is_ours_unless_the_user_says_it(monkeypatch: pytest.MonkeyPatch, is_job: bool) -> None:
    names = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
    for name in names:
        monkeypatch.delenv(name, raising=False)
    ours = child_environment(faults="", needs_hub=False, is_job=is_job)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    theirs = child_environment(faults="", needs_hub=False, is_job=is_job)

    assert names & ours.keys() == {"OMP_WAIT_POLICY" if is_job else "GOMP_SPINCOUNT"}
    assert {name: theirs.get(name) for name in names} == {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": None}


def test_hub_token_goes_to_the_job_that_downloads_and_faults_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "t")

    environment = child_environment(faults="worker.load:raise", needs_hub=True)

    assert environment["HF_TOKEN"] == "t"
    assert environment["SLIMSERVE_FAULTS"] == "worker.load:raise"
