"""`smscale inspect`: what a workspace holds, as a page for a terminal of 100 columns, or as plain values.

Layouts and sizes come from the stores' documents; coverage is counted block by block, or with `quick` taken from the
counts that the stages' reports hold, without reading a value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
from tqdm.auto import tqdm

from smscale import schema, store, store_inspection
from smscale.errors import InputError, StoreError
from smscale.grid import grid_of
from smscale.places import Place
from smscale.receipts import stages
from smscale.run_record import ending, read_records
from smscale.store_inspection import Array
from smscale.verify import THREADS
from smscale.workspace import Workspace

WIDTH = 100
#: Columns of a variable's name in the table of coverage: with twelve months 94 in all.
LABEL = 34
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
#: Integer fills that mean "unknown".
FILLS = {"land_cover": schema.LAND_COVER_FILL}
#: Beginnings of names whose coverage is that of another variable.
NOT_COUNTED = (
    "status",
    "valid_fraction_",
    "retrieval_quality",
    "surface_flag",
    "observation_time",
    "land_cover_fraction",
)
#: Dimensions of arrays whose coverage is counted.
COUNTED = {"time", "year", "lat", "lon", "variable"}


@dataclass(frozen=True)
class Facts:
    """What a workspace holds, as plain values."""

    root: Place
    about: dict[str, Any]
    arrays: tuple[dict[str, Any], ...]
    coverage: tuple[dict[str, Any], ...]
    quick: bool

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"workspace": str(self.root), **self.about, "arrays": list(self.arrays), "coverage": list(self.coverage)}

    @property
    def text(self) -> str:
        """A page of at most 100 columns."""
        parts = [_head(self), _array_table(self.arrays)]
        if commits := _commits(self.about["commits"]):
            parts.insert(1, commits)
        if self.coverage:
            parts.append(_coverage_table(self.coverage, self.quick))
        return "\n\n".join(parts) + "\n"


def inspect(workspace: Workspace, quick: bool = False, progress: bool = False, threads: int = THREADS) -> Facts:
    """Dims, chunks, shards, codecs, sizes, coverage by variable and month, grid, period, stages.

    Parameters
    ----------
    quick : take coverage from the stages' reports (whole period only) instead of reading every value
    """
    layouts = [array for name in workspace.stores for array in store_inspection.arrays(workspace.root / name)]
    rows = tuple(_row(workspace, array) for array in layouts if not array.is_coordinate)
    coverage = _reported(workspace) if quick else _counted(workspace, layouts, progress, threads)
    return Facts(workspace.root, _about(workspace, layouts), rows, tuple(coverage), quick)


# -- facts --------------------------------------------------------------------------------------


def _about(workspace: Workspace, layouts: Sequence[Array]) -> dict[str, Any]:
    recipe = workspace.recipe
    loose = [array for array in layouts if array.is_coordinate]
    sizes = {name: _size(workspace.root / name) for name in (*workspace.stores, "models", "report", "ledger")}
    return {
        "recipe": {"name": recipe.get("name"), "title": recipe.get("title")},
        "period": _period(workspace),
        "grids": _grids(workspace),
        "stages": {stage: workspace.finished(stage) is not None for stage in stages(workspace)},
        "runs": [
            {"id": run["id"], "state": run["state"], "seconds": run.get("seconds"), "told": ending(run)}
            for run in read_records(workspace.root)
        ],
        "commits": {name: store.history(workspace.root / name) for name in workspace.stores},
        "stations": _stations(workspace),
        "samples": _samples(workspace),
        "models": sorted(p.name for p in (workspace.root / "models").glob("[!.]*") if p.is_dir()),
        "final_map": _report(workspace, "fuse").get("final"),
        "coordinates": {"arrays": len(loose)},
        "sizes": {name: {"bytes": size, "files": files} for name, (size, files) in sizes.items() if files},
    }


def _report(workspace: Workspace, stage: str) -> dict[str, Any]:
    return (workspace.finished(stage) or {}).get("report") or {}


def _size(folder: Place) -> tuple[int, int]:
    sizes = [p.stat().st_size for p in folder.rglob("*") if p.is_file()] if folder.is_dir() else []
    return sum(sizes), len(sizes)


def _period(workspace: Workspace) -> dict[str, Any] | None:
    try:
        dates = workspace.steps["local_date"].values
    except (StoreError, KeyError):
        return None
    return {"first": str(dates.min())[:10], "last": str(dates.max())[:10], "steps": int(dates.size)}


def _grids(workspace: Workspace) -> dict[str, Any]:
    """The fine and the coarse grid: shape, bounds, CRS, size of a cell."""
    found = {}
    for name, group in (("fine", "fine/static"), ("coarse", "coarse")):
        try:
            data = store.open_group(workspace.cube, group)
            grid = grid_of(data)
        except (StoreError, InputError):
            continue
        cell = float(grid.lon_edges[1] - grid.lon_edges[0])
        if grid.x is not None:
            cell = float(abs(np.diff(grid.x)[0])) if grid.x.size > 1 else float("nan")
        found[name] = {
            "shape": list(grid.shape),
            "bounds": [round(b, 6) for b in grid.bounds],
            "crs": grid.crs,
            "cell": round(cell, 6),
            "unit": "degree" if grid.x is None else "m",
        }
    return found


def _stations(workspace: Workspace) -> int | None:
    try:
        return int(workspace.stations.sizes.get("station", 0))
    except StoreError:
        return None


def _samples(workspace: Workspace) -> int | None:
    try:
        with workspace.samples_path.open("rb") as file:
            return int(parquet.read_metadata(file).num_rows)
    except (OSError, ValueError):
        return None


def _row(workspace: Workspace, array: Array) -> dict[str, Any]:
    size, files = array.on_disk()
    return {
        "store": array.store.name,
        "array": array.path,
        "dims": list(array.dims),
        "shape": list(array.shape),
        "chunk": list(array.chunks),
        "shard": list(array.shards) if array.shards else None,
        "dtype": array.dtype,
        "codec": array.codec,
        "bytes": size,
        "files": files,
        "logical_bytes": array.logical_bytes,
        "ratio": round(array.logical_bytes / size, 2) if size and array.logical_bytes else None,
        "finished": array.finished,
    }


# -- coverage -----------------------------------------------------------------------------------


def _counted(workspace: Workspace, layouts: Sequence[Array], progress: bool, threads: int) -> list[dict[str, Any]]:
    """Cells with a value by variable and month, counted file by file."""
    chosen = [array for array in layouts if array.finished and _is_field(array)]
    jobs = [(array, part) for array in chosen for _, part in array.files(array.whole)]
    totals: dict[tuple[str, str], tuple[np.ndarray, int]] = {}
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=len(jobs), desc="inspect", unit="block", disable=not progress) as bar,
    ):
        for array, part, valid in _in_order(pool, jobs, threads):
            leading = len(array.shape) - 2 - (array.dims[-1] == "variable")
            for i, name in enumerate(_names(array)):
                counts, cells = totals.get((array.path, name), (np.zeros(_steps(array), np.int64), 0))
                counts[part[0] if leading else slice(None)] += valid[..., i]
                totals[array.path, name] = counts, cells
            bar.update()
    rows = []
    for array in chosen:
        months = _months(workspace, array)
        plane = int(np.prod([s for d, s in zip(array.dims, array.shape, strict=True) if d in ("lat", "lon")]))
        for name in _names(array):
            counts = totals[array.path, name][0]
            by_month = {
                m: [int(counts[months == m].sum()), plane * int((months == m).sum())] for m in dict.fromkeys(months)
            }
            rows.append(_covered(array, name, int(counts.sum()), plane * counts.size, by_month))
    return rows


def _in_order(
    pool: ThreadPoolExecutor, jobs: Sequence[tuple[Array, tuple[slice, ...]]], threads: int
) -> Iterator[tuple[Array, tuple[slice, ...], np.ndarray]]:
    """Each job with its counts; as many blocks in memory as there are threads."""
    for start in range(0, len(jobs), threads):
        some = jobs[start : start + threads]
        for (array, part), valid in zip(some, pool.map(lambda job: _valid(*job), some), strict=True):
            yield array, part, valid


def _valid(array: Array, part: tuple[slice, ...]) -> np.ndarray:
    """(steps, variables) int64: cells with a value in one part of an array."""
    values = store.read(array.store, array.group, array.name, part)
    if array.name in FILLS:
        there = values != FILLS[array.name]
    elif array.name == "weight":
        there = values > 0
    else:
        there = np.isfinite(values)
    if array.dims[-1] != "variable":
        there = there[..., None]
    if there.ndim == 3:
        there = there[None]
    return there.sum(axis=(1, 2), dtype=np.int64)


def _is_field(array: Array) -> bool:
    """Whether a share of cells with a value means something: fields on a grid; not bits, nor what goes with a retrieval."""
    return {"lat", "lon"} <= set(array.dims) <= COUNTED and not array.name.startswith(NOT_COUNTED)


def _names(array: Array) -> list[str]:
    """Variables that lie in an array."""
    if array.dims[-1] != "variable":
        return [array.name]
    labels = store.read(array.store, array.group, "variable")
    return [str(label) for label in labels.tolist()]


def _steps(array: Array) -> int:
    return array.shape[0] if array.dims[0] not in ("lat", "lon") else 1


def _months(workspace: Workspace, array: Array) -> np.ndarray:
    """(steps,) text: the month (or year) of each step of an array; empty where it has none."""
    if array.dims[0] in ("lat", "lon"):
        return np.array([""])
    labels = store.open_group(array.store, array.group, unfinished=True)
    if array.dims[0] == "year":
        return labels["year"].values.astype(str)
    days = labels["local_date" if "local_date" in labels.coords else array.dims[0]].values
    return days.astype("datetime64[M]").astype(str)


def _covered(array: Array, name: str, valid: int, cells: int, months: dict[str, list[int]]) -> dict[str, Any]:
    group = array.group or array.store.stem
    return {"group": group, "variable": name, "valid": valid, "cells": cells, "months": months}


def _reported(workspace: Workspace) -> list[dict[str, Any]]:
    """Cells with a value as the stages' reports have them: the whole period, the first variable of each group."""
    rows = []
    for group, counts in (_report(workspace, "ingest").get("coverage") or {}).items():
        if isinstance(counts, dict) and "valid" in counts and "cells" in counts:
            name = schema.CADENCES.get(group, (group,))[0]
            rows.append(
                {
                    "group": f"fine/{group}",
                    "variable": name,
                    "valid": int(counts["valid"]),
                    "cells": int(counts["cells"]),
                    "months": {},
                }
            )
    cells = int(_report(workspace, "downscale").get("cells") or 0)
    for stage in ("downscale", "fuse"):
        for name, counts in (_report(workspace, stage).get("status") or {}).items():
            if isinstance(counts, dict) and "valid" in counts and cells:
                variable = f"soil_moisture_{name}" if stage == "downscale" else name
                rows.append(
                    {"group": "maps", "variable": variable, "valid": int(counts["valid"]), "cells": cells, "months": {}}
                )
    return rows


# -- the page -----------------------------------------------------------------------------------


def _head(facts: Facts) -> str:
    about = facts.about
    recipe = about["recipe"]
    lines = [f"{facts.root}"]
    title = f": {recipe['title']}" if recipe.get("title") else ""
    rows = [("recipe", f"{recipe['name']}{title}")]
    for name, grid in about["grids"].items():
        west, south, east, north = grid["bounds"]
        cell = f"{grid['cell']:g}°" if grid["unit"] == "degree" else f"{grid['cell'] / 1000:.1f} km"
        box = f"{west:g} to {east:g} E, {south:g} to {north:g} N"
        rows.append((f"{name} grid", f"{grid['shape'][0]} x {grid['shape'][1]} cells of {cell}, {box}, {grid['crs']}"))
    if about["period"]:
        period = about["period"]
        rows.append(("period", f"{period['first']} to {period['last']}, {period['steps']} overpass steps (AM and PM)"))
    done = [stage for stage, finished in about["stages"].items() if finished]
    begun = [stage for stage, finished in about["stages"].items() if not finished]
    rows.append(
        ("stages", (", ".join(done) or "none finished") + (f"; unfinished: {', '.join(begun)}" if begun else ""))
    )
    if about["runs"]:
        last = about["runs"][-1]
        rows.append(("runs", f"{len(about['runs'])}, the last: {last['id']} {last['told']}"))
    counts = [("stations", about["stations"]), ("samples", about["samples"])]
    rows += [(name, f"{n:,}") for name, n in counts if n is not None]
    if about["models"]:
        rows.append(("models", ", ".join(about["models"])))
    if about["final_map"]:
        rows.append(("final map", about["final_map"]))
    sizes = about["sizes"].items()
    rows.append(("on disk", ", ".join(f"{name} {_bytes(s['bytes'])} in {s['files']} files" for name, s in sizes)))
    for label, text in rows:
        lines += _wrapped(f"{label:<12}", text)
    return "\n".join(lines)


def _commits(commits: dict[str, list[dict[str, Any]]]) -> str:
    """One line a commit, the last first; empty where stores have none."""
    lines = [
        f"  {name:<15} {one['snapshot']}  {one['time'][:19]}  {', '.join(one['stages']) or one['message']}"[:WIDTH]
        for name, found in commits.items()
        for one in found
    ]
    return "\n".join(["Commits (each can be read by its name)", *lines]) if lines else ""


def _wrapped(label: str, text: str) -> list[str]:
    """Text in lines of the page's width, indented by its label."""
    lines, line = [], label
    for word in text.split(" "):
        if len(line) + len(word) + 1 > WIDTH and line.strip():
            lines.append(line.rstrip())
            line = " " * len(label)
        line += word + " "
    return [*lines, line.rstrip()]


def _array_table(rows: Sequence[dict[str, Any]]) -> str:
    """One line an array; arrays of one group and one layout stand together."""
    ordered = sorted(rows, key=lambda r: (r["store"], r["array"].rpartition("/")[0], -len(r["dims"])))
    heads = ("dtype", "size", "chunk", "shard", "on disk", "ratio", "files")
    table = [
        (
            row["dtype"],
            *(_cells(row[key]) for key in ("shape", "chunk", "shard")),
            _bytes(row["bytes"]),
            _ratio(row["ratio"]),
            str(row["files"]),
        )
        for row in ordered
    ]
    widths = [max(len(text) for text in column) for column in zip(heads, *table, strict=True)]
    room = max(20, WIDTH - sum(widths) - 2 * len(widths))
    lines = ["Arrays (sizes in cells; a shard is one file; ratio is of uncompressed size)"]
    lines.append(_line("", heads, room, widths))
    group = ""
    for row, cells in zip(ordered, table, strict=True):
        here = f"{row['store']}/{row['array']}".rpartition("/")[0] + f" ({', '.join(row['dims'])})"
        if here != group:
            group, codec = here, row["codec"]
            lines.append(f"{here}, {codec}")
        name = row["array"].rpartition("/")[2]
        name += "" if row["finished"] else " (unfinished)"
        name += "" if row["codec"] == codec else f" ({row['codec']})"
        lines.append(_line(f"  {name}", cells, room, widths))
    return "\n".join(lines)


def _ratio(ratio: float | None) -> str:
    """A ratio; of arrays that hold next to nothing, that it is large."""
    if ratio is None:
        return "-"
    return f"{ratio:.1f}" if ratio < 1000 else ">999"


def _line(name: str, cells: Sequence[str], room: int, widths: Sequence[int]) -> str:
    name = name if len(name) <= room else f"{name[: room - 1]}…"
    return (f"{name:<{room}}" + "".join(f"  {c:>{w}}" for c, w in zip(cells, widths, strict=True))).rstrip()


def _cells(sizes: Sequence[int] | None) -> str:
    return "x".join(map(str, sizes)) if sizes else "-"


def _coverage_table(rows: Sequence[dict[str, Any]], quick: bool) -> str:
    """Variables down, months across, a panel for each year."""
    lines = ["Coverage: % of cells with a value" + (" (as the stages reported; nothing was read)" if quick else "")]
    still = [row for row in rows if set(row["months"]) <= {""}]
    moving = [row for row in rows if row not in still]
    if still:
        lines += ["", f"{'':<{LABEL}}{'all':>6}"]
        lines += [f"{_label(row):<{LABEL}}{_percent(row['valid'], row['cells']):>6}" for row in still]
    yearly = [row for row in moving if all(len(m) == 4 for m in row["months"])]
    for row in yearly:
        text = ", ".join(f"{year} {_percent(*counts)}" for year, counts in row["months"].items())
        lines += _wrapped(f"{_label(row):<{LABEL}}", f"{_percent(row['valid'], row['cells']):>6} ({text})")
    monthly = [row for row in moving if row not in yearly]
    for year in sorted({m[:4] for row in monthly for m in row["months"]}):
        shown = [row for row in monthly if any(m.startswith(year) for m in row["months"])]
        there = sorted({m for row in shown for m in row["months"] if m.startswith(year)})
        lines += ["", f"{year:<{LABEL}}{'all':>6}" + "".join(f"{MONTHS[int(m[5:]) - 1]:>5}" for m in there)]
        for row in shown:
            kept = [row["months"][m] for m in there if m in row["months"]]
            whole = _percent(sum(v for v, _ in kept), sum(c for _, c in kept))
            cells = "".join(f"{_percent(*row['months'][m]) if m in row['months'] else '':>5}" for m in there)
            lines.append(f"{_label(row):<{LABEL}}{whole:>6}{cells}")
    return "\n".join(line.rstrip() for line in lines)


def _label(row: dict[str, Any]) -> str:
    """Group and variable; what quality control accepts is where the weight is not 0."""
    accepted = " > 0 (accepted)" if row["variable"] == "weight" else ""
    group = row["group"].removesuffix(f"/{row['variable']}")
    label = f"{group}/{row['variable']}{accepted}"
    return label if len(label) < LABEL else f"{label[: LABEL - 2]}…"


def _percent(valid: int, cells: int) -> str:
    """A share in percent: whole numbers, but never 0 or 100 where it is not."""
    if not cells:
        return "-"
    share = 100 * valid / cells
    if 0 < share < 0.5:
        return "<1"
    if 99.5 <= share < 100:
        return ">99"
    return f"{share:.0f}"


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
