"""What a chat template can do with tools."""

from dataclasses import dataclass
from typing import Final, Literal

# Mistral's templates refuse ids of any other form.
SHORT_ID_CHARS: Final = 9


@dataclass(frozen=True, slots=True)
class TemplateAbilities:
    """shows_tools: it tells the model about tools. arguments: how calls in earlier messages must have theirs.

    arguments None: it does not show such calls at all. has_short_ids: ids of calls must be 9 letters and digits.
    """

    shows_tools: bool
    arguments: Literal["dict", "text"] | None
    has_short_ids: bool = False
