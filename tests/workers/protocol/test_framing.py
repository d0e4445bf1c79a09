"""Frames over a real socket pair."""

import socket
import threading
from collections.abc import Iterator

import pytest

from workers.protocol.errors import ProtocolError
from workers.protocol.framing import HEADER, MAX_FRAME_BYTES, Decoder, SocketChannel, encode_frame, frame_length
from workers.protocol.messages import (
    Cancel,
    FromWorker,
    Generate,
    SequenceUpdate,
    StartServing,
    Step,
    StepStats,
    Stop,
    TokenLogprob,
    ToWorker,
)
from workers.protocol.specs import EchoSpec, SamplingParams, ServeSpec

Pair = tuple[SocketChannel[FromWorker], SocketChannel[ToWorker], socket.socket, socket.socket]

GENERATE = Generate(
    request_id="a",
    prompt_ids=[1, 2, 3],
    params=SamplingParams(max_tokens=3, logit_bias={7: -1.5}, stop_token_ids=(4,), seed=2**63 - 1),
)


@pytest.fixture
def pair() -> Iterator[Pair]:
    near, far = socket.socketpair()
    with near, far:
        yield SocketChannel(near, FromWorker), SocketChannel(far, ToWorker), near, far


@pytest.mark.parametrize(
    "message",
    [
        GENERATE,
        Cancel(request_id="a"),
        Stop(),
        StartServing(spec=ServeSpec(variant="v", path="/p", echo=EchoSpec(vocab_size=9))),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_message_arrives_as_it_was_sent(pair: Pair, message: ToWorker) -> None:
    near, far, _, _ = pair

    near.send(message)

    assert far.receive() == message


def test_a_step_with_logprobs_arrives_as_it_was_sent(pair: Pair) -> None:
    near, far, _, _ = pair
    logprob = TokenLogprob(token_id=5, logprob=-0.25, top=[(5, -0.25), (6, float("-inf"))])
    update = SequenceUpdate(request_id="a", token_ids=[5], logprobs=[logprob], prompt_logprobs=[None, logprob])
    step = Step(step=3, updates=[update], stats=StepStats(num_running=1))

    far.send(step)

    assert near.receive() == step


def test_a_frame_may_arrive_byte_by_byte(pair: Pair) -> None:
    _, far, raw, _ = pair
    frame = encode_frame(GENERATE)

    def drip() -> None:
        for place in range(len(frame)):
            raw.sendall(frame[place : place + 1])

    thread = threading.Thread(target=drip)
    thread.start()
    message = far.receive()
    thread.join()

    assert message == GENERATE


def test_frames_that_arrive_together_are_kept_apart(pair: Pair) -> None:
    _, far, raw, _ = pair
    raw.sendall(encode_frame(GENERATE) + encode_frame(Stop()) + encode_frame(Cancel(request_id="b"))[:-1])

    messages, is_open = far.receive_available()
    raw.sendall(encode_frame(Cancel(request_id="b"))[-1:])

    assert (messages, is_open) == ([GENERATE, Stop()], True)
    assert far.receive() == Cancel(request_id="b")


def test_nothing_available_returns_at_once(pair: Pair) -> None:
    assert pair[1].receive_available() == ([], True)


def test_the_end_of_the_socket_ends_receive(pair: Pair) -> None:
    near, far, raw, _ = pair
    near.send(Stop())
    raw.close()

    assert far.receive() == Stop()
    assert far.receive() is None
    assert far.receive_available() == ([], False)


def test_sending_to_nobody_raises(pair: Pair) -> None:
    near, _, _, other = pair
    other.close()

    with pytest.raises(BrokenPipeError):
        near.send(Stop())


def test_an_announced_gigabyte_is_refused_before_it_is_read(pair: Pair) -> None:
    _, far, raw, _ = pair
    raw.sendall(HEADER.pack(2**30))

    with pytest.raises(ProtocolError, match="1073741824"):
        far.receive()


@pytest.mark.parametrize(
    "body", [b"\xc1", b"", b"\x80", encode_frame(Step(step=1, updates=[], stats=StepStats()))[HEADER.size :]]
)
def test_a_body_that_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="undecodable"):
        Decoder[ToWorker](ToWorker).decode(body)


def test_the_largest_frame_is_allowed() -> None:
    assert frame_length(HEADER.pack(MAX_FRAME_BYTES)) == MAX_FRAME_BYTES
    with pytest.raises(ProtocolError):
        frame_length(HEADER.pack(MAX_FRAME_BYTES + 1))


def test_a_message_over_the_limit_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match="Cancel"):
        encode_frame(Cancel(request_id="x" * MAX_FRAME_BYTES))
