"""What a Grafana dashboard is made of: panels that flow from left to right, and the JSON that Grafana reads.

Prometheus' data source has the uid `prometheus` (docker/grafana/provisioning), so that no dashboard asks for one.
"""

from dataclasses import dataclass
from typing import Any, Final

SOURCE: Final = {"type": "prometheus", "uid": "prometheus"}
COLUMNS: Final = 24
# Of the dashboard JSON; Grafana migrates older ones when it loads them.
SCHEMA_VERSION: Final = 39

_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "colorMode": "value"},
    "bargauge": {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "orientation": "horizontal",
    },
    "state-timeline": {"mergeValues": True, "showValue": "never", "rowHeight": 0.9},
    "heatmap": {"calculate": False, "yAxis": {"unit": "s"}, "legend": {"show": True}, "tooltip": {"mode": "single"}},
    "table": {"showHeader": True},
    "xychart": {"mapping": "auto", "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True}},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One expression. legend: of its series, with {{label}}. is_instant: the value of now alone, as rows of a table."""

    expr: str
    legend: str = ""
    is_instant: bool = False

    def target(self, letter: str, *, is_heatmap: bool) -> dict[str, Any]:
        """As a panel holds it."""
        shape = "table" if self.is_instant else "heatmap" if is_heatmap else "time_series"
        return {
            "refId": letter,
            "datasource": SOURCE,
            "expr": self.expr,
            "legendFormat": self.legend,
            "format": shape,
            "instant": self.is_instant,
            "range": not self.is_instant,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel. what: its description. unit, units: Grafana's ids, for all and by name. renamed: columns to join."""

    title: str
    what: str
    queries: tuple[Query, ...]
    kind: str = "timeseries"
    unit: str = "short"
    width: int = 8
    height: int = 8
    is_stacked: bool = False
    renamed: tuple[tuple[str, str], ...] = ()
    units: tuple[tuple[str, str], ...] = ()

    def json(self, number: int, x: int, y: int) -> dict[str, Any]:
        """The panel at a place of the grid."""
        custom = {"stacking": {"mode": "normal"}, "fillOpacity": 30} if self.is_stacked else {}
        panel: dict[str, Any] = {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.what,
            "datasource": SOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "fieldConfig": {
                "defaults": {"unit": self.unit, "custom": custom},
                "overrides": [
                    {"matcher": {"id": "byName", "options": name}, "properties": [{"id": "unit", "value": unit}]}
                    for name, unit in self.units
                ],
            },
            "options": _OPTIONS[self.kind],
            "targets": [
                query.target(chr(ord("A") + index), is_heatmap=self.kind == "heatmap")
                for index, query in enumerate(self.queries)
            ],
        }
        if self.renamed:
            panel["transformations"] = self._joined()
        return panel

    def _joined(self) -> list[dict[str, Any]]:
        """One row per variant with the columns that have a name here, in their order."""
        return [
            {"id": "joinByField", "options": {"byField": "variant", "mode": "outer"}},
            {"id": "filterFieldsByName", "options": {"include": {"names": [name for name, _ in self.renamed]}}},
            {
                "id": "organize",
                "options": {
                    "indexByName": {name: index for index, (name, _) in enumerate(self.renamed)},
                    "renameByName": dict(self.renamed),
                },
            },
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A choice above the panels, filled with a label's values. is_multi: several at once, all at first."""

    name: str
    values_of: str
    is_multi: bool = True

    def json(self) -> dict[str, Any]:
        """As a dashboard holds it."""
        variable: dict[str, Any] = {
            "name": self.name,
            "type": "query",
            "datasource": SOURCE,
            "query": {"query": f"label_values({self.values_of}, {self.name})", "refId": self.name},
            "refresh": 2,
            "sort": 1,
            "multi": self.is_multi,
            "includeAll": self.is_multi,
        }
        if self.is_multi:
            variable["current"] = {"text": ["All"], "value": ["$__all"]}
        return variable


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """One dashboard; its file is `<name>.json` and its uid `slimserve-<name>`."""

    name: str
    title: str
    what: str
    variables: tuple[Variable, ...]
    panels: tuple[Panel, ...]

    def json(self) -> dict[str, Any]:
        """As Grafana reads it."""
        return {
            "uid": f"slimserve-{self.name}",
            "title": self.title,
            "description": self.what,
            "tags": ["slimserve"],
            "editable": True,
            "schemaVersion": SCHEMA_VERSION,
            "timezone": "",
            "refresh": "15s",
            "time": {"from": "now-1h", "to": "now"},
            "links": [
                {
                    "type": "dashboards",
                    "title": "slimserve",
                    "tags": ["slimserve"],
                    "asDropdown": True,
                    "keepTime": True,
                }
            ],
            "templating": {"list": [variable.json() for variable in self.variables]},
            "panels": self._placed(),
        }

    def _placed(self) -> list[dict[str, Any]]:
        placed, x, y, row_height = [], 0, 0, 0
        for number, panel in enumerate(self.panels, start=1):
            if x + panel.width > COLUMNS:
                x, y, row_height = 0, y + row_height, 0
            placed.append(panel.json(number, x, y))
            x, row_height = x + panel.width, max(row_height, panel.height)
        return placed
