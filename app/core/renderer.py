"""Chat templates, rendered in a process of their own, with two seconds of the processor each."""

from typing import Any, Final

from app.core.sandbox import Sandbox
from app.errors import InvalidRequest
from app.renderer.messages import Rejected, Render, Rendered

TIME_LIMIT_S: Final = 2.0


class TemplateStuck(InvalidRequest):
    """400: the template took too long, or too much memory. Another time it might not, on a machine with less to do."""


class Renderer:
    """Renders one template at a time."""

    def __init__(self) -> None:
        self._sandbox = Sandbox(TIME_LIMIT_S)

    async def start(self) -> None:
        """Have the process up and warm, so that the first chat does not wait for it."""
        await self.render("", {})

    async def stop(self) -> None:
        """End the process."""
        await self._sandbox.stop()

    async def render(self, template: str, variables: dict[str, Any]) -> str:
        """The template's output. Raises InvalidRequest if it refuses, takes too long or needs too much memory."""
        answer = await self._sandbox.ask(Render(template=template, variables=variables))
        if isinstance(answer, Rendered):
            return answer.text
        if not isinstance(answer, Rejected):
            message = f"The chat template took more than {TIME_LIMIT_S:.0f} s or 512 MiB for these messages."
            raise TemplateStuck(message, code="template_failed", param="messages")
        message = f"{answer.message[0].upper()}{answer.message[1:].rstrip('.')}."
        raise InvalidRequest(message, code="template_failed", param="messages")
