"""GET /v1/methods tells what POST /v1/quantize takes."""

import pytest

from app.core.methods import list_methods
from app.core.recipes import recipe_of
from app.schemas.methods import MethodObject
from workers.protocol.recipe_names import RECIPES, method_of


def test_every_method_is_listed_with_a_summary_and_layouts() -> None:
    found = {one.method: one for one in list_methods()}

    assert list(found) == list(RECIPES)
    assert all(one.summary.endswith(".") for one in found.values())
    assert found["gptq"].needs_calibration
    assert not found["rtn"].needs_calibration
    assert found["gptq"].layouts[0] == "gptq"
    assert found["gptq"].options["group_size"] == {"type": "integer", "minimum": -1, "maximum": 1024, "default": 128}


@pytest.mark.parametrize("method", list_methods(), ids=lambda one: one.method)
def test_listed_defaults_are_options_that_a_job_takes(method: MethodObject) -> None:
    options = {name: schema["default"] for name, schema in method.options.items() if schema["default"] is not None}
    if method.method == "auto":
        options["bits"] = 4.5

    assert method_of(recipe_of(method.method, options)) == method.method
