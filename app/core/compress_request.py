"""What a request for a compression means here: which base, recipe and name; and all that is refused at once."""

import json
from pathlib import Path
from typing import Final

from app.core.catalog import Catalog
from app.core.job_documents import CalibrationText, QuantizeSpec
from app.core.names import check_part
from app.core.recipes import check_divides, check_layout, recipe_of
from app.core.variants import CAST_METHODS
from app.errors import InvalidRequest, NotFound
from app.schemas.jobs import CalibrationBody, OverrideBody, QuantizeBody
from app.settings import Settings
from app.store.bases import BaseRow
from workers.protocol.recipe_names import (
    LAYOUTS_WITHOUT_HEAD,
    MIXED_LAYOUTS,
    are_stored_alike,
    default_layout,
    default_max_kl,
    method_of,
    needs_calibration,
    variant_suffix,
)
from workers.protocol.recipes import AutoRecipe, CastRecipe, Override, Recipe

_DATA_METHODS: Final = "gptq, awq, smoothquant and auto"


def resolve_spec(body: QuantizeBody, catalog: Catalog, settings: Settings) -> QuantizeSpec:
    """The job to queue. Raises NotFound for an unknown base, InvalidRequest, Forbidden for a file out of bounds."""
    base = plain_base(body.model, catalog)
    recipe = recipe_of(body.method, body.options)
    check_layout(body.layout, recipe)
    hidden_size = _hidden_size(base)
    check_divides(recipe, hidden_size)
    overrides = tuple(_override(one, index, hidden_size) for index, one in enumerate(body.overrides))
    _check_mix(body.layout or default_layout(recipe), recipe, overrides)
    if body.quantize_head and (body.layout or default_layout(recipe)) in LAYOUTS_WITHOUT_HEAD:
        raise InvalidRequest(
            "Readers of layouts gptq, gptq_v2 and awq expect the output head as it was; give layout 'pack-quantized'.",
            param="quantize_head",
        )
    if isinstance(recipe, AutoRecipe):
        _refuse_beside_auto(body)
    name = check_part(body.name or variant_suffix(recipe), "name")
    if name in (*CAST_METHODS, "auto"):
        raise InvalidRequest(f"'{name}' is the name of a dtype; give another.", param="name")
    recipes = [recipe, *(one.recipe for one in overrides if one.recipe is not None)]
    return QuantizeSpec(
        base=base.name,
        variant=f"{base.name}/{name}",
        method=method_of(recipe),
        recipe=recipe,
        layout=body.layout,
        overrides=overrides,
        calibration=_calibration(body.calibration, recipes, catalog),
        quantize_head=body.quantize_head,
        max_kl=body.max_kl if body.max_kl is not None else max(map(default_max_kl, recipes)),
        skip=tuple(body.skip or ()),
        device=body.device or settings.device,
        seed=body.seed,
        force=body.force,
    )


def plain_base(model: str, catalog: Catalog) -> BaseRow:
    """The uncompressed base that a base's or a cast's name means. Raises NotFound, InvalidRequest."""
    entry = catalog.find(model)
    if entry is not None and not entry.is_cast:
        raise InvalidRequest(f"'{model}' is a variant; name its base, '{entry.row.base}'.", param="model")
    base = catalog.bases.get(entry.row.base if entry is not None else model.removesuffix("/auto"))
    if base is None:
        raise NotFound(
            f"No base '{model[:160]}'; POST /v1/load registers one, GET /v1/bases lists all of them.",
            code="base_not_found",
            param="model",
        )
    if base.info.quantization is not None:
        raise InvalidRequest(
            f"Base '{base.name}' is stored as {base.info.quantization} already; name one that is not compressed.",
            param="model",
        )
    return base


def _check_mix(layout: str, recipe: Recipe, overrides: tuple[Override, ...]) -> None:
    for index, one in enumerate(overrides):
        if isinstance(one.recipe, CastRecipe) or (one.recipe is not None and isinstance(recipe, CastRecipe)):
            raise InvalidRequest("A cast changes every tensor alike.", param=f"overrides[{index}].method")
        if one.recipe is None or layout in MIXED_LAYOUTS or are_stored_alike(recipe, one.recipe):
            continue
        raise InvalidRequest(
            f"Layout '{layout}' stores all modules alike; give one of {', '.join(sorted(MIXED_LAYOUTS))}, or an "
            "override of the same bits and groups.",
            param="layout",
        )


def _refuse_beside_auto(body: QuantizeBody) -> None:
    """Raise InvalidRequest for what would choose bits too."""
    for param, is_given in (("overrides", body.overrides), ("quantize_head", body.quantize_head)):
        if is_given:
            raise InvalidRequest(
                f"Method 'auto' chooses the bits of every linear of the decoder layers itself; leave '{param}' out "
                "('skip' leaves modules alone).",
                param=param,
            )


def _override(body: OverrideBody, index: int, hidden_size: int | None) -> Override:
    prefix = f"overrides[{index}]."
    if body.method is None:
        if body.options:
            raise InvalidRequest("Options without a method mean nothing.", param=f"{prefix}options")
        return Override(pattern=body.pattern)
    recipe = recipe_of(body.method, body.options, prefix)
    if isinstance(recipe, AutoRecipe):
        raise InvalidRequest("Method 'auto' is for whole models.", param=f"{prefix}method")
    check_divides(recipe, hidden_size, prefix)
    return Override(pattern=body.pattern, recipe=recipe)


def _calibration(body: CalibrationBody | None, recipes: list[Recipe], catalog: Catalog) -> CalibrationText | None:
    if not any(needs_calibration(recipe) for recipe in recipes):
        if body is not None:
            raise InvalidRequest(f"Only {_DATA_METHODS} look at a text; leave 'calibration' out.", param="calibration")
        return None
    if body is None:
        return CalibrationText()
    if body.text is not None and (body.path is not None or body.source is not None):
        raise InvalidRequest("Give a text, or where to find one, not both.", param="calibration.text")
    if (body.source == "file" and body.path is None) or (body.source == "default" and body.path is not None):
        raise InvalidRequest("Source 'file' needs a 'path', and 'default' takes none.", param="calibration.path")
    return CalibrationText(
        text=body.text,
        path=text_path(body.path, "calibration.path", catalog),
        num_samples=body.num_samples,
        sequence_length=body.sequence_length,
        seed=body.seed,
    )


def text_path(path: str | None, param: str, catalog: Catalog) -> str | None:
    """The real path of a text that this server may read. Raises Forbidden, InvalidRequest."""
    if path is None:
        return None
    file = catalog.bases.readable(path, param)
    if not file.is_file():
        raise InvalidRequest("There is no file of this name.", param=param)
    return str(file)


def _hidden_size(base: BaseRow) -> int | None:
    """Columns of most of the base's matrices, as its config.json says; None where it does not say."""
    try:
        config = json.loads(Path(base.info.path, "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    text = config.get("text_config", config)
    size = text.get("hidden_size", text.get("n_embd")) if isinstance(text, dict) else None
    return size if isinstance(size, int) and size > 0 else None
