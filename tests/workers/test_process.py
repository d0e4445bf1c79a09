"""What a child does before its own work."""

import os
import socket

from workers.process import adopt_socket, is_closed, scrub_environment


def test_secrets_are_removed_and_the_rest_stays() -> None:
    environ = {
        "PATH": "/bin",
        "SLIMSERVE_API_KEYS": "a",
        "aws_secret_access": "b",
        "GITHUB_TOKEN": "c",
        "DB_PASSWORD": "d",
        "HF_TOKEN": "given on purpose",
        "TOKENIZERS_PARALLELISM": "false",
    }

    scrub_environment(environ)

    assert set(environ) == {"PATH", "HF_TOKEN", "TOKENIZERS_PARALLELISM"}


def test_the_socket_is_not_inherited_further() -> None:
    near, far = socket.socketpair()
    fd = far.detach()
    os.set_inheritable(fd, True)

    with near, adopt_socket(fd) as adopted:
        assert not os.get_inheritable(adopted.fileno())
        near.sendall(b"x")
        assert adopted.recv(1) == b"x"


def test_a_parent_that_is_gone_is_noticed() -> None:
    near, far = socket.socketpair()
    near.close()

    with far:
        assert is_closed(far)


def test_a_silent_or_talking_parent_is_alive() -> None:
    near, far = socket.socketpair()
    with near, far:
        assert not is_closed(far)
        near.sendall(b"x")
        assert not is_closed(far)
