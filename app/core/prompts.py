"""From a request's prompts to token ids that the model can take, or the error that says why not."""

from typing import Final

from app.core.answers import AnswerRules
from app.core.chat_template import Conversation, render_conversation
from app.core.renderer import Renderer
from app.core.request import GenerationRequest, Prompt
from app.core.text import TextModel
from app.errors import ContextLengthExceeded, InvalidRequest
from workers.protocol.messages import ModelInfo

# LangChain looks for the code in the text of the exception, where openai 3 shows the message alone.
_CODE_IN_WORDS: Final = " (context_length_exceeded)"


async def encode_prompts(
    request: GenerationRequest, text_model: TextModel, info: ModelInfo, renderer: Renderer, rules: AnswerRules
) -> list[list[int]]:
    """Token ids per prompt, each with room for at least one token more."""
    _check_token_ids(request, info.vocab_size)
    encoded: list[list[int]] = []
    for position, prompt in enumerate(request.prompts):
        param = request.prompt_param if len(request.prompts) == 1 else f"{request.prompt_param}[{position}]"
        ids = await encode_prompt(request, prompt, text_model, info, renderer, rules)
        if not ids:
            raise InvalidRequest("The prompt has no tokens; give it at least one.", param=param)
        if isinstance(prompt, list):
            check_vocabulary(ids, info.vocab_size, param)
        _check_room(request, len(ids), info.max_model_len)
        encoded.append(ids)
    return encoded


def check_vocabulary(token_ids: list[int], vocab_size: int, param: str) -> None:
    """Raises InvalidRequest for the first token id that the model does not have. param: the field they came in."""
    if max(token_ids, default=0) < vocab_size:
        return
    index = next(index for index, token_id in enumerate(token_ids) if token_id >= vocab_size)
    raise InvalidRequest(
        f"Token id {token_ids[index]} is outside of this model's vocabulary of {vocab_size}.",
        code="integer_above_max_value",
        param=f"{param}[{index}]",
    )


async def rendered(conversation: Conversation, text_model: TextModel, renderer: Renderer, rules: AnswerRules) -> str:
    """The text that the model is given for a conversation, by the rules of its answer."""
    return rules.closed(await render_conversation(renderer, text_model, conversation, rules.shown_family))


async def encode_prompt(
    request: GenerationRequest,
    prompt: Prompt,
    text_model: TextModel,
    info: ModelInfo,
    renderer: Renderer,
    rules: AnswerRules,
) -> list[int]:
    """Token ids of one prompt; its length has not been checked, but for texts that need no encoding to be too long."""
    if isinstance(prompt, list):
        return prompt
    adds_special_tokens = request.adds_special_tokens
    if isinstance(prompt, Conversation):
        # templates write the special tokens themselves
        prompt, adds_special_tokens = await rendered(prompt, text_model, renderer, rules), False
    fewest = text_model.fewest_tokens(prompt)
    if fewest > info.max_model_len:
        raise _too_long(request, f"at least {fewest}", info.max_model_len)
    ids = await text_model.encode(prompt, adds_special_tokens=adds_special_tokens)
    return ids or text_model.begin_ids()


def max_tokens(request: GenerationRequest, num_prompt_tokens: int, max_model_len: int) -> int:
    """How many tokens to generate behind a prompt of this length."""
    if request.max_tokens is not None:
        return request.max_tokens
    room = max_model_len - num_prompt_tokens
    return room if request.default_max_tokens is None else min(room, request.default_max_tokens)


def _check_room(request: GenerationRequest, num_prompt_tokens: int, max_model_len: int) -> None:
    asked = request.max_tokens
    fewest = 1 if asked is None else min(asked, 1)
    if num_prompt_tokens + fewest > max_model_len:
        raise _too_long(request, str(num_prompt_tokens + (asked or fewest)), max_model_len)
    if asked is not None and num_prompt_tokens + asked > max_model_len:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {max_model_len} tokens. However, you requested "
            f"{num_prompt_tokens + asked} tokens ({num_prompt_tokens} in the {request.prompt_param}, {asked} in the "
            f"completion). Please reduce {request.max_tokens_param}.{_CODE_IN_WORDS}",
            param=request.max_tokens_param,
        )


def _too_long(request: GenerationRequest, requested: str, max_model_len: int) -> ContextLengthExceeded:
    return ContextLengthExceeded(
        f"This model's maximum context length is {max_model_len} tokens. However, you requested {requested} tokens. "
        f"Please reduce the length of the {request.prompt_param}.{_CODE_IN_WORDS}",
        param=request.prompt_param,
    )


def _check_token_ids(request: GenerationRequest, vocab_size: int) -> None:
    for param, ids in (("stop_token_ids", request.params.stop_token_ids), ("logit_bias", request.params.logit_bias)):
        if ids and max(ids) >= vocab_size:
            raise InvalidRequest(
                f"A token id in '{param}' is outside of this model's vocabulary of {vocab_size}.", param=param
            )
