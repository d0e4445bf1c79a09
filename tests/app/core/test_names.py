"""Names: what may be one, what a source becomes, what a misspelt one may have meant."""

import pytest

from app.core.names import base_name, check_part, is_hub_id, not_found
from app.errors import InvalidRequest


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/models/Qwen3-0.6B", "qwen3-0.6b"),
        ("/models/Qwen3-0.6B/", "qwen3-0.6b"),
        ("HuggingFaceTB/SmolLM2-135M", "smollm2-135m"),
        ("/models/__my model (v2)", "my-model-v2-"),
        ("/models/" + "x" * 100, "x" * 64),
    ],
)
def test_base_name_comes_from_the_last_part(source: str, name: str) -> None:
    assert base_name(source) == name
    assert check_part(name, "name") == name


def test_source_without_a_usable_character_needs_a_name() -> None:
    with pytest.raises(InvalidRequest, match="give one as 'name'"):
        base_name("/models/模型")


@pytest.mark.parametrize("name", ["", "A", "-a", "a/b", "a b", "..", "a" * 65, "é", "a\n"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        check_part(name, "name")

    assert error.value.param == "name"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("org/model", True),
        ("org/model-1.5B_x", True),
        ("model", False),
        ("a/b/c", False),
        ("../x", False),
        ("/a", False),
    ],
)
def test_hub_ids_have_two_parts(model: str, expected: bool) -> None:
    assert is_hub_id(model) is expected


def test_misspelt_name_is_answered_with_the_nearest() -> None:
    error = not_found("slimstory/int9", ["slimstory/int8", "qwen/int8", "slimstory"])

    assert error.status == 404
    assert error.code == "model_not_found"
    assert "'slimstory/int8'" in error.message
