"""Rows of a measurement as text, Markdown and CSV, and what machine they were measured on."""

from __future__ import annotations

import csv
import io
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from smscale.observe import about_machine

Rows = Sequence[Mapping[str, Any]]


def text(rows: Rows, right: Iterable[str] = ()) -> str:
    """Columns for a terminal: words left, numbers right; and to the `right` what is made up of numbers."""
    right = set(right)
    columns = []
    for name in rows[0]:
        values = [row[name] for row in rows]
        cells = [name, *map(_cell, values)]
        width = max(map(len, cells))
        number = name in right or any(_is_number(v) for v in values)
        columns.append([c.rjust(width) if number else c.ljust(width) for c in cells])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def markdown(rows: Rows) -> str:
    """A Markdown table."""
    names = list(rows[0])
    marks = ["---:" if any(_is_number(row[n]) for row in rows) else "---" for n in names]
    lines = [names, marks, *([_cell(row[n]) for n in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def as_csv(rows: Rows) -> str:
    """CSV with all digits."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def machine(packages: Iterable[str]) -> dict[str, str]:
    """Processor, cores, memory, system, and versions of Python and some packages."""
    about = about_machine()
    found = {
        "processor": about["processor"],
        "cores": str(about["cores"]),
        "memory": f"{about['memory_bytes'] / 2**30:.0f} GiB",
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
