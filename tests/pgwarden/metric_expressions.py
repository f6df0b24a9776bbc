"""PromQL as the files under deploy/ have it -> the metrics and labels that it names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from pgwarden.metrics import METRICS, Described, label_names

DEPLOY = Path(__file__).parents[2] / "deploy"
SCRAPED = {"instance", "job"}  # by Prometheus itself
_NAME = re.compile(r"\b(pgwarden_\w+)(?:\{([^}]*)\})?")
_GROUPED = re.compile(r"\bby \(([^)]*)\)")
_SHOWN = re.compile(r"\$labels\.(\w+)|\{\{(\w+)\}\}")


def names(described: Described) -> set[str]:
    """As they stand in what is scraped."""
    suffixes = ("_bucket", "_sum", "_count") if described.kind == "histogram" else ("",)
    return {described.name + suffix for suffix in suffixes}


KNOWN = {
    name: {*label_names(one), *SCRAPED, *({"le"} if name.endswith("_bucket") else ())} for one in METRICS for name in names(one)
}


def rules() -> dict[str, tuple[str, str]]:
    """Alert -> its expression, and what it says of it."""
    (group,) = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    return {rule["alert"]: (rule["expr"], " ".join(rule["annotations"].values())) for rule in group["rules"]}


def panels() -> dict[str, list[tuple[str, str]]]:
    """Panel -> its expressions, and how each line is called."""
    board = json.loads((DEPLOY / "grafana" / "pgwarden.json").read_text())
    return {
        panel["title"]: [(target["expr"], target["legendFormat"]) for target in panel["targets"]]
        for panel in board["panels"]
        if panel["type"] != "row"
    }


def metrics_of(expression: str) -> set[str]:
    return {name for name, _ in _NAME.findall(expression)}


def problems(expression: str, said: str) -> list[str]:
    """What it names that there is not."""
    found = []
    labels: set[str] = set()
    for name, matchers in _NAME.findall(expression):
        known = KNOWN.get(name)
        if known is None:
            found.append(f"there is no metric {name}")
            continue
        labels |= known
        found += [f"{name} has no label {label}" for label in re.findall(r"(\w+)\s*[=!]", matchers) if label not in known]
    wanted = {label.strip() for listed in _GROUPED.findall(expression) for label in listed.split(",")}
    wanted |= {one or other for one, other in _SHOWN.findall(said)}
    return [*found, *(f"nothing here has a label {label}" for label in sorted(wanted - labels))]
