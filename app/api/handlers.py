"""Every failure as an error object, whatever raised it and wherever."""

from typing import Final

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Scope

from app.api.error_shapes import shaped
from app.api.validation import clip, refused
from app.errors import ApiError

_encode = msgspec.json.Encoder().encode
_JSON: Final = "application/json"


def error_response(error: ApiError, scope: Scope) -> Response:
    """The answer for one error of our tree, in the shape that this route has."""
    content = shaped(error.body()["error"], error.status, scope)
    return Response(_encode(content), error.status, headers=error.headers, media_type=_JSON)


def install_handlers(app: FastAPI) -> None:
    """Register the handlers; what none of them knows reaches the guard, which logs it and answers 500."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(RequestValidationError, _parameter_error)
    app.add_exception_handler(ClientDisconnect, _client_gone)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error, request.scope)


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    method, path = request.method, clip(request.scope["path"])
    if error.status_code == 404:
        return _plain(request.scope, 404, f"Invalid URL ({method} {path})", code=None)
    if error.status_code == 405:
        message = f"Not allowed to {method} on {path}."
        return _plain(request.scope, 405, message, code="method_not_supported", headers=dict(error.headers or {}))
    return _plain(request.scope, error.status_code, "The request was not understood.", code="invalid_request")


async def _parameter_error(request: Request, error: Exception) -> Response:
    """Path and query parameters, which FastAPI checks itself."""
    assert isinstance(error, RequestValidationError)
    # the first step of a place says only that it is in the URL
    details = [{**detail, "loc": detail["loc"][1:]} for detail in error.errors()]
    return error_response(refused(details), request.scope)


async def _client_gone(request: Request, error: Exception) -> Response:
    """Nobody reads this; 499 is what access logs are used to."""
    return Response(status_code=499)


def _plain(
    scope: Scope, status: int, message: str, *, code: str | None, headers: dict[str, str] | None = None
) -> Response:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return Response(_encode(shaped(error, status, scope)), status, headers=headers, media_type=_JSON)
