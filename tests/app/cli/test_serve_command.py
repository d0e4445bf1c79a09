import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli.http_server import bind
from app.cli.root import app
from app.cli.serve import is_loopback, refuse_open_door, settings_from
from app.cli.terminal import CommandFailed
from app.settings import Settings

ROOT = Path(__file__).resolve().parent.parent.parent.parent


def test_option_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMSERVE_PORT", "1234")
    monkeypatch.setenv("SLIMSERVE_MAX_QUEUE", "7")

    settings = settings_from({"port": 4321})

    assert (settings.port, settings.max_queue) == (4321, 7)


def test_lists_in_the_environment_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMSERVE_API_KEYS", "one, two,")
    monkeypatch.setenv("SLIMSERVE_MODELS_DIRS", "/a:/b")
    monkeypatch.setenv("SLIMSERVE_ALLOWED_HOSTS", "a.example, b.example")

    settings = settings_from({})

    assert settings.api_keys == ("one", "two")
    assert settings.models_dirs == (Path("/a"), Path("/b"))
    assert settings.allowed_hosts == ("a.example", "b.example")


@pytest.mark.parametrize(("given", "found"), [("x/../data", "data"), ("~/data", "home/data")], ids=["relative", "home"])
def test_data_folder_is_resolved_once(given: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    assert settings_from({"data_dir": Path(given)}).data_dir == tmp_path.resolve() / found


def test_misspelt_setting_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMSERVE_MAX_QEUE", "7")

    with pytest.raises(CommandFailed, match="SLIMSERVE_MAX_QEUE") as failure:
        settings_from({})

    assert failure.value.exit_code == 2


@pytest.mark.parametrize("name", ["SLIMSERVE_URL", "SLIMSERVE_API_KEY", "SLIMSERVE_TEST_MODELS"])
def test_names_of_clients_and_tests_are_no_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "x")

    assert settings_from({}) == Settings()


def test_bad_value_names_the_variable_and_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMSERVE_NUM_THREADS", "none at all")

    with pytest.raises(CommandFailed, match="SLIMSERVE_NUM_THREADS or --num-threads is 'none at all'"):
        settings_from({})


def test_port_injected_by_kubernetes_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMSERVE_PORT", "tcp://10.0.0.1:8080")

    with pytest.raises(CommandFailed, match="enableServiceLinks: false"):
        settings_from({})


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("box", False)],
    ids=lambda value: str(value),
)
def test_only_loopback_addresses_count_as_private(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    "settings",
    [Settings(), Settings(host="0.0.0.0", api_keys=("key",)), Settings(host="0.0.0.0", insecure_no_auth=True)],
    ids=["loopback", "with-keys", "told-so"],
)
def test_door_is_open_only_where_it_should_be(settings: Settings) -> None:
    refuse_open_door(settings)


def test_public_address_without_keys_exits_with_2() -> None:
    result = CliRunner().invoke(app, ["serve", "--host", "0.0.0.0"])

    assert result.exit_code == 2
    assert "SLIMSERVE_API_KEYS" in result.stderr


def test_port_in_use_exits_with_4(tmp_path: Path) -> None:
    taken = bind("127.0.0.1", 0)
    port = taken.getsockname()[1]

    result = subprocess.run(
        [sys.executable, "-m", "app", "serve", "--port", str(port), "--data-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    taken.close()
    assert result.returncode == 4
    assert "--port" in result.stderr


@pytest.mark.parametrize(
    "command",
    ["serve", "load", "unload", "quantize", "list", "ps", "rm", "jobs", "chat", "bench", "demo", "doctor", "version"],
)
def test_help_of_every_command_tells_what_it_is_for(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])

    assert result.exit_code == 0
    assert len(result.stdout.split()) > 15
