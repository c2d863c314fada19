"""A model on one page of text: what it takes, what it has seen, how well it did, where it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from smscale.models.record import PROVENANCE, Feature

#: Characters of a value that is neither number nor text.
LONGEST = 100


def card(kind: str, fingerprint: str, features: Sequence[Feature], meta: Mapping[str, Any]) -> str:
    """The page; ends without a line break."""
    title = f"Model {meta['name']} ({kind}): {meta['target']} in {meta['target_units']} from {len(features)} features"
    scaled = (meta["standardiser"] or {}).get("features", {})
    head = ["feature", "unit", "trained on", "1 % to 99 %"] + (["mean", "scale"] if scaled else [])
    rows = [_row(feature, scaled.get(feature.name)) for feature in features]
    parts = [title, _table([head, *rows])]
    if meta["scores"]:
        parts.append(_table(_scores(meta["scores"])))
    origin = meta["provenance"]
    known = [name for name in PROVENANCE if name in origin]
    lines = [[name, _value(origin[name])] for name in (*known, *sorted(origin.keys() - PROVENANCE.keys()))]
    lines.append(["libraries", ", ".join(f"{name} {version}" for name, version in meta["versions"].items() if version)])
    lines.append(["fingerprint", fingerprint[:16]])
    return "\n\n".join([*parts, _table(lines)])


def _row(feature: Feature, scaled: Mapping[str, float] | None) -> list[str]:
    middle = f"{feature.below:g} to {feature.above:g}"
    seen = f"{feature.low:g} to {feature.high:g}"
    if feature.classes is not None:
        seen, middle = "classes " + ", ".join(str(value) for value in feature.classes), ""
    scaling = [f"{scaled[key]:g}" for key in ("mean", "scale")] if scaled else []
    return [feature.name, feature.units, seen, middle, *scaling]


def _scores(scores: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    metrics = list(dict.fromkeys(metric for values in scores.values() for metric in values))
    rows = [[name, *(_value(values.get(metric, "")) for metric in metrics)] for name, values in scores.items()]
    return [["scores", *metrics], *rows]


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _table(rows: Sequence[Sequence[str]]) -> str:
    columns = max(len(row) for row in rows)
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(columns)]
    return "\n".join("  ".join(f"{cell:{widths[i]}}" for i, cell in enumerate(row)).rstrip() for row in rows)
