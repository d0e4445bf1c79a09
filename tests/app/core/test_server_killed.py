"""SIGKILL of the whole server while a job runs: no child is left, the job is not lost and publishes once."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from app_servers import echo_settings, running_server

SERVER = """
import asyncio, pathlib, sys
import psutil
from app.core.compress_request import resolve_spec
from app.core.server import Server
from app.schemas.jobs import QuantizeBody
from app.settings import Settings

async def main():
    server = Server(Settings(data_dir=pathlib.Path(sys.argv[1]), num_threads=1, auto_measure="off"))
    await server.start()
    body = QuantizeBody(model="slimstory", method="int8")
    job = await server.jobs.submit(resolve_spec(body, server.catalog, server.settings), None)
    # It has bound its life to ours before it imports what makes it this large.
    while not (large := [child for child in psutil.Process().children() if child.memory_info().rss > 2**26]):
        await asyncio.sleep(0.01)
    # so that it neither ends by itself nor sees its socket close: the kernel has to end it
    large[0].suspend()
    print(job.id, flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""
NO_CHILD_AFTER_S = 60


@pytest.mark.timeout(900)
async def test_job_of_a_killed_server_is_run_again_and_publishes_once(tmp_path: Path) -> None:
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with server:
        assert server.stdout is not None
        job_id = server.stdout.readline().strip()
        children = psutil.Process(server.pid).children(recursive=True)
        assert ["job" in child.cmdline() for child in children] == [True]

        server.kill()
        _, alive = psutil.wait_procs(children, timeout=NO_CHILD_AFTER_S)

    assert not alive, f"children are left {NO_CHILD_AFTER_S} s after the kill"
    async with running_server(echo_settings(tmp_path)) as second:
        async for _ in second.jobs.events(job_id, 0, ping_s=15):
            pass
        job = await second.jobs.get(job_id)

        assert (job.state, job.attempt, job.error) == ("succeeded", 2, None)
        assert job.result is not None
        assert job.result.kl_mean < 0.05
        compressed = [variant for variant in second.catalog.list() if variant.kind == "compressed"]
        assert [variant.id for variant in compressed] == ["slimstory/int8"]
        assert compressed[0].quality is not None
    assert [folder.name for folder in (tmp_path / "variants").iterdir()] == [job_id]
    assert not list((tmp_path / "staging").iterdir())
