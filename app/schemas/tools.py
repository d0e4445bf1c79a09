"""Tools in the body of a chat: which functions there are, which must be called, which have been called."""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from app.schemas.sampling import broken_rule

MAX_TOOLS: Final = 128
MAX_CALLS: Final = 128

_strict = ConfigDict(extra="ignore", strict=True, frozen=True, hide_input_in_errors=True)

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


def refuse_other_types(value: Any, known: str) -> Any:
    """The value; raises a broken rule if it says that it is of another type, such as a tool that only others run."""
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind != known:
        raise broken_rule(
            "unsupported_parameter", f"Type '{kind}' is not supported here, only '{known}' is", param="type"
        )
    return value


class FunctionDefinition(BaseModel):
    """One function. parameters: JSON Schema of an object. strict: every call keeps to it, also one that need not be."""

    model_config = _strict

    name: FunctionName
    description: str | None = Field(None, max_length=2**16)
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _is_object(self) -> Self:
        if (self.parameters or {}).get("type", "object") != "object":
            raise broken_rule(
                "invalid_schema", "Arguments are an object, so its 'type' must be 'object'", param="parameters"
            )
        return self


class Tool(BaseModel):
    """Something that the model may call."""

    model_config = _strict

    type: Literal["function"]
    function: FunctionDefinition


class FunctionChoice(BaseModel):
    """The name of a function."""

    model_config = _strict

    name: FunctionName


class NamedChoice(BaseModel):
    """The one tool that must be called."""

    model_config = _strict

    type: Literal["function"]
    function: FunctionChoice


def choice_kind(value: Any) -> str | None:
    """Tag of a union of a mode and the tool that must be called."""
    if isinstance(value, str):
        return "<mode>"
    return "<named>" if isinstance(value, dict) else None


ChoiceMode = Literal["none", "auto", "required"]
ToolChoice = Annotated[
    Annotated[ChoiceMode, Tag("<mode>")] | Annotated[NamedChoice, Tag("<named>")],
    Discriminator(choice_kind),
]


class FunctionCall(BaseModel):
    """Which function the assistant called. arguments: JSON, or what the model wrote in its place."""

    model_config = _strict

    name: str = Field(min_length=1, max_length=256)
    arguments: str = "{}"


class ToolCall(BaseModel):
    """One call in an assistant's earlier message."""

    model_config = _strict

    id: str = Field(min_length=1, max_length=256)
    type: Literal["function"] = "function"
    function: FunctionCall


class ToolFields(BaseModel):
    """Mixed into the body of a chat."""

    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _tools_agree(self) -> Self:
        names = [tool.function.name for tool in self.tools or ()]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise broken_rule(
                    "invalid_value", "Two functions have the same name", param=f"tools[{index}].function.name"
                )
        if self.tool_choice not in (None, "none", "auto") and not names:
            raise broken_rule("invalid_value", "It is only allowed when there are 'tools'", param="tool_choice")
        if isinstance(self.tool_choice, NamedChoice) and self.tool_choice.function.name not in names:
            raise broken_rule(
                "invalid_value", "'tools' has no function of this name", param="tool_choice.function.name"
            )
        return self

    @property
    def must_call(self) -> bool:
        """True if the answer has to be a call."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedChoice)

    @property
    def may_call(self) -> bool:
        """True if the answer can be a call or text."""
        return bool(self.tools) and self.tool_choice in (None, "auto")
