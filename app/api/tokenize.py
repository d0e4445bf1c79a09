"""POST /tokenize, POST /detokenize and GET /tokenizer_info, as vLLM has them; the variant need not be loaded."""

import asyncio
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from app.api.body import json_body
from app.api.tools import to_tools
from app.api.variant_prefix import VARIANT
from app.core.answers import family_of
from app.core.catalog import Catalog
from app.core.chat_template import Conversation, render_conversation
from app.core.prompts import check_vocabulary
from app.core.renderer import Renderer
from app.core.text import TextModels
from app.core.tools.use import ToolUse
from app.core.variants import Variant, VariantState
from app.errors import InvalidRequest
from app.schemas.tokenize import DetokenizeRequest, TokenizeRequest

router = APIRouter()
_encode = msgspec.json.Encoder().encode


@router.post("/tokenize")
async def tokenize(request: Request, body: Annotated[TokenizeRequest, Depends(json_body(TokenizeRequest))]) -> Response:
    """The token ids of a prompt, or of a conversation behind its chat template."""
    variant: Variant = request.app.state.server.catalog.resolve(body.model)
    texts: TextModels = request.app.state.texts
    renderer: Renderer = request.app.state.renderer
    text_model = await texts.get(variant.folder)
    adds_special_tokens = body.add_special_tokens is not False
    text = body.prompt
    if text is None:
        adds_special_tokens = bool(body.add_special_tokens)
        text = await render_conversation(
            renderer, text_model, _conversation(body), family_of(variant.tool_parser, text_model)
        )
    ids = await text_model.encode(text, adds_special_tokens=adds_special_tokens)
    content: dict[str, Any] = {"count": len(ids), "max_model_len": _max_model_len(variant), "tokens": ids}
    if body.return_token_strs:
        # in a thread of its own, as a long list would hold everybody else up
        content["token_strs"] = await asyncio.to_thread(lambda: [*map(text_model.token_strings.text, ids)])
    return Response(_encode(content), media_type="application/json")


@router.post("/detokenize")
async def detokenize(
    request: Request, body: Annotated[DetokenizeRequest, Depends(json_body(DetokenizeRequest))]
) -> Response:
    """The text of these tokens, special ones included."""
    variant: Variant = request.app.state.server.catalog.resolve(body.model)
    texts: TextModels = request.app.state.texts
    text_model = await texts.get(variant.folder)
    size = text_model.tokenizer.get_vocab_size(with_added_tokens=True)
    check_vocabulary(body.tokens, size, "tokens")
    return Response(_encode({"prompt": await text_model.decode_long(body.tokens)}), media_type="application/json")


@router.get("/tokenizer_info")
async def tokenizer_info(request: Request, model: str | None = None) -> Response:
    """Special tokens and chat template, so that a client needs no tokenizer of its own."""
    variant = _variant_of_query(request, model)
    texts: TextModels = request.app.state.texts
    text_model = await texts.get(variant.folder)
    content = {
        **dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token")),
        **text_model.special_tokens,
        "chat_template": text_model.chat_template,
        "model": variant.id,
        "max_model_len": _max_model_len(variant),
        "vocab_size": text_model.tokenizer.get_vocab_size(with_added_tokens=True),
    }
    return Response(_encode(content), media_type="application/json")


def _variant_of_query(request: Request, model: str | None) -> Variant:
    """The variant of the path's prefix, else of the query, else the only one that is ready."""
    catalog: Catalog = request.app.state.server.catalog
    name = request.scope.get(VARIANT, model)
    if name is not None:
        return catalog.resolve(name)
    ready = [variant for variant in catalog.list() if variant.state is VariantState.READY]
    if len(ready) == 1:
        return ready[0]
    raise InvalidRequest(
        f"{len(ready)} variants are ready; say which with ?model=, or call /v/<variant>/tokenizer_info.",
        code="missing_required_parameter",
        param="model",
    )


def _conversation(body: TokenizeRequest) -> Conversation:
    return Conversation(
        messages=[message.for_template() for message in body.messages or ()],
        tool_use=ToolUse(tools=to_tools(body.tools)),
        adds_generation_prompt=body.add_generation_prompt is not False,
        continues_final=bool(body.continue_final_message),
        switches=dict(body.chat_template_kwargs or {}),
    )


def _max_model_len(variant: Variant) -> int:
    return variant.max_model_len if variant.info is None else variant.info.max_model_len
