"""Fails unless the newest version in CHANGELOG.md is the one in pyproject.toml."""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def newest_version(changelog: str) -> str | None:
    """The first released version heading, `## [1.2.3] - 2026-01-31`; an Unreleased heading does not count."""
    match = re.search(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}$", changelog, flags=re.MULTILINE)
    return match.group(1) if match else None


def main() -> int:
    """Compare the two; 1 and a sentence on standard error if they differ."""
    package = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    newest = newest_version((ROOT / "CHANGELOG.md").read_text("utf-8"))
    if newest != package:
        sys.stderr.write(f"CHANGELOG.md ends at version {newest}, pyproject.toml says {package}; bring them together\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
