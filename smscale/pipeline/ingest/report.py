"""What ingest reports: what was read, what was left out and why, and how much of each variable is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smscale.pipeline.ingest.inputs import Inputs
from smscale.sources.modis import rejected_by

Results = Mapping[str, Mapping[str, Any]]


def problem(file: str, error: Exception) -> dict[str, Any]:
    """A problem without the machine's own folders in it."""
    what = str(error).removeprefix(f"{file}: ").replace(f"{Path(file).parent}/", "")
    return {"file": Path(file).name, "what": what, "count": 1}


def merged(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Results of neighbouring blocks of one kind as that of one block: counts added, problems listed once."""
    whole: dict[str, Any] = {}
    for result in results:
        for key, value in result.items():
            whole[key] = _sum(whole[key], value) if key in whole else value
    return whole


def _sum(a: Any, b: Any) -> Any:
    if isinstance(a, Mapping):
        return {k: _sum(a[k], b[k]) if k in a and k in b else a.get(k, b.get(k)) for k in {**a, **b}}
    if isinstance(a, list):
        return a + [item for item in b if item not in a]
    return (a or b) if isinstance(a, str) else a + b


def summary(inputs: Inputs, results: Results, qc: str) -> dict[str, Any]:
    """The stage's report, by family."""
    kinds = [kind for result in results.values() for kind in result.get("kinds", [])]
    counts: Counter[str] = Counter()
    for result in results.values():
        counts.update(result.get("counts", {}))
    totals = ("observed", "duplicates", "overpass_disagrees")
    return {
        "granules": {f: len(g) for f, g in inputs.granules.items()}
        | {"DEM": len(inputs.dem), "STATIONS": len(inputs.stations)},
        "products": {f: sorted({g.product for g in found}) for f, found in inputs.granules.items()},
        "problems": _problems(inputs, results),
        "smap": {
            "algorithm": sorted({algorithm for algorithm, _ in kinds}),
            "version": sorted({release for _, release in kinds}),
            "quality": dict(sorted(counts.items())),
            "flags": merged([r["flags"] for r in results.values() if "flags" in r]),
            **{name: sum(r.get(name, 0) for r in results.values()) for name in totals},
        },
        "coverage": _coverage(results),
        "quality": _quality(results, qc),
        "dem": {
            name: sum(r["dem"][name] for r in results.values() if "dem" in r) for name in ("voids", "overlap_conflicts")
        },
        "stations": int(results.get("stations", {}).get("stations", 0)),
        "station_values": int(results.get("stations", {}).get("values", 0)),
    }


def _problems(inputs: Inputs, results: Results) -> list[dict[str, Any]]:
    problems: Counter[tuple[str, str]] = Counter()
    problems.update(inputs.problems)
    for result in results.values():
        seen = {(p["file"], p["what"]): p["count"] for p in result.get("problems", [])}
        for each, count in seen.items():
            problems[each] = max(problems[each], count)  # one file is read by several blocks
    return [{"file": f, "what": w, "count": n} for (f, w), n in sorted(problems.items())]


def _coverage(results: Results) -> dict[str, dict[str, int]]:
    """By cadence: cells, those with a value, those under a tile that is not there."""
    found: dict[str, Counter[str]] = {}
    for key, result in results.items():
        if "valid" in result:
            name = key.split("/")[0].removesuffix("_newest")
            parts = {part: int(result.get(part, 0)) for part in ("valid", "cells", "cells_without_tile")}
            parts["accepted_without_value"] = int(result.get("quality", {}).get("empty", 0))
            found.setdefault(name, Counter()).update(parts)
    return {name: dict(counts) for name, counts in sorted(found.items())}


def _quality(results: Results, qc: str) -> dict[str, dict[str, int]]:
    """By layer: how many sub-points of cells quality control accepted, and for what reason it rejected the others."""
    words: dict[str, np.ndarray] = {}
    for result in results.values():
        for layer, counts in result.get("quality", {}).get("words", {}).items():
            total = words.setdefault(layer, np.zeros(65536, np.int64))
            for word, count in counts.items():
                total[int(word)] += count
    return {
        layer: dict(rejected_by(layer.partition(" ")[0], total, qc))  # type: ignore[arg-type]
        for layer, total in sorted(words.items())
    }
