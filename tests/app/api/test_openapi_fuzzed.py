"""schemathesis sends what /openapi.json allows and what it forbids: never a 500, never a status that is not there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from echo_process import running_echo
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CheckContext
from schemathesis.core.transport import Response
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from app.main import create_app
from app.settings import Settings

NUM_EXAMPLES = 15
MAX_TOKENS = 8
# Fields of bodies that have tokens generated, as many as fit unless told.
ASKING = {"messages", "input", "prompt", "prompt_ids"}
# never ends
STREAMS = ("/models/sse",)

SCHEMA = schemathesis.openapi.from_dict(create_app(Settings(data_dir=Path("unused"))).openapi())
OPERATIONS = [operation for found in SCHEMA.get_all_operations() if (operation := found.ok()).path not in STREAMS]
TAKING = [operation for operation in OPERATIONS if operation.body or operation.query]

# The first test also starts the server.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server of its own: what is sent loads, unloads and deletes."""
    environment = {"HF_HUB_OFFLINE": "1", "SLIMSERVE_AUTOLOAD": "false", "SLIMSERVE_ECHO_ITL_S": "0"}
    with running_echo(tmp_path_factory.mktemp("fuzzed"), environment) as (url, _):
        yield url


@schemathesis.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    """A body that names a model names the one that is there and asks for few tokens: it gets past the first checks."""
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        body["model"] = "echo/main"
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            if isinstance(body.get(name), int) or (name not in body and body.keys() & ASKING):
                body[name] = min(body.get(name, MAX_TOKENS), MAX_TOKENS)
    return body


def no_internal_error(ctx: CheckContext, response: Response, case: schemathesis.Case) -> None:
    """Any request may be refused, and none may break the server."""
    assert response.status_code not in (500, 501, 502)


def send_examples(url: str, operation: APIOperation, mode: GenerationMode) -> None:
    """Send what schemathesis makes of an operation and check each answer."""

    @settings(
        max_examples=NUM_EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: schemathesis.Case) -> None:
        checks = [no_internal_error, status_code_conformance, response_schema_conformance]
        case.call_and_validate(url, checks=checks, timeout=300)

    send()


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_what_is_allowed_gets_an_answer_that_is_described(fuzzed: str, operation: APIOperation) -> None:
    send_examples(fuzzed, operation, GenerationMode.POSITIVE)


@pytest.mark.parametrize("operation", TAKING, ids=lambda operation: operation.label)
def test_what_is_forbidden_gets_an_answer_that_is_described(fuzzed: str, operation: APIOperation) -> None:
    send_examples(fuzzed, operation, GenerationMode.NEGATIVE)
