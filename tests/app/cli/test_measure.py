from app.cli.bench import heldout_stories
from app.cli.measure import cut


def test_windows_never_cross_the_end_of_a_document() -> None:
    windows = cut([[1, 2, 3, 4, 5], [6, 7, 8]], window_tokens=3, max_tokens=100)

    assert windows == [[1, 2, 3], [4, 5], [6, 7, 8]]


def test_windows_have_no_more_tokens_than_asked_for() -> None:
    windows = cut([[1, 2, 3, 4, 5], [6, 7, 8], [9, 10]], window_tokens=3, max_tokens=7)

    assert windows == [[1, 2, 3], [4, 5], [6, 7]]


def test_window_of_one_token_is_left_out_because_nothing_in_it_can_be_scored() -> None:
    assert cut([[1, 2, 3, 4]], window_tokens=3, max_tokens=100) == [[1, 2, 3]]


def test_heldout_text_is_fifty_stories_without_their_separator() -> None:
    stories = heldout_stories()

    assert len(stories) == 50
    assert not any("<|" in story for story in stories)
