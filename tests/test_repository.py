"""The repository keeps its own rules: import walls, sizes, forbidden hands, documents that agree with the code."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.settings import ENV_PREFIX, Settings

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("app", "workers")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

# path or path::function -> why it may be longer
LONGER: dict[str, str] = {}

# what -> the only files in which it may stand, and why there
ALLOWED_IN: dict[str, dict[str, str]] = {
    "except Exception": {
        "app/api/guard.py": "the last handler of the app: every failure gets an answer and a traceback in the log",
        "workers/boundary.py": "the worker's boundary of one request: it fails alone",
    },
    "os.environ": {
        "app/supervisor/environment.py": "hands an allow-list of the environment on to children",
        "workers/process.py": "a child scrubs its own environment",
        "workers/__main__.py": "the entry point of children",
        "app/__main__.py": "the entry point",
    },
    "print": {},
    "global": {},
}


def sources(*folders: str) -> list[Path]:
    return sorted(
        path for folder in folders for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts
    )


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("app.main", "torch"),
        ("app.main", "transformers"),
        ("app.__main__", "torch"),
        ("app.__main__", "transformers"),
        ("workers.serve", "fastapi"),
        ("workers.serve", "uvicorn"),
        ("workers.__main__", "fastapi"),
        ("workers.__main__", "pydantic"),
    ],
    ids=lambda name: name,
)
def test_importing_never_pulls_in(module: str, forbidden: str) -> None:
    code = f"import sys, {module}; sys.exit({forbidden!r} in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_command_line_starts_without_the_http_framework() -> None:
    code = "import sys, app.__main__; sys.exit('fastapi' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def functions_of(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of code: the signature and the docstring tell, they do not weigh."""
    body = function.body
    if ast.get_docstring(function) is not None:
        body = body[1:]
    return 0 if not body else (body[-1].end_lineno or 0) - body[0].lineno + 1


def test_no_file_is_too_long() -> None:
    too_long = {
        name_of(path): lines
        for path in sources(*PACKAGES, "tests", "scripts", "benchmarks")
        if (lines := len(path.read_text("utf-8").splitlines())) > MAX_FILE_LINES and name_of(path) not in LONGER
    }

    assert too_long == {}


def test_no_function_is_too_long() -> None:
    too_long = {
        key: lines
        for path in sources(*PACKAGES)
        for function in functions_of(path)
        if (lines := body_lines(function)) > MAX_FUNCTION_LINES
        and (key := f"{name_of(path)}::{function.name}") not in LONGER
    }

    assert too_long == {}


def swallows_everything(node: ast.AST) -> bool:
    """A handler that takes every exception and does not raise at its end."""
    return (
        isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")))
        and not isinstance(node.body[-1], ast.Raise)
    )


def touches_environment(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and node.attr in ("environ", "getenv", "putenv")
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    )


def prints(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"


@pytest.mark.parametrize(
    ("what", "is_found"),
    [
        ("except Exception", swallows_everything),
        ("os.environ", touches_environment),
        ("print", prints),
        ("global", lambda node: isinstance(node, ast.Global)),
    ],
    ids=["except-exception", "os-environ", "print", "global"],
)
def test_broad_hands_are_only_where_they_are_allowed(what: str, is_found: Callable[[ast.AST], bool]) -> None:
    found = {
        name_of(path)
        for path in sources(*PACKAGES)
        if any(is_found(node) for node in ast.walk(ast.parse(path.read_text("utf-8"))))
    }

    assert found <= set(ALLOWED_IN[what])


def test_every_public_definition_has_a_docstring() -> None:
    missing = [
        f"{name_of(path)}::{node.name}"
        for path in sources(*PACKAGES)
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
    ]

    assert missing == []


def test_every_module_has_a_docstring() -> None:
    missing = [
        name_of(path) for path in sources(*PACKAGES) if not ast.get_docstring(ast.parse(path.read_text("utf-8")))
    ]

    assert missing == []


def settings_row(name: str) -> str:
    """The row that docs/settings.md must have for a setting: name, default, range, meaning."""
    field = Settings.model_fields[name]
    bounds = {kind: getattr(rule, kind) for rule in field.metadata for kind in bounds_of(rule)}
    low = f"{bounds['ge']}" if "ge" in bounds else f"over {bounds['gt']}" if "gt" in bounds else ""
    span = f"{low} to {bounds['le']}" if bounds else ""
    return f"| `{ENV_PREFIX}{name.upper()}` | {shown_default(name)} | {span} | {field.description} |"


def shown_default(name: str) -> str:
    default = Settings.model_fields[name].get_default(call_default_factory=True)
    if name == "data_dir":
        return "`~/.local/share/slimserve`"
    if default in (None, ()):
        return "none"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def test_settings_page_lists_every_setting_as_it_is() -> None:
    lines = (ROOT / "docs" / "settings.md").read_text("utf-8").splitlines()

    rows = [line for line in lines if line.startswith(f"| `{ENV_PREFIX}") and line.count("|") == 5]

    assert rows == [settings_row(name) for name in Settings.model_fields]


def test_every_numeric_setting_is_bounded() -> None:
    unbounded = [
        name
        for name, field in Settings.model_fields.items()
        if field.annotation in (int, float, int | None, float | None)
        and not {"ge", "gt"} & {attribute for rule in field.metadata for attribute in bounds_of(rule)}
    ]

    assert unbounded == []


def bounds_of(rule: object) -> set[str]:
    return {name for name in ("ge", "gt", "le", "lt") if hasattr(rule, name)}


def test_changelog_ends_at_the_version_of_the_package() -> None:
    script = [sys.executable, "scripts/check_changelog.py"]

    assert subprocess.run(script, cwd=ROOT, check=False).returncode == 0


def test_lock_pins_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    locked = {
        canonical(line.split("==")[0])
        for line in (ROOT / "requirements.lock").read_text("utf-8").splitlines()
        if "==" in line
    }

    assert {canonical(re.split(r"[\[<>=!~ ]", line)[0]) for line in wanted} <= locked


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_relative_links_of_the_documents_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    broken = [
        f"{name_of(page)} -> {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text("utf-8"))
        if "://" not in target and not target.startswith("mailto:") and not (page.parent / target).exists()
    ]

    assert broken == []


def test_every_borrowed_file_of_the_embedded_model_has_its_licence_stated() -> None:
    folder = ROOT / "app" / "embedded" / "slimstory"
    licences = (folder / "LICENSES.md").read_text("utf-8")

    unstated = [
        path.name
        for path in folder.iterdir()
        if path.suffix in (".txt", ".safetensors") and f"`{path.name}`" not in licences
    ]

    assert unstated == []
    assert "Permission is hereby granted" in licences, "the MIT licence wants its notice in every copy"
    assert "LICENSES.md" in (folder / "README.md").read_text("utf-8").split("---")[1]
