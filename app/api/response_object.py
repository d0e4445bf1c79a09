"""The `response` object of /v1/responses, as it is while it runs and when it has ended."""

import secrets
import time
from typing import Any

from app.api.logprobs import chat_logprobs
from app.api.usage import request_metrics
from app.core.generation import Run
from app.schemas.responses import ResponsesRequest
from workers.protocol.messages import FinishReason, TokenLogprob


class ResponseObject:
    """One response with one message that has one part of text. Ids and time are fixed when it is made."""

    def __init__(self, body: ResponsesRequest, run: Run) -> None:
        self.item_id = f"msg_{secrets.token_hex(12)}"
        self._body = body
        self._run = run
        self._id = f"resp_{secrets.token_hex(12)}"
        self._created_at = int(time.time())

    def begun(self) -> dict[str, Any]:
        """Nothing is said yet."""
        return self._object("in_progress", [])

    def ended(self, text: str, logprobs: list[dict[str, Any]], reason: FinishReason | None) -> dict[str, Any]:
        """The whole answer; `incomplete` if it was cut off at max_output_tokens or the end of the context."""
        is_cut = reason is FinishReason.LENGTH
        status = "incomplete" if is_cut else "completed"
        whole = self._object(status, [self.item(status, [self.part(text, logprobs)])])
        whole["incomplete_details"] = {"reason": "max_output_tokens"} if is_cut else None
        whole["completed_at"] = None if is_cut else int(time.time())
        whole["usage"] = self._usage()
        whole["metrics"] = request_metrics(self._run)
        return whole

    def item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        """The message."""
        return {"id": self.item_id, "type": "message", "status": status, "role": "assistant", "content": content}

    def part(self, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
        """Its text."""
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def logprobs(self, entries: list[TokenLogprob]) -> list[dict[str, Any]]:
        """Of these tokens, if they were asked for."""
        if not self._body.wants_logprobs:
            return []
        content: list[dict[str, Any]] = chat_logprobs(
            entries, self._body.top_logprobs or 0, self._run.text_model.token_strings
        )["content"]
        return content

    def _object(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        body = self._body
        text_format = body.text.format if body.text is not None else None
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created_at,
            "status": status,
            "completed_at": None,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": self._run.variant.id,
            "output": output,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": body.reasoning.effort if body.reasoning is not None else None, "summary": None},
            "service_tier": "default",
            "store": False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": text_format or {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": None,
        }

    def _usage(self) -> dict[str, Any]:
        run = self._run
        return {
            "input_tokens": run.num_prompt_tokens,
            "input_tokens_details": {"cached_tokens": run.num_cached_tokens, "cache_write_tokens": 0},
            "output_tokens": run.num_completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": run.num_prompt_tokens + run.num_completion_tokens,
        }
