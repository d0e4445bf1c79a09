"""The one path of a request: admit, encode, submit, hand out what comes back, cancel, stamp."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from app.core.admission import Admission
from app.core.answers import AnswerRules, answer_rules
from app.core.catalog import Catalog
from app.core.choice import Choice, Delta, TextRules
from app.core.constrained import constrained
from app.core.detokenizer import Detokenizer
from app.core.prompts import encode_prompts, max_tokens
from app.core.renderer import Renderer
from app.core.request import GenerationRequest
from app.core.server import Server
from app.core.structured import GrammarChecker
from app.core.text import TextModel, TextModels
from app.core.variants import Served
from app.errors import ApiError, DeadlineExceeded, InvalidRequest, Unavailable, WorkerCrashed, from_worker
from app.metrics.serving import ServingMetrics
from app.metrics.stamps import RequestStamps
from app.settings import Settings
from app.supervisor.stream import WorkerGone
from workers.protocol.errors import WorkerErrorCode
from workers.protocol.messages import FinishReason, Generate, SequenceUpdate

logger = logging.getLogger(__name__)

_SEED_MASK: Final = 2**63 - 1
# 2**64 over the golden ratio: consecutive multiples of it are spread over the whole range.
_SEED_STRIDE: Final = 0x9E3779B97F4A7C15


class Generation:
    """Runs requests; one for the whole server."""

    def __init__(
        self,
        server: Server,
        texts: TextModels,
        renderer: Renderer,
        grammars: GrammarChecker,
        metrics: ServingMetrics,
    ) -> None:
        settings = server.settings
        self._server = server
        self._settings = settings
        self._catalog = server.catalog
        self._texts = texts
        self._renderer = renderer
        self._grammars = grammars
        self._metrics = metrics
        self.admission = Admission(settings.max_queue)
        # how long to sleep without news from the worker, at most; deadlines are looked at by themselves
        self.wait_s = settings.request_timeout_s

    @asynccontextmanager
    async def run(self, request: GenerationRequest) -> AsyncIterator["Run"]:
        """An admitted request whose sequences are with the worker. Leaving the block early cancels them.

        Raises ApiError if it is refused: unknown or unready model, queue full, a prompt that does not fit.
        """
        stamps = RequestStamps()
        if self._server.is_draining:
            raise Unavailable("The server is stopping.", retry_after_s=30, code="draining")
        variant_id = await self._server.autoload.find(request.model)
        try:
            self.admission.enter(variant_id)
        except ApiError:
            self._metrics.rejected(variant_id, "queue_full")
            raise
        run: Run | None = None
        status = "error"
        try:
            async with self._server.autoload.serving(variant_id) as served:
                text_model = await self._texts.get(served.folder)
                rules = answer_rules(request, served.variant, text_model)
                prompts = await encode_prompts(request, text_model, served.info, self._renderer, rules)
                request, rules = await constrained(self._grammars, request, rules, text_model, prompts)
                run = Run(self._settings, self._catalog, served, text_model, stamps)
                try:
                    await run.submit(request, prompts, rules)
                    yield run
                finally:
                    run.cancel()
            status = "ok" if run.is_finished else "cancelled"
        except (asyncio.CancelledError, GeneratorExit):
            status = "cancelled"
            raise
        except ApiError as error:
            self._count_error(variant_id, error, has_run=run is not None)
            raise
        finally:
            self.admission.leave(variant_id)
            stamps.ended_s = time.monotonic()
            if run is not None:
                self._metrics.ended(variant_id, status, run)

    @asynccontextmanager
    async def serving(self, model: str) -> AsyncIterator[None]:
        """The variant that a name means, loaded first if it is not: requests within the block wait for no load.

        Raises ApiError as a request does that is refused for want of its variant.
        """
        variant_id = await self._server.autoload.find(model)
        async with self._server.autoload.serving(variant_id):
            yield

    def _count_error(self, variant_id: str, error: ApiError, *, has_run: bool) -> None:
        if error.code == WorkerErrorCode.NONFINITE_LOGITS:
            self._metrics.nan_logits(variant_id)
        if not has_run:
            self._metrics.rejected(variant_id, error.code or "invalid_request")


class Run:
    """The sequences of one admitted request. Call `next` until `is_finished`."""

    def __init__(
        self, settings: Settings, catalog: Catalog, served: Served, text_model: TextModel, stamps: RequestStamps
    ) -> None:
        self.variant = served.variant
        self.text_model = text_model
        self.stamps = stamps
        self.choices: list[Choice] = []
        self.gaps_s: list[float] = []
        # a load that this request waited for does not count as time in the queue
        self._admitted_s = time.monotonic()
        self._settings = settings
        self._catalog = catalog
        self._worker = served.worker
        self._max_model_len = served.info.max_model_len
        self._n = 1
        self._generates: list[Generate] = []
        self._was_retried = False
        self._waiting: dict[asyncio.Task[list[SequenceUpdate]], Choice] = {}

    @property
    def is_finished(self) -> bool:
        """True when every choice has its finish_reason."""
        return all(choice.finish_reason is not None for choice in self.choices)

    @property
    def num_prompt_tokens(self) -> int:
        """Over all prompts; one that has several choices counts once."""
        return sum(len(choice.prompt_ids) for choice in self.choices[:: self._n])

    @property
    def num_completion_tokens(self) -> int:
        """Over all choices."""
        return sum(choice.num_tokens for choice in self.choices)

    @property
    def num_reasoning_tokens(self) -> int:
        """Of the completion tokens, those that the models thought with."""
        return sum(choice.num_reasoning_tokens for choice in self.choices)

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that were not computed, because an earlier request had the same beginning."""
        return sum(choice.num_cached_tokens for choice in self.choices[:: self._n])

    async def submit(self, request: GenerationRequest, prompts: list[list[int]], answer: AnswerRules) -> None:
        """Send `n` sequences per prompt to the worker. Raises ApiError if they cannot run."""
        self._n = request.n
        seed = secrets.randbits(63) if request.seed is None else request.seed
        rules = TextRules(
            stops=request.stops,
            includes_stop=request.includes_stop,
            skips_special_tokens=request.skips_special_tokens,
            min_tokens=request.params.min_tokens,
        )
        visible = answer.visible_tokens(self.text_model)
        name = secrets.token_hex(8)
        for prompt_ids in prompts:
            limit = max_tokens(request, len(prompt_ids), self._max_model_len)
            if request.params.min_tokens > limit:
                raise InvalidRequest(f"'min_tokens' is more than the {limit} tokens to generate.", param="min_tokens")
            for position in range(request.n):
                index = len(self.choices)
                params = msgspec.structs.replace(
                    request.params, max_tokens=limit, seed=(seed + position * _SEED_STRIDE) & _SEED_MASK
                )
                self._generates.append(
                    Generate(
                        request_id=f"{name}-{index}", prompt_ids=prompt_ids, params=params, priority=request.priority
                    )
                )
                detokenizer = Detokenizer(
                    self.text_model.tokenizer,
                    prompt_ids,
                    skips_special_tokens=request.skips_special_tokens,
                    visible=visible,
                )
                output = answer.parser(prompt_ids, self.text_model)
                self.choices.append(Choice(index, prompt_ids, detokenizer, rules, output))
        try:
            self._send()
        except WorkerGone as gone:
            await self._retry(gone)

    def _send(self) -> None:
        for choice, generate in zip(self.choices, self._generates, strict=True):
            choice.stream = self._worker.submit(generate)

    async def next(self, timeout_s: float) -> list[Delta]:
        """What has happened, or an empty list if nothing did within timeout_s.

        Raises ApiError when the request fails: then it has failed as a whole, and the other choices are cancelled.
        """
        now_s = time.monotonic()
        deadline_s = self._deadline_s()
        try:
            async with asyncio.timeout(max(0.0, min(timeout_s, deadline_s - now_s))):
                arrived = await self._arrived()
        except TimeoutError:
            if time.monotonic() >= deadline_s:
                raise self._too_late() from None
            return []
        except WorkerGone as gone:
            await self._retry(gone)
            return []
        return self._advance(arrived)

    def cancel(self) -> None:
        """Forget every sequence that has not ended: the worker stops it at its next step."""
        self._drop_waiting()
        for choice in self.choices:
            if choice.stream is not None:
                self._worker.cancel(choice.stream.request_id)

    async def _arrived(self) -> list[tuple[Choice, list[SequenceUpdate]]]:
        """Wait for the worker. One choice is awaited as it is; several need a task each."""
        open_choices = [choice for choice in self.choices if choice.finish_reason is None]
        if len(self.choices) == 1:
            stream = open_choices[0].stream
            assert stream is not None
            return [(open_choices[0], await stream.get())]
        awaited = set(self._waiting.values())
        for choice in open_choices:
            if choice not in awaited:
                assert choice.stream is not None
                self._waiting[asyncio.ensure_future(choice.stream.get())] = choice
        done, _ = await asyncio.wait(self._waiting, return_when=asyncio.FIRST_COMPLETED)
        return [(choice, task.result()) for task in list(self._waiting) if task in done and (choice := self._pop(task))]

    def _pop(self, task: asyncio.Task[list[SequenceUpdate]]) -> Choice:
        return self._waiting.pop(task)

    def _advance(self, arrived: list[tuple[Choice, list[SequenceUpdate]]]) -> list[Delta]:
        deltas: list[Delta] = []
        for choice, updates in arrived:
            before_s, num_before = choice.last_token_s, choice.num_tokens
            deltas += choice.advance(updates)
            if choice.finish_reason is FinishReason.ERROR and choice.error is not None:
                raise from_worker(choice.error.code, choice.error.message)
            if choice.finish_reason in (FinishReason.ERROR, FinishReason.CANCELLED):
                raise WorkerCrashed("The worker ended this request without a reason.", code="internal")
            if choice.finish_reason is not None and updates[-1].finish_reason is None:
                # a stop string: the worker does not know of it
                assert choice.stream is not None
                self._worker.cancel(choice.stream.request_id)
            self._stamp(choice, before_s, num_before)
        return deltas

    def _stamp(self, choice: Choice, before_s: float | None, num_before: int) -> None:
        stamps = self.stamps
        if stamps.scheduled_s is None:
            stamps.scheduled_s = choice.scheduled_s
        if choice.num_tokens == num_before:
            return
        if stamps.first_token_s is None:
            stamps.first_token_s = choice.last_token_s
        stamps.last_token_s = choice.last_token_s
        if before_s is not None and choice.last_token_s is not None:
            self.gaps_s.append(choice.last_token_s - before_s)

    def _deadline_s(self) -> float:
        deadline_s = self.stamps.arrived_s + self._settings.request_timeout_s
        if self.stamps.scheduled_s is None:
            deadline_s = min(deadline_s, self._admitted_s + self._settings.queue_timeout_s)
        return deadline_s

    def _too_late(self) -> ApiError:
        if self.stamps.scheduled_s is None:
            return Unavailable(
                f"No place in a step of '{self.variant.id}' within {self._settings.queue_timeout_s:.0f} s.",
                retry_after_s=10,
                code="queue_timeout",
            )
        return DeadlineExceeded(f"The request took longer than {self._settings.request_timeout_s:.0f} s.")

    async def _retry(self, gone: WorkerGone) -> None:
        """Start over on the restarted worker, once, if the client has not seen anything yet."""
        if gone.is_deliberate:
            raise Unavailable(f"Variant '{self.variant.id}' was unloaded.", retry_after_s=5, code="model_unloading")
        if self._was_retried or self.num_completion_tokens:
            raise self._crashed()
        self._was_retried = True
        self._drop_waiting()
        logger.info("retrying on a new worker", extra={"variant": self.variant.id})
        served = await self._catalog.wait_ready(self.variant.id, max(0.0, self._deadline_s() - time.monotonic()))
        self._worker = served.worker
        try:
            self._send()
        except WorkerGone as again:
            raise self._crashed() from again

    def _crashed(self) -> ApiError:
        return WorkerCrashed(f"The worker of '{self.variant.id}' died during this request; try again.")

    def _drop_waiting(self) -> None:
        for task in self._waiting:
            if not task.cancel() and not task.cancelled():
                # mark as seen: it ended with the same WorkerGone as the one that brought us here
                task.exception()
        self._waiting = {}
