"""instructor: the model's answer as an object, by tools, JSON and a schema."""

from contextlib import suppress
from typing import Any

import pytest
from openai import OpenAI
from pydantic import BaseModel

from tests.clients.asking import MESSAGES, MODEL, Pet

instructor = pytest.importorskip("instructor", reason="needs instructor: run `make clients`")
IncompleteOutputException = pytest.importorskip("instructor.core").IncompleteOutputException


def client_of(base_url: str, mode: Any) -> Any:
    return instructor.from_openai(OpenAI(base_url=base_url, api_key="unused", timeout=600), mode=mode)


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_answer_is_an_instance(base_url: str, mode: str) -> None:
    pet = client_of(base_url, instructor.Mode[mode]).create(
        model=MODEL, messages=MESSAGES, response_model=Pet, max_tokens=120, temperature=0, max_retries=1
    )

    assert isinstance(pet, Pet)


def test_json_mode_answers_with_an_object(base_url: str) -> None:
    """JSON mode enforces an object and no schema: any object will do, and so small a model does not end each."""

    class Anything(BaseModel, extra="allow"):
        pass

    client = client_of(base_url, instructor.Mode.JSON)
    answers = []
    for seed in range(10):
        with suppress(IncompleteOutputException):
            answers.append(
                client.create(
                    model=MODEL, messages=MESSAGES, response_model=Anything, max_tokens=100, seed=seed, max_retries=1
                )
            )

    assert answers
    assert all(isinstance(answer, Anything) for answer in answers)


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_partial_objects_grow_to_the_whole(base_url: str, mode: str) -> None:
    partial = list(
        client_of(base_url, instructor.Mode[mode]).create_partial(
            model=MODEL, messages=MESSAGES, response_model=Pet, max_tokens=120, temperature=0
        )
    )

    assert len(partial) > 1
    assert partial[0].age is None
    assert Pet(**partial[-1].model_dump())
