"""`python scripts/dashboards FOLDER` writes every dashboard as JSON into the folder; `make dashboards` into docker/."""

import json
import sys
from pathlib import Path

from jobs import JOBS
from overview import OVERVIEW
from variant import VARIANT
from variants import VARIANTS

if __name__ == "__main__":
    for dashboard in (OVERVIEW, VARIANTS, JOBS, VARIANT):
        text = json.dumps(dashboard.json(), indent=2) + "\n"
        (Path(sys.argv[1]) / f"{dashboard.name}.json").write_text(text, "utf-8")
