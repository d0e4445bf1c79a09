"""Stop strings: the outcome depends on the text alone, never on how it was cut into pieces."""

from hypothesis import given
from hypothesis import strategies as st

from app.core.stop_strings import StopStrings


def feed_all(pieces: list[str], stops: tuple[str, ...], *, includes_stop: bool = False) -> tuple[list[str], str | None]:
    """What is let out piece by piece, and the stop that matched."""
    matcher = StopStrings(stops, includes_stop=includes_stop)
    out: list[str] = []
    for piece in pieces:
        out.append(matcher.feed(piece))
        if matcher.matched is not None:
            return out, matcher.matched
    return [*out, matcher.flush()], None


def reference(text: str, stops: tuple[str, ...]) -> tuple[str, str | None]:
    """The definition: look at the text character by character; the longest stop that has just ended wins."""
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], stop
    return text, None


letters = st.text(alphabet="ab\n", max_size=12)
stop_sets = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), min_size=1, max_size=4).map(tuple)


@given(pieces=st.lists(letters, max_size=8), stops=stop_sets)
def test_any_cutting_gives_the_text_before_the_first_stop(pieces: list[str], stops: tuple[str, ...]) -> None:
    out, matched = feed_all(pieces, stops)

    assert ("".join(out), matched) == reference("".join(pieces), stops)


@given(pieces=st.lists(letters, max_size=8), stops=stop_sets)
def test_nothing_that_is_let_out_is_ever_taken_back(pieces: list[str], stops: tuple[str, ...]) -> None:
    out, _ = feed_all(pieces, stops)
    expected, _ = reference("".join(pieces), stops)

    for count in range(len(out) + 1):
        assert expected.startswith("".join(out[:count]))


@given(pieces=st.lists(letters, max_size=8), stops=stop_sets)
def test_included_stop_is_the_last_thing_that_comes_out(pieces: list[str], stops: tuple[str, ...]) -> None:
    out, matched = feed_all(pieces, stops, includes_stop=True)
    expected, _ = reference("".join(pieces), stops)

    assert "".join(out) == expected + (matched or "")


def test_beginning_of_a_stop_is_held_back_until_it_is_certain() -> None:
    matcher = StopStrings(("END",))

    assert [matcher.feed("one E"), matcher.feed("N"), matcher.feed("x E"), matcher.flush()] == ["one ", "", "ENx ", "E"]


def test_stop_that_is_the_prefix_of_another_ends_first() -> None:
    assert feed_all(["abc"], ("abc", "ab")) == ([""], "ab")


def test_without_stops_every_piece_passes_at_once() -> None:
    assert feed_all(["a", "b"], ()) == (["a", "b", ""], None)
