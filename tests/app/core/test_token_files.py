"""Texts for jobs: windows of tokens, and the file that torch's side reads."""

from pathlib import Path

import pytest
from safetensors.numpy import load_file

from app import embedded
from app.core.token_files import encode_documents, sample_windows, split_windows, write_token_ids
from app.errors import InvalidRequest


def test_file_is_what_safetensors_reads(tmp_path: Path) -> None:
    rows = [[1, 2, 2**31 - 1], [0, 5, 6]]

    write_token_ids(tmp_path / "ids.safetensors", rows)

    found = load_file(tmp_path / "ids.safetensors")["token_ids"]
    assert (str(found.dtype), found.tolist()) == ("int32", rows)
    assert [file.name for file in tmp_path.iterdir()] == ["ids.safetensors"]


def test_windows_are_pieces_of_the_text_that_the_seed_chooses() -> None:
    tokens = list(range(1000))

    windows = sample_windows(tokens, 5, 64, seed=0)

    assert [len(window) for window in windows] == [64] * 5
    assert all(window == list(range(window[0], window[0] + 64)) for window in windows)
    assert len({token for window in windows for token in window}) == 5 * 64
    assert windows == sample_windows(tokens, 5, 64, seed=0)
    assert windows != sample_windows(tokens, 5, 64, seed=1)


def test_short_text_gives_what_it_has_and_no_text_is_refused() -> None:
    assert [len(window) for window in sample_windows(range(150), 32, 64, seed=0)] == [64, 64]
    assert sample_windows(range(20), 32, 64, seed=0) == [list(range(20))]
    with pytest.raises(InvalidRequest):
        sample_windows(range(15), 32, 64, seed=0)


def test_held_out_windows_share_no_token_with_the_samples() -> None:
    tokens = list(range(1000))

    samples, windows = split_windows(tokens, 5, 4, 64, seed=3)

    assert samples == sample_windows(tokens, 5, 64, seed=3)
    assert [len(window) for window in windows] == [64] * 4
    taken = [token for window in [*samples, *windows] for token in window]
    assert len(set(taken)) == len(taken)


def test_short_text_gives_a_quarter_to_what_is_held_out_and_one_window_is_refused() -> None:
    samples, windows = split_windows(range(8 * 64), 32, 8, 64, seed=0)

    assert (len(samples), len(windows)) == (6, 2)
    assert sorted(token for window in [*samples, *windows] for token in window) == list(range(8 * 64))
    with pytest.raises(InvalidRequest) as refused:
        split_windows(range(127), 32, 8, 64, seed=0)
    assert "127 tokens" in refused.value.message


def test_default_calibration_is_enough_and_is_not_what_is_measured_on() -> None:
    calibration = embedded.stories(embedded.calibration_text())
    heldout = embedded.stories(embedded.heldout_text())

    tokens = encode_documents(embedded.model_path() / "tokenizer.json", calibration)

    assert len(sample_windows(tokens, 32, 512, seed=0)) == 32
    beginnings = {"".join(filter(str.isalpha, story))[:60] for story in heldout}
    assert not beginnings & {"".join(filter(str.isalpha, story))[:60] for story in calibration}
