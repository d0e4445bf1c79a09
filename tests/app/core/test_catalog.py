"""Names, states and refusals of a real server; workers that are started here are stopped before they are ready."""

import asyncio
import os
import shutil
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from app_servers import LOAD_TIMEOUT_S, echo_settings, running_server
from budget_servers import hang_at_load

from app import embedded
from app.core import fit
from app.core.load_request import LoadRequest
from app.core.server import Server
from app.core.variants import VariantState
from app.errors import Conflict, DoesNotFit, Forbidden, ModelNotFound, NotFound, Unavailable, WorkerCrashed
from app.supervisor.restart import RestartPolicy
from tests.server_processes import serving_pids

DIES_AT_ONCE = "nonsense"


def make_dying(server: Server) -> None:
    """From now on every worker dies before it imports anything large."""
    restart = RestartPolicy(delays_s=(0.05,), max_crashes=3)
    server.supervisor.watch = replace(server.supervisor.watch, faults=DIES_AT_ONCE, restart=restart)


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A copy of the embedded model under a name of its own."""
    return Path(shutil.copytree(embedded.model_path(), tmp_path / "My Model"))


async def test_embedded_base_is_there_and_its_name_means_its_default_cast(server: Server) -> None:
    default = fit.auto_dtype("bf16", "cpu")

    assert server.catalog.resolve("slimstory").id == f"slimstory/{default}"
    assert server.catalog.resolve("slimstory/auto").id == f"slimstory/{default}"
    assert server.catalog.resolve("slimstory").state is VariantState.REGISTERED
    with pytest.raises(ModelNotFound, match="slimstory"):
        server.catalog.resolve("slimstori")
    with pytest.raises(Unavailable) as error:
        server.catalog.acquire("slimstory")
    assert error.value.code == "model_not_loaded"


async def test_concurrent_loads_are_one_load_and_unload_ends_it(server: Server) -> None:
    hang_at_load(server)
    request = LoadRequest(model="slimstory")

    variants = await asyncio.gather(*(server.loader.load(request, wait=False) for _ in range(5)))
    await asyncio.sleep(0.5)

    assert {(variant.id, variant.state) for variant in variants} == {(variants[0].id, VariantState.LOADING)}
    assert len(serving_pids(psutil.Process())) == 1
    with pytest.raises(Unavailable) as error:
        server.catalog.acquire("slimstory")
    assert error.value.code == "model_loading"
    with pytest.raises(Conflict) as conflict:
        await server.loader.load(LoadRequest(model="slimstory", max_model_len=64), wait=False)
    assert conflict.value.code == "variant_busy"

    unloaded = await server.catalog.unload("slimstory", wait=True, force=False)

    assert unloaded.state is VariantState.REGISTERED
    assert serving_pids(psutil.Process()) == []


async def test_load_that_dies_fails_with_a_reason_and_can_be_tried_again(server: Server) -> None:
    make_dying(server)

    with pytest.raises(WorkerCrashed, match="exited with status 1"):
        await server.loader.load(LoadRequest(model="echo"), wait=True)

    assert server.catalog.resolve("echo").state is VariantState.FAILED
    assert server.loader.unready() == {}, "a failed attempt of a client does not take the server out of service"
    again = await server.loader.load(LoadRequest(model="echo"), wait=False)
    assert again.state is VariantState.LOADING


async def test_model_named_at_the_start_keeps_the_server_unready_until_it_serves(server: Server) -> None:
    server.load_at_start(["/nowhere/to/be/found"])

    assert list(server.loader.unready()) == ["/nowhere/to/be/found"]
    while server.loader.unready()["/nowhere/to/be/found"] == "loading":
        await asyncio.sleep(0.05)
    assert "config.json" in server.loader.unready()["/nowhere/to/be/found"]


async def test_crash_restarts_by_itself_harms_no_other_and_a_crash_loop_fails(tmp_path: Path) -> None:
    settings = echo_settings(tmp_path, load_timeout_s=LOAD_TIMEOUT_S)
    async with running_server(settings) as server:
        await asyncio.gather(*(server.loader.load(LoadRequest(model=f"echo/{n}"), wait=True) for n in ("a", "b")))
        other = server.catalog.acquire("echo/b").worker
        first = server.catalog.acquire("echo/a").worker

        os.kill(first.pid, 9)
        await first.wait_gone()
        assert list(server.loader.unready()) == ["echo/a"]
        second = (await server.catalog.wait_ready("echo/a", LOAD_TIMEOUT_S)).worker

        assert second.pid != first.pid
        assert server.catalog.resolve("echo/a").restarts == 1
        assert server.loader.unready() == {}
        make_dying(server)
        os.kill(second.pid, 9)
        await second.wait_gone()
        with pytest.raises(WorkerCrashed, match="has failed"):
            await server.catalog.wait_ready("echo/a", LOAD_TIMEOUT_S)
        assert server.catalog.resolve("echo/a").state is VariantState.FAILED
        assert server.catalog.acquire("echo/b").worker is other


async def test_what_is_named_at_the_start_is_told_by_the_name_that_requests_use(
    server: Server, model_folder: Path
) -> None:
    before = server.loader.name_of(str(model_folder))
    variant = await server.loader.load(LoadRequest(model=str(model_folder), name="fox"), wait=False)

    assert before == "my-model"
    assert variant.base == server.loader.name_of(str(model_folder)) == "fox"
    assert [server.loader.name_of(name) for name in ("slimstory", "someone/Tiny", "nobody")] == [
        "slimstory",
        "tiny",
        "nobody",
    ]


async def test_folder_becomes_a_base_named_after_it_once(server: Server, model_folder: Path) -> None:
    variant = await server.loader.load(LoadRequest(model=str(model_folder), dtype="fp32"), wait=False)
    again = await server.loader.load(LoadRequest(model=str(model_folder), dtype="fp32"), wait=False)

    assert variant.id == again.id == "my-model/fp32"
    assert [base.name for base in server.catalog.bases.list()] == ["slimstory", "my-model"]
    with pytest.raises(Conflict) as taken:
        await server.loader.load(LoadRequest(model=str(embedded.model_path().parent), name="my-model"), wait=False)
    assert taken.value.code == "base_exists"


async def test_only_fp32_asked_for_by_name_forbids_rounding(server: Server, model_folder: Path) -> None:
    await server.loader.load(LoadRequest(model=str(model_folder), dtype="fp32"), wait=False)
    entry = server.catalog.entry("my-model/fp32")

    left_open = entry.serve_spec(LoadRequest(model="my-model/fp32"), "fp32", server.settings)

    assert entry.life.spec is not None
    assert (entry.life.spec.dtype, entry.life.spec.is_unrounded) == ("fp32", True)
    assert (left_open.dtype, left_open.is_unrounded) == ("fp32", False)


async def test_registration_survives_a_restart_and_a_change_of_its_files_is_noticed(
    tmp_path: Path, model_folder: Path
) -> None:
    settings = echo_settings(tmp_path / "data")
    async with running_server(settings) as first:
        await first.loader.load(LoadRequest(model=str(model_folder), dtype="fp32"), wait=False)
    os.utime(model_folder / "config.json", ns=(1, 1))

    async with running_server(settings) as second:
        assert second.catalog.resolve("my-model/fp32").state is VariantState.REGISTERED
        with pytest.raises(Conflict) as changed:
            await second.loader.load(LoadRequest(model="my-model"), wait=False)
    assert changed.value.code == "base_changed"


async def test_delete_needs_force_while_loaded_and_takes_the_last_cast_s_base_along(
    server: Server, model_folder: Path
) -> None:
    await server.loader.load(LoadRequest(model=str(model_folder), dtype="fp32"), wait=False)

    with pytest.raises(Conflict) as busy:
        await server.catalog.delete("my-model/fp32", force=False)
    await server.catalog.delete("my-model/fp32", force=True)
    with pytest.raises(Conflict) as protected:
        await server.catalog.delete(server.catalog.resolve("slimstory").id, force=True)

    assert busy.value.code == "variant_busy"
    assert protected.value.code == "variant_protected"
    assert server.catalog.bases.get("my-model") is None
    assert (model_folder / "model.safetensors").is_file(), "the user's files are the user's"


async def test_folder_outside_the_configured_ones_is_refused_before_it_is_looked_at(
    tmp_path: Path, model_folder: Path
) -> None:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (allowed / "link").symlink_to(model_folder)
    async with running_server(echo_settings(tmp_path / "data", models_dirs=(allowed,))) as server:
        for folder in (str(model_folder), str(allowed / "link"), str(allowed / ".." / "nothing")):
            with pytest.raises(Forbidden):
                await server.loader.load(LoadRequest(model=folder), wait=False)
        with pytest.raises(NotFound):
            await server.loader.load(LoadRequest(model=str(allowed / "nothing")), wait=False)


async def test_model_that_does_not_fit_is_refused_before_a_process_starts(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "available_bytes", lambda: 2**20)

    with pytest.raises(DoesNotFit):
        await server.loader.load(LoadRequest(model="slimstory"), wait=False)

    assert server.catalog.resolve("slimstory").state is VariantState.REGISTERED
    assert serving_pids(psutil.Process()) == []
