"""GET / and its files: the page. It holds no data, so it needs no key; what it asks the API for does."""

from typing import Final

from fastapi import APIRouter
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.page import FOLDER

router = APIRouter()
# Only its own files and its own server: a text that a model wrote can never become a script or a request elsewhere.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# no-cache: kept, but asked about each time, so that a new version of the server is never shown in an old page
_HEADERS: Final = {
    "content-security-policy": _POLICY,
    "cache-control": "no-cache",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


@router.get("/", include_in_schema=False)
@router.head("/", include_in_schema=False)
async def page() -> Response:
    """The page for people."""
    return FileResponse(FOLDER / "index.html", headers=_HEADERS)


class PageFiles(StaticFiles):
    """Styles and scripts of the page."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """One file, or 304 if the browser has it."""
        response = await super().get_response(path, scope)
        response.headers.update(_HEADERS)
        return response
