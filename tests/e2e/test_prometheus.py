"""`make monitoring`: a real Prometheus scrapes a real server under traffic; every panel and alert gets its answer."""

import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import promql_parser
import pytest
from monitored import GPTQ, INT8, MonitoredServer, compress_and_measure, monitored_server, variant_of
from prometheus import CONFIG, FOLDER, Prometheus, eventually, prometheus, promtool
from promql import RULES, Question, alerts, dashboards, panels, rules, selectors

pytestmark = [
    pytest.mark.skipif(FOLDER is None, reason="no Prometheus: SLIMSERVE_TEST_PROMETHEUS names no folder with usr/bin"),
    pytest.mark.timeout(900),
]

VARIANT = variant_of(INT8)
# Rates look at a minute; what is asked of them needs less.
_TRAFFIC_S = 20


@dataclass
class Watched:
    """A server that has had traffic and jobs, and the Prometheus that watched all of it."""

    monitored: MonitoredServer
    prometheus: Prometheus
    exposition: str


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("prometheus")
    with (
        monitored_server(folder) as monitored,
        prometheus(folder, monitored.server.url.removeprefix("http://")) as watching,
        monitored.server.client() as client,
    ):
        for recipe in (INT8, GPTQ):
            compress_and_measure(monitored, recipe)
        with monitored.traffic():
            time.sleep(_TRAFFIC_S)
        yield Watched(monitored, watching, monitored.scrape(client))


def test_configuration_rules_and_metrics_pass_promtool(watched: Watched) -> None:
    # without the key, which is only in the container
    checks = [promtool("check", "config", "--syntax-only", CONFIG), promtool("check", "rules", RULES)]
    linted = promtool("check", "metrics", text=watched.exposition)

    assert [status for status, _ in checks] == [0, 0], checks
    assert linted == (0, "")


def test_every_alert_fires_when_it_should_and_not_before() -> None:
    status, said = promtool("test", "rules", Path(__file__).parent / "alerts_under_test.yaml")

    assert status == 0, said


def test_every_alert_has_its_own_test() -> None:
    tested = (Path(__file__).parent / "alerts_under_test.yaml").read_text("utf-8")

    assert [rule["alert"] for rule in rules() if f'alertname="{rule["alert"]}"' not in tested] == []


def test_every_panel_has_data(watched: Watched) -> None:
    questions = [question for board in dashboards().values() for question in panels(board, VARIANT)]

    empty = [str(question) for question in questions if not has_numbers(watched.prometheus, question)]

    assert len(questions) > 50
    assert empty == []


def has_numbers(prometheus: Prometheus, question: Question) -> bool:
    values = prometheus.values(question.expr, is_instant=question.is_instant)
    return any(math.isfinite(value) for value in values)


def test_every_alert_is_evaluated_over_series_that_exist_and_silent_without_cause(watched: Watched) -> None:
    found = watched.prometheus.alerts()
    inputs = {str(selector) for alert in alerts() for selector in selectors(promql_parser.parse(alert.expr))}

    missing = [selector for selector in inputs if not watched.prometheus.now(selector)]

    assert set(found) == {rule["alert"] for rule in rules()}
    assert {name: rule["lastError"] for name, rule in found.items() if rule["health"] != "ok"} == {}
    assert missing == []
    assert {name for name, rule in found.items() if rule["state"] != "inactive"} <= {"SlimserveQuality"}
    # the variant that saw too little text may be as bad as the alert says
    far = {series["metric"]["variant"] for series in watched.prometheus.now("slimserve_variant_kl_mean > 0.1")}
    assert {alert["labels"]["variant"] for alert in found["SlimserveQuality"]["alerts"]} == far
    assert VARIANT not in far


def test_killed_worker_is_seen_and_its_memory_is_gone(watched: Watched) -> None:
    monitored, asked = watched.monitored, watched.prometheus
    restarts = f'slimserve_worker_restarts_total{{variant="{VARIANT}"}}'
    with monitored.server.client() as client:
        client.post("/v1/unload", json={"model": VARIANT})
        others = monitored.server.worker_pids()
        client.post("/v1/load", json={"model": VARIANT, "wait": True})
    (victim,) = monitored.server.worker_pids() - others
    eventually(lambda: asked.now(f"{restarts} == 0"))

    killed_s = time.time()
    os.kill(victim, signal.SIGKILL)

    eventually(lambda: asked.now(f"{restarts} == 1"))
    monitored.server.wait_for_state(VARIANT, "ready")
    eventually(lambda: asked.now(f'slimserve_memory_bytes{{variant="{VARIANT}", kind="weights"}} > 0'))
    # it may have been down between two looks of ours, but not between two scrapes
    down = f'slimserve_variant_state{{variant="{VARIANT}", state="restarting"}}'
    pending = f'ALERTS{{alertname="SlimserveWorkerDown", variant="{VARIANT}", alertstate="pending"}}'
    held = f'count(slimserve_memory_bytes{{variant="{VARIANT}"}}) or vector(0)'
    assert 1 in asked.between(down, killed_s)
    assert 1 in asked.between(pending, killed_s)
    assert 0 in asked.between(held, killed_s)
    assert others < monitored.server.worker_pids()


def test_server_that_has_gone_is_seen(watched: Watched) -> None:
    watched.monitored.server.process.terminate()

    eventually(lambda: watched.prometheus.alerts()["SlimserveDown"]["state"] == "pending")
