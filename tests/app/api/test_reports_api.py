"""GET /v1/reports: what is kept of measurements, and whose."""

import httpx
import pytest
from app_servers import running_app

from app.core.server import Server
from app.settings import Settings
from app.store import measurements

NAME = "slimstory"


async def test_reports_are_the_newest_of_each_kind_and_with_history_all(settings: Settings) -> None:
    async with running_app(settings) as (app, client):
        server: Server = app.state.server
        variant = server.catalog.resolve(NAME).id
        for kind, value in (("speed", 1), ("other", 2), ("speed", 3)):
            await server.store.run(measurements.put, variant, kind, {"x": value}, device="cpu")

        newest = (await client.get("/v1/reports", params={"variant": NAME})).json()["data"]
        every = (await client.get("/v1/reports", params={"variant": variant, "history": "true"})).json()["data"]

    assert [(one["variant"], one["kind"], one["values"]["x"]) for one in newest] == [
        (variant, "other", 2),
        (variant, "speed", 3),
    ]
    assert [one["values"]["x"] for one in every] == [1, 2, 3]
    # it has no files of its own, and is loaded from its base's
    assert newest[0]["bytes_on_disk"] > 1_000_000


@pytest.mark.parametrize("name", ["slimstory/int9", "", "nope"])
async def test_reports_of_an_unknown_variant_are_no_empty_list(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.get("/v1/reports", params={"variant": name})

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
