"""Templates run in their own process: right ones render, hostile ones harm nobody."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator

import pytest

from app.core import sandbox
from app.core.renderer import Renderer
from app.errors import InvalidRequest

MESSAGES = [{"role": "user", "content": "é"}]


@pytest.fixture
async def renderer() -> AsyncIterator[Renderer]:
    made = Renderer()
    yield made
    await made.stop()


async def test_template_has_what_published_templates_use(renderer: Renderer) -> None:
    template = (
        "{% for m in messages %}\n    {% if loop.index > 5 %}{% break %}{% endif %}\n"
        "{{ m.role }}:{% generation %}{{ m | tojson }}{% endgeneration %}{% endfor %}{{ strftime_now('%Y') | length }}"
    )

    text = await renderer.render(template, {"messages": MESSAGES})

    assert text == 'user:{"role": "user", "content": "é"}4'


@pytest.mark.parametrize(
    ("template", "said"),
    [
        pytest.param("{{ raise_exception('roles must alternate') }}", "roles must alternate", id="refuses"),
        pytest.param("{% if", "unexpected", id="syntax"),
        pytest.param("{{ ''.__class__.__mro__ }}", "unsafe", id="sandbox"),
        pytest.param("{{ messages.append(1) }}", "append", id="immutable"),
        pytest.param("{{ messages[9].role }}", "no", id="undefined"),
        pytest.param("{{ 1 / 0 }}", "does not fit", id="arithmetic"),
        pytest.param("{{ [0] * 10**9 }}", "memory", id="memory"),
    ],
)
async def test_failing_template_is_an_error_with_a_reason(renderer: Renderer, template: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        await renderer.render(template, {"messages": MESSAGES})

    assert (caught.value.code, caught.value.param) == ("template_failed", "messages")
    assert await renderer.render("fine", {}) == "fine"


async def test_endless_template_is_killed_and_the_next_one_renders(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # nobody but the process itself ends it in time
    monkeypatch.setattr(sandbox, "STALL_LIMIT_S", 3600)
    await renderer.start()
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"

    with pytest.raises(InvalidRequest, match="more than 2 s"):
        await renderer.render(endless, {})

    assert await renderer.render("fine", {}) == "fine"


async def test_time_that_a_crowded_machine_takes_is_not_the_template_s(renderer: Renderer) -> None:
    renderer._sandbox.time_limit_s = 0.2
    await renderer.start()
    process = renderer._sandbox._process
    assert process is not None

    os.kill(process.pid, signal.SIGSTOP)
    rendering = asyncio.create_task(renderer.render("fine", {}))
    await asyncio.sleep(0.5)
    os.kill(process.pid, signal.SIGCONT)

    assert await rendering == "fine"


async def test_killed_process_costs_one_request_at_most(renderer: Renderer) -> None:
    await renderer.start()
    process = renderer._sandbox._process
    assert process is not None

    process.kill()
    await process.wait()
    await asyncio.sleep(0)

    with contextlib.suppress(InvalidRequest):
        await renderer.render("first", {})
    assert await renderer.render("second", {}) == "second"


async def test_cancelled_caller_does_not_leave_its_answer_to_the_next(renderer: Renderer) -> None:
    await renderer.start()
    slow = "{% for i in range(99999) %}{% for j in range(20) %}{% endfor %}{% endfor %}slow"

    task = asyncio.create_task(renderer.render(slow, {}))
    await asyncio.sleep(0.02)
    task.cancel()

    assert await renderer.render("mine", {}) == "mine"
