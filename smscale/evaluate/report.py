"""The report of a run: one HTML page, its figures beside it, and the numbers as JSON.

What is written depends on what is given alone: no clock, no host. `index.html` comes last, so a folder with one is complete.
"""

from __future__ import annotations

import datetime
import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pandas as pd

from smscale.errors import InputError
from smscale.evaluate.palette import label_of
from smscale.places import file_to_write
from smscale.redaction import redacted

Rows = pd.DataFrame | Sequence[Mapping[str, Any]]

#: Units of soil moisture, as a reader expects them.
SOIL_MOISTURE = "m³ m⁻³"


class Table(NamedTuple):
    """A table of the report.

    Columns named rmse, mae, ubrmse, cc, kge, r2 or bias are scores: the best of each (in each `group`, a column's name) is bold.
    `units` are the target's. `wrap` breaks long texts: "prose" between words, "words" anywhere.
    """

    title: str
    note: str
    rows: Rows
    group: str | None = None
    units: str = SOIL_MOISTURE
    wrap: str = ""


class Figure(NamedTuple):
    """A figure of the report: a PNG in the folder's `figures/`. Without `alt`, the title stands in for the picture."""

    file: str
    title: str
    caption: str
    alt: str = ""


class Section(NamedTuple):
    """A section of the report: what it is about, then tables, figures and facts by name in order. Without parts it is left out.

    `key` is its anchor, one word.
    """

    key: str
    title: str
    note: str
    parts: Sequence[Table | Figure | Mapping[str, Any]]


#: Column -> (heading, unit, decimals, which value is best).
_COLUMNS: dict[str, tuple[str, str, int, str]] = {
    "rmse": ("RMSE", SOIL_MOISTURE, 4, "least"),
    "mae": ("MAE", SOIL_MOISTURE, 4, "least"),
    "cc": ("CC", "", 3, "most"),
    "bias": ("bias", SOIL_MOISTURE, 4, "nearest zero"),
    "ubrmse": ("ubRMSE", SOIL_MOISTURE, 4, "least"),
    "kge": ("KGE", "", 3, "most"),
    "r2": ("R²", "", 3, "most"),
    "sigma_ratio": ("σ ratio", "", 3, ""),
    "mean_reference": ("mean reference", SOIL_MOISTURE, 4, ""),
    "mean_estimate": ("mean estimate", SOIL_MOISTURE, 4, ""),
    "n": ("n", "", 0, ""),
    "p": ("p", "", 3, ""),
    "pairs": ("pairs", "", 0, ""),
    "rmse_gain": ("gain", "%", 1, ""),
    "mae_gain": ("gain", "%", 1, ""),
    "paper_rmse": ("RMSE", "the paper", 4, ""),
    "paper_rmse_gain": ("gain", "the paper, %", 1, ""),
    "paper_mae": ("MAE", "the paper", 4, ""),
    "paper_mae_gain": ("gain", "the paper, %", 1, ""),
    "debiased_rmse": ("RMSE, debiased", SOIL_MOISTURE, 4, "least"),
    "debiased_mae": ("MAE, debiased", SOIL_MOISTURE, 4, "least"),
    "debiased_cc": ("CC, debiased", "", 3, "most"),
    "debiased_n": ("n, debiased", "", 0, ""),
    "standardised": ("rms of standardised errors", "1 if right", 2, ""),
    "within": ("within one sd", "68 % if right", 0, ""),
    "seconds": ("time", "s", 1, ""),
    "values_mb": ("values", "MB", 1, ""),
    "read_mb": ("files read", "MB", 1, ""),
    "written_mb": ("files written", "MB", 1, ""),
    "peak_mb": ("peak memory", "MB", 0, ""),
    "mcells_per_second": ("cells", "10⁶ s⁻¹", 3, ""),
}
_MISSING = "–"
#: Columns of counts, spelled with thin spaces.
_COUNTS = ("n", "count", "pairs", "debiased_n")


def write_report(
    folder: str | Path,
    title: str,
    metrics: Mapping[str, Any],
    tables: Iterable[Table | tuple[str, str, Rows]] = (),
    figures: Iterable[Figure | tuple[str, str, str]] = (),
    data_notes: Iterable[Mapping[str, Any]] = (),
    provenance: Mapping[str, Any] | None = None,
    *,
    summary: str = "",
    headline: Mapping[str, Any] | None = None,
    data_read: Rows = (),
    method: Mapping[str, str] | None = None,
    recipe: str = "",
    sections: Iterable[Section] = (),
    run_page: str = "",
) -> Path:
    """Write `index.html` and `metrics.json` into `folder`.

    Parameters
    ----------
    folder : made where it is not there; the figures already lie in its `figures/`
    metrics : what goes to metrics.json: nested mappings, sequences, numbers, NumPy arrays, DataFrames; NaN becomes null
    tables : score tables, (title, note, rows)
    figures : (file name in `figures/`, title, caption)
    data_notes : problems met in the input, mappings of file, what, count
    provenance : versions, seeds, fingerprints; nested mappings become dotted names
    summary : one or two sentences under the title
    headline : key -> value, shown as tiles: region, period, best model, its scores
    data_read : what was read, one row per product
    method : step -> what was done
    recipe : the recipe's text
    sections : what has its own tables and figures, shown after the scores
    run_page : a page, relative to this one, that is shown at its end: what the runs took, in seconds that differ each time

    Returns
    -------
    the path of index.html

    Raises
    ------
    InputError
        if a figure is not there, is no PNG or is listed twice.
    """
    folder = Path(folder)
    pictures = [Figure(*figure) for figure in figures]
    own = [section for section in sections if section.parts]
    _check_figures(
        folder, [*pictures, *(part for section in own for part in section.parts if isinstance(part, Figure))]
    )
    shown = [
        ("scores", "Scores", _tables_html([Table(*table) for table in tables])),
        *((section.key, section.title, _section_html(folder, section)) for section in own),
        ("figures", "Figures", "".join(_figure_html(folder, figure) for figure in pictures)),
        ("data", "Data", _data_html(data_read, list(data_notes))),
        ("method", "Method", _method_html(method or {}, recipe)),
        ("provenance", "Provenance", _pairs_html(_flat(provenance or {}))),
        ("run", "The run", _run_html(run_page)),
    ]
    page = _page_html(title, summary, headline or {}, [s for s in shown if s[2]])
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "metrics.json", redacted(to_json(metrics)))
    return _write(folder / "index.html", redacted(page))


def to_json(metrics: Mapping[str, Any]) -> str:
    """Strict JSON with sorted keys, two spaces and a final newline; NaN and infinities are null, times ISO 8601."""
    return json.dumps(_plain(metrics), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def format_table(rows: Rows) -> str:
    """A table for the terminal: names left, numbers right, scores with four (CC, KGE, R2 with three) decimals.

    Examples
    --------
    >>> print(format_table([{"source": "smap", "rmse": 0.0512, "n": 1234}]))
    source        RMSE     n
    SMAP 36 km  0.0512  1234
    """
    frame = pd.DataFrame(rows)
    columns = []
    for name in frame.columns:
        cells = [_heading(str(name))[0], *(_cell(str(name), value).replace("\u2009", "") for value in frame[name])]
        width = max(map(len, cells))
        numeric = _is_numeric(str(name), frame[name])
        columns.append([cell.rjust(width) if numeric else cell.ljust(width) for cell in cells])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


# -- the page -------------------------------------------------------------------------------------


def _head(title: str) -> str:
    css = files("smscale.evaluate").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{css}</style>\n</head>\n"
    )


def _page_html(title: str, summary: str, headline: Mapping[str, Any], sections: Sequence[tuple[str, str, str]]) -> str:
    links = "".join(f'<li><a href="#{key}">{name}</a></li>' for key, name, _ in sections)
    body = "".join(f'<section id="{key}">\n<h2>{name}</h2>\n{html}</section>\n' for key, name, html in sections)
    lead = f"<p>{escape(summary)}</p>\n" if summary else ""
    return (
        f"{_head(title)}<body>\n"
        f"<header>\n<h1>{escape(title)}</h1>\n{lead}{_tiles_html(headline)}"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n</header>\n<main>\n{body}</main>\n'
        '<footer><p>The numbers for machines: <a href="metrics.json">metrics.json</a></p></footer>\n</body>\n</html>\n'
    )


def inset_html(title: str, sections: Iterable[Section]) -> str:
    """A page of tables alone, to be shown inside of a report or by itself; a section's note stands under its title."""
    body = "".join(
        f'<section id="{section.key}">\n<h2>{escape(section.title)}</h2>\n{_section_html(Path(), section)}</section>\n'
        for section in sections
    )
    return f'{_head(title)}<body class="inset">\n<main>\n{body}</main>\n</body>\n</html>\n'


def _run_html(page: str) -> str:
    """A frame that shows another page, where it is there."""
    if not page:
        return ""
    source = quote(page)
    return (
        f'<p class="note">Times, memory, bytes and failures of each stage; <a href="{source}">as a page of its own</a>.</p>\n'
        f'<object data="{source}" type="text/html" aria-label="The run">Its page lies in the workspace: {escape(page)}</object>\n'
    )


def _tiles_html(headline: Mapping[str, Any]) -> str:
    if not headline:
        return ""
    tiles = "".join(
        f"<div><dt>{escape(str(k))}</dt><dd>{escape(_cell(str(k), v))}</dd></div>\n" for k, v in headline.items()
    )
    return f'<dl class="key">\n{tiles}</dl>\n'


def _tables_html(tables: Sequence[Table]) -> str:
    return "".join(
        f"<h3>{escape(t.title)}</h3>\n" + (f'<p class="note">{escape(t.note)}</p>\n' if t.note else "") + _table_html(t)
        for t in tables
    )


def _section_html(folder: Path, section: Section) -> str:
    note = f"<p>{escape(section.note)}</p>\n" if section.note else ""
    return note + "".join(_part_html(folder, part) for part in section.parts)


def _part_html(folder: Path, part: Table | Figure | Mapping[str, Any]) -> str:
    if isinstance(part, Figure):
        return _figure_html(folder, part)
    return _tables_html([part]) if isinstance(part, Table) else _pairs_html(part)


def _table_html(table: Table) -> str:
    frame = pd.DataFrame(table.rows)
    if frame.empty:
        return "<p>Nothing to show.</p>\n"
    best = _best(frame, table.group)
    numeric = [_is_numeric(str(name), frame[name]) for name in frame.columns]
    head = "".join(
        _head_html(str(name), number, table.units) for name, number in zip(frame.columns, numeric, strict=True)
    )
    lines = []
    for i, row in enumerate(frame.itertuples(index=False)):
        cells = [
            _cell_html(str(name), value, number, first=j == 0, best=(i, j) in best)
            for j, (name, value, number) in enumerate(zip(frame.columns, row, numeric, strict=True))
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>\n")
    kind = f' class="{table.wrap}"' if table.wrap else ""
    return (
        f'<div class="wide" role="region" aria-label="{escape(table.title)}" tabindex="0">'
        f"<table{kind}>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(lines)}</tbody>\n</table></div>\n"
    )


def _head_html(name: str, number: bool, units: str) -> str:
    heading, unit = _heading(name)
    unit = units if unit == SOIL_MOISTURE else unit
    kind = ' class="number"' if number else ""
    return f'<th scope="col"{kind}>{escape(heading)}{f"<span>{escape(unit)}</span>" if unit else ""}</th>'


def _cell_html(name: str, value: Any, number: bool, *, first: bool, best: bool) -> str:
    text = escape(_cell(name, value))
    if first and not number:
        return f'<th scope="row">{text}</th>'
    text = text.replace("-", "−") if number else text
    kinds = " ".join(kind for kind, on in (("number", number), ("best", best)) if on)
    return f'<td class="{kinds}">{text}</td>' if kinds else f"<td>{text}</td>"


def _figure_html(folder: Path, figure: Figure) -> str:
    source = f"figures/{quote(figure.file)}"
    width, height = _png_size(folder / "figures" / figure.file)
    caption = f"<strong>{escape(figure.title)}.</strong> {escape(figure.caption)}"
    return (
        f'<figure>\n<a href="{source}"><img src="{source}" alt="{escape(figure.alt or figure.title)}" '
        f'width="{width}" height="{height}"></a>\n<figcaption>{caption}</figcaption>\n</figure>\n'
    )


def _data_html(data_read: Rows, notes: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    if not pd.DataFrame(data_read).empty:
        parts.append("<h3>What was read</h3>\n" + _table_html(Table("What was read", "", data_read)))
    parts.append("<h3>What was left out, and why</h3>\n")
    if notes:
        parts.append(_table_html(Table("What was left out, and why", "", list(notes), wrap="words")))
    else:
        parts.append("<p>Nothing: no problem was met in the input.</p>\n")
    return "".join(parts)


def _method_html(method: Mapping[str, str], recipe: str) -> str:
    return _pairs_html(method) + (f'<h3>Recipe</h3>\n<pre tabindex="0">{escape(recipe)}</pre>\n' if recipe else "")


def _pairs_html(pairs: Mapping[str, Any]) -> str:
    if not pairs:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(str(k))}</th><td>{escape(_cell(str(k), v))}</td></tr>\n' for k, v in pairs.items()
    )
    return f'<div class="wide"><table class="words">\n<tbody>\n{rows}</tbody>\n</table></div>\n'


def spelled(n: float) -> str:
    """A count with thin spaces between thousands."""
    return f"{int(n):,}".replace(",", "\u2009")


# -- cells ----------------------------------------------------------------------------------------


def _heading(name: str) -> tuple[str, str]:
    """Heading and unit of a column."""
    return _COLUMNS[name][:2] if name in _COLUMNS else (name.replace("_", " "), "")


def _cell(name: str, value: Any) -> str:
    if _is_missing(value):
        return _MISSING
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer) or (name in _COUNTS and isinstance(value, float | np.floating)):
        return spelled(int(value)) if name in _COUNTS else str(int(value))
    if isinstance(value, float | np.floating):
        return f"{value:z.{_COLUMNS[name][2]}f}" if name in _COLUMNS else f"{value:.4g}"
    if isinstance(value, datetime.date | np.datetime64):
        return _iso(value)
    if isinstance(value, list | tuple):
        return ", ".join(_cell(name, item) for item in value)
    return label_of(str(value)) if name in ("source", "model") else str(value)


def _is_missing(value: Any) -> bool:
    if isinstance(value, float | np.floating):
        return not math.isfinite(value)
    return (
        value is None
        or value is pd.NaT
        or value is pd.NA
        or (isinstance(value, np.datetime64) and bool(np.isnat(value)))
    )


def _is_numeric(name: str, column: pd.Series) -> bool:
    return name in _COLUMNS or (pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column))


def _best(frame: pd.DataFrame, group: str | None) -> set[tuple[int, int]]:
    """(row, column) of the best score of each column in each group of at least two rows; ties all count."""
    places = pd.Series(np.arange(len(frame)))
    groups = (
        [places]
        if group is None
        else [part for _, part in places.groupby(frame[group].to_numpy(), sort=False, dropna=False)]
    )
    best = set()
    for j, name in enumerate(frame.columns):
        kind = _COLUMNS[str(name)][3] if str(name) in _COLUMNS else ""
        for rows in groups if kind else ():
            cost = _cost(frame.iloc[rows.to_numpy(), j], kind)
            if np.isfinite(cost).sum() > 1:
                best |= {(int(row), j) for row, c in zip(rows, cost, strict=True) if c == np.nanmin(cost)}
    return best


def _cost(column: pd.Series, kind: str) -> np.ndarray:
    """Values, rounded as shown, such that the least is the best."""
    values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
    values = np.round(values, _COLUMNS[str(column.name)][2])
    return {"least": values, "most": -values, "nearest zero": np.abs(values)}[kind]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


# -- files ----------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """The value in JSON's own types."""
    if _is_missing(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, pd.DataFrame):
        return [_plain(row) for row in value.to_dict("records")]
    if isinstance(value, pd.Series):
        return _plain(value.to_dict())
    if isinstance(value, np.ndarray):
        return _plain(value.tolist() if value.dtype.kind != "M" else list(value))
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value)
    if isinstance(value, datetime.date | np.datetime64):
        return _iso(value)
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(_plain(item) for item in value)
    return str(value)


def _iso(value: datetime.date | np.datetime64) -> str:
    """ISO 8601 to the second; the date alone for dates and midnights."""
    text = pd.Timestamp(value).isoformat()
    return text.removesuffix("T00:00:00")


def _check_figures(folder: Path, figures: Sequence[Figure]) -> None:
    names = [figure.file for figure in figures]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"the report lists a figure twice: {', '.join(twice)}")
    paths = [name for name in names if Path(name).name != name]
    if paths:
        raise InputError(
            f"figures are named without a folder, they lie in {folder / 'figures'}; got {', '.join(paths)}"
        )
    absent = [name for name in names if not (folder / "figures" / name).is_file()]
    if absent:
        raise InputError(
            f"the report lists figures that are not in {folder / 'figures'}: {', '.join(absent)}; draw them first"
        )


def _png_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, from the IHDR chunk (PNG specification, 11.2.2)."""
    with path.open("rb") as file:
        head = file.read(24)
    if head[:8] != b"\x89PNG\r\n\x1a\n" or len(head) < 24:
        raise InputError(f"{path} is not a PNG file")
    width, height = struct.unpack(">II", head[16:24])
    return width, height


def _write(path: Path, text: str) -> Path:
    with file_to_write(path) as half:
        half.write_text(text, encoding="utf-8", newline="\n")
    return path
