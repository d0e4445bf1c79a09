"""Dashboards and rules as they lie in docker/, and what their expressions ask for."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import promql_parser as promql
import yaml
from cli_server import ROOT

DASHBOARDS = ROOT / "docker" / "grafana" / "dashboards"
RULES = ROOT / "docker" / "prometheus" / "rules.yaml"
# Prometheus' own series, and the labels that it adds to every other.
OWN_SERIES = {"up": set(), "ALERTS": {"alertname", "alertstate"}}
TARGET_LABELS = {"instance", "job"}


@dataclass
class Question:
    """One expression. labels: that its legend or its message mentions. is_instant: asked for now, not for a time."""

    where: str
    expr: str
    is_instant: bool = False
    labels: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        return self.where


def panels(document: dict[str, Any], variant: str = ".+") -> Iterator[Question]:
    """Every query of a dashboard, with Grafana's variables filled in."""
    for panel in document["panels"]:
        for target in panel["targets"]:
            expr = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".+")
            yield Question(
                f"{document['uid']}: {panel['title']} {target['refId']}",
                expr.replace("$variant", variant),
                is_instant=target["instant"],
                labels=set(re.findall(r"{{(\w+)}}", target["legendFormat"])),
            )


def dashboards() -> dict[str, dict[str, Any]]:
    """Name to document."""
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(DASHBOARDS.glob("*.json"))}


def rules(path: Path = RULES) -> list[dict[str, Any]]:
    """Every alert."""
    return [rule for group in yaml.safe_load(path.read_text("utf-8"))["groups"] for rule in group["rules"]]


def alerts() -> Iterator[Question]:
    """The expression of every alert."""
    for rule in rules():
        mentioned = re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"]))
        yield Question(f"rules: {rule['alert']}", rule["expr"], labels=set(mentioned))


def selectors(node: promql.Expr) -> Iterator[promql.VectorSelector]:
    """Every `metric{label="value"}` of an expression."""
    if isinstance(node, promql.VectorSelector):
        yield node
    elif isinstance(node, promql.MatrixSelector):
        yield node.vector_selector
    for child in _children(node):
        yield from selectors(child)


def groupings(node: promql.Expr) -> Iterator[set[str]]:
    """The labels of every `by`, `on` and `group_left`."""
    modifier = getattr(node, "modifier", None)
    if isinstance(modifier, promql.AggModifier):
        yield set(modifier.labels)
    elif isinstance(modifier, promql.BinModifier):
        yield {*(modifier.matching.labels if modifier.matching else ()), *(modifier.group_labels or ())}
    for child in _children(node):
        yield from groupings(child)


def _children(node: promql.Expr) -> list[promql.Expr]:
    match node:
        case promql.BinaryExpr():
            return [node.lhs, node.rhs]
        case promql.Call():
            return list(node.args)
        case promql.AggregateExpr() | promql.ParenExpr() | promql.UnaryExpr():
            return [node.expr]
    return []


def missing(question: Question, known: dict[str, set[str]]) -> list[str]:
    """What the expression asks for and nobody tells; known: name of a series to its labels."""
    tree = promql.parse(question.expr)
    problems, offered = [], set(TARGET_LABELS)
    for selector in selectors(tree):
        if selector.name not in known:
            problems.append(f"no series {selector.name}")
            continue
        labels = known[selector.name] | TARGET_LABELS
        offered |= labels
        asked = {matcher.name for matcher in selector.matchers.matchers}
        problems += [f"{selector.name} has no label {label}" for label in sorted(asked - labels)]
    wanted = question.labels.union(*groupings(tree))
    return problems + [f"no series has a label {label}" for label in sorted(wanted - offered)]
