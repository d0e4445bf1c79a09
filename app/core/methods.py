"""What a compression may be asked for, told from the recipes themselves."""

from typing import Any

import msgspec

from app.schemas.methods import MethodObject
from workers.protocol.recipe_names import LAYOUTS, RECIPES, needs_calibration


def list_methods() -> list[MethodObject]:
    """Every method with its options, in the order of the documentation."""
    return [_method(name) for name in RECIPES]


def _method(name: str) -> MethodObject:
    kind = RECIPES[name]
    schema = msgspec.json.schema(kind)["$defs"][kind.__name__]
    summary, _, details = schema["description"].partition("\n\n")
    options: dict[str, Any] = schema["properties"]
    del options["type"]
    return MethodObject(
        method=name,
        summary=" ".join(summary.split()),
        details=" ".join(details.split()),
        needs_calibration=needs_calibration(kind()),  # type: ignore[arg-type]
        layouts=list(LAYOUTS[name]),
        options=options,
    )
