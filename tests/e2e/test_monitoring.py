"""Every panel, every alert and the guide speak of series that a running server has, and docker/ is whole."""

import copy
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import compose_spec
import pytest
import yaml
from cli_server import ROOT
from monitored import BASE, GPTQ, MonitoredServer, compress_and_measure, monitored_server, variant_of
from promql import DASHBOARDS, OWN_SERIES, Question, alerts, dashboards, missing, panels, rules

DOCKER = ROOT / "docker"
GUIDE = ROOT / "docs" / "guides" / "monitoring.md"

# Seconds alone, minutes where other work shares two cores.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MonitoredServer]:
    with monitored_server(tmp_path_factory.mktemp("monitoring")) as monitored:
        compress_and_measure(monitored, GPTQ)
        with monitored.server.client() as client:
            for model in (BASE, variant_of(GPTQ)):
                monitored.ask(client, model)
            monitored.scrape(client)
        yield monitored


def test_dashboards_and_alerts_ask_for_series_and_labels_that_exist(known: MonitoredServer) -> None:
    series = known.known | OWN_SERIES
    questions = [question for board in dashboards().values() for question in panels(board)] + list(alerts())

    problems = {str(question): found for question in questions if (found := missing(question, series))}

    assert len(questions) > 50
    assert problems == {}


@pytest.mark.parametrize(
    ("expr", "problem"),
    [
        ("rate(slimserve_nothing_total[1m])", "no series slimserve_nothing_total"),
        ('slimserve_jobs{colour="red"} > 0', "slimserve_jobs has no label colour"),
        ("sum by (colour) (slimserve_jobs)", "no series has a label colour"),
        ("slimserve_jobs * on (colour) group_left (kind) slimserve_jobs", "no series has a label colour"),
    ],
    ids=["name", "matcher", "by", "on"],
)
def test_what_does_not_exist_is_found(expr: str, problem: str) -> None:
    assert missing(Question("here", expr), {"slimserve_jobs": {"kind", "state"}}) == [problem]


def test_guide_lists_every_metric_and_no_other(known: MonitoredServer) -> None:
    listed = set(re.findall(r"^\| `(slimserve_\w+)` ", GUIDE.read_text("utf-8"), re.MULTILINE))

    told = {name for name in known.known if name.startswith("slimserve_")}

    assert listed == {re.sub(r"_(bucket|sum|count)$", "", name) for name in told}


def test_guide_lists_the_labels_of_every_metric(known: MonitoredServer) -> None:
    rows = re.findall(r"^\| `(slimserve_\w+)` \| \w+ \| ([^|]*) \|", GUIDE.read_text("utf-8"), re.MULTILINE)
    listed = {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}

    told = {name: known.known.get(name, known.known.get(f"{name}_count")) for name in listed}

    assert listed == told


def test_every_alert_has_a_runbook_and_a_message() -> None:
    headings = {line.lstrip("# ").lower() for line in GUIDE.read_text("utf-8").splitlines() if line.startswith("### ")}

    for rule in rules():
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert ROOT / page == GUIDE
        assert anchor in headings
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("warning", "critical")


def test_dashboards_are_what_their_script_writes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "scripts" / "dashboards", tmp_path], check=True)

    written = {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()}

    assert written == {path.name: path.read_text("utf-8") for path in DASHBOARDS.iterdir()}


def test_every_panel_says_what_it_shows_and_none_overlaps() -> None:
    for board in dashboards().values():
        cells: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            assert panel["description"], panel["title"]
            place = panel["gridPos"]
            own = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not own & cells, panel["title"]
            cells |= own
        assert max(x for x, _ in cells) < 24


def test_guide_explains_every_panel() -> None:
    text = GUIDE.read_text("utf-8")
    titles = [panel["title"] for board in dashboards().values() for panel in board["panels"]]

    untold = [title for title in titles if title not in text]

    assert untold == []


def merged(below: dict, above: dict) -> dict:
    """As `docker compose -f below -f above` takes two documents: maps by key, lists one after the other."""
    result = copy.deepcopy(below)
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        elif isinstance(value, list) and isinstance(result.get(key), list):
            result[key] += value
        else:
            result[key] = value
    return result


def composition(*names: str) -> dict:
    """Files of docker/ together; a variable stands for its default, or where it must be set, for a word."""
    whole: dict = {}
    for name in names:
        text = re.sub(
            r"\$\{\w+(?::-([^}]*)|:\?[^}]*)\}", lambda found: found[1] or "given", (DOCKER / name).read_text()
        )
        whole = merged(whole, yaml.safe_load(text))
    return whole


@pytest.mark.parametrize(
    "names",
    [("compose.yaml",), ("compose.yaml", "compose.monitoring.yaml")],
    ids=["server", "server-and-monitoring"],
)
def test_compose_files_keep_to_the_specification(names: tuple[str, ...]) -> None:
    whole = composition(*names)

    compose_spec.PyCompose.from_json(json.dumps(whole)).validate()


def test_monitoring_pins_images_checks_health_opens_loopback_only_and_mounts_what_exists() -> None:
    whole = composition("compose.monitoring.yaml")

    for name in ("prometheus", "grafana"):
        service = whole["services"][name]
        assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", service["image"])
        assert service["healthcheck"]["test"][0] == "CMD"
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert (DOCKER / source).is_dir() if source.startswith(".") else source in whole["volumes"]


def test_no_file_of_monitoring_holds_a_secret() -> None:
    text = (DOCKER / "compose.monitoring.yaml").read_text("utf-8")

    assert re.findall(r"(?i)\w*(?:password|_keys?): (?!\$\{)[^\s\[].*", text) == []
    config = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yaml").read_text("utf-8"))
    assert config["scrape_configs"][0]["authorization"] == {
        "type": "Bearer",
        "credentials_file": "/run/secrets/slimserve_metrics_key",
    }


def test_data_source_of_grafana_is_the_one_that_the_dashboards_ask() -> None:
    sources = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yaml").read_text("utf-8"))
    (source,) = sources["datasources"]
    everything = [panel for board in dashboards().values() for panel in board["panels"]]
    asked = {target["datasource"]["uid"] for panel in everything for target in panel["targets"]}

    assert asked == {source["uid"]}
    assert source["url"] == "http://prometheus:9090"
