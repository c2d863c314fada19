"""`smscale verify`: does what lies in a workspace still hold what the ledger says was written?

A missing shard reads as fill, silently; a truncated one fails only where it is read; an altered one may not fail at all.
Every receipt holds a checksum of the values, so all three are found and named. `repair` removes the records of what is
damaged: the next run of the recipe does exactly that again.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from tqdm.auto import tqdm

from smscale import store, store_inspection
from smscale.errors import SmscaleError, StoreError
from smscale.places import Place, Unreachable, folder_to_read
from smscale.receipts import Receipts, Written, rank, read_receipts, stages
from smscale.run_record import ending, read_records
from smscale.store_inspection import Array
from smscale.workspace import Workspace, remove

#: Blocks that are read at the same time: decoding releases the interpreter, reading waits for the disk.
THREADS = min(8, os.cpu_count() or 1)
#: Coordinates that tell cells and steps apart: each value is there once, in order.
ORDERED = ("time", "lat", "lon", "x", "y", "year")
#: The station table in the cube, of one block.
STATIONS = "stations/"


@dataclass(frozen=True)
class Defect:
    """One thing that is not as it was written.

    Parameters
    ----------
    kind : missing, unreadable or altered (a block), layout (an array's document or coordinates), file (beside the arrays),
        record (of the ledger)
    where : array with its store, or a file, relative to the workspace
    files : files to blame, relative to the workspace
    stage, key : the block that wrote it; key is empty where a whole stage must be done again
    region : [start, stop] along each dimension, as `time 0:4, lat 0:60`
    """

    kind: str
    where: str
    what: str
    files: tuple[str, ...] = ()
    stage: str = ""
    key: str = ""
    region: str = ""
    written: tuple[Written, ...] = field(default=(), repr=False)

    @property
    def line(self) -> str:
        """The defect in one line."""
        place = f"{self.where} [{self.region}]" if self.region else self.where
        files = f": {', '.join(self.files)}" if self.files and self.files != (self.where,) else ""
        by = f" (stage {self.stage}{f', block {self.key}' if self.key else ''})" if self.stage else ""
        return f"{self.kind:<10} {place}: {self.what}{files}{by}"


@dataclass(frozen=True)
class Verification:
    """What was checked, what is wrong, and what nothing is known about."""

    root: Place
    blocks: int
    bytes_read: int
    files: int
    defects: tuple[Defect, ...]
    unverified: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        return 2 if self.defects else 0

    @property
    def text(self) -> str:
        """What a person reads: one line per defect, the fix, a summary."""
        lines = [defect.line for defect in self.defects]
        lines += [f"note       {note}" for note in self.notes]
        if self.unverified:
            lines.append(f"unverified {', '.join(self.unverified)}")
        checked = (
            f"{self.blocks} written parts of arrays ({self.bytes_read / 1e6:,.1f} MB) and {self.files} files checked"
        )
        if not self.defects:
            return "\n".join([*lines, f"sound      {self.root}: {checked}\n"])
        kinds = Counter(defect.kind for defect in self.defects)
        counts = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
        again = ", ".join(sorted({d.stage for d in self.defects if d.stage}, key=rank)) or "the damaged stage"
        lines.append(f"damaged    {self.root}: {counts}; {checked}")
        lines.append(
            f"fix        smscale verify {self.root} --repair, then run the recipe again: it does only the damaged blocks of {again}\n"
        )
        return "\n".join(lines)


@dataclass(frozen=True)
class Repair:
    """What the next run will do again."""

    blocks: tuple[tuple[str, str], ...]
    stages: tuple[str, ...]
    whole: tuple[str, ...]

    @property
    def text(self) -> str:
        lines = []
        if self.blocks:
            counts = Counter(stage for stage, _ in self.blocks)
            lines.append("to redo    " + ", ".join(f"{n} block{'s' * (n > 1)} of {s}" for s, n in counts.items()))
        if self.whole:
            lines.append(f"to redo    all of {', '.join(self.whole)}: the layout of an array is lost")
        if not self.stages:
            return "\n".join([*lines, "repaired   nothing that a run would make again\n"])
        lines.append(f"unfinished {', '.join(self.stages)}: run the recipe again; blocks that are sound are kept")
        lines.append("note       stages that ran after the damage may have read it: with a doubt, run with --fresh\n")
        return "\n".join(lines)


# -- verify -------------------------------------------------------------------------------------


def verify(workspace: Workspace, progress: bool = False, threads: int = THREADS) -> Verification:
    """Check every receipt of the ledger against the values that lie there, and that the files beside them can be read.

    Blocks are read one by one, `threads` at a time: memory is that of as many blocks.

    Parameters
    ----------
    progress : show a bar
    threads : blocks read at the same time

    Returns
    -------
    defects, each with array, region, file, stage and block; arrays without a receipt are listed as unverified
    """
    receipts = read_receipts(workspace)
    defects = [_bad_record(workspace, stage, path) for stage, path in receipts.unreadable]
    layouts, broken = _layouts(workspace, receipts)
    defects += broken
    todo = [w for w in receipts.holding if (w.store, w.array) in layouts]
    bytes_read = 0
    with tqdm(total=len(todo), desc="verify", unit="block", disable=not progress) as bar:
        for defect, size in _in_threads(lambda w: _block(workspace, layouts[w.store, w.array], w), todo, threads):
            bytes_read += size
            defects += [defect] if defect else []
            bar.update()
    defects += _lost_commits(workspace)
    loose, unverified = _without_receipt(workspace, receipts)
    beside, count = _files(workspace)
    defects += loose + beside
    defects.sort(key=lambda d: (rank(d.stage), d.where, d.region))
    unfinished = [s for s in stages(workspace) if workspace.finished(s) is None]
    notes = [f"stage {stage} is not finished: only what it wrote so far was checked" for stage in unfinished]
    runs = read_records(workspace.root)
    if runs and runs[-1]["state"] != "finished":
        notes.append(f"the last run, {runs[-1]['id']}, {ending(runs[-1])}")
    return Verification(workspace.root, len(todo), bytes_read, count, tuple(defects), tuple(unverified), tuple(notes))


def _lost_commits(workspace: Workspace) -> Iterator[Defect]:
    """Stages whose commit the store's history does not hold: what they made is not what readers see."""
    held = {name: {one["snapshot"] for one in store.history(workspace.root / name)} for name in workspace.stores}
    for stage in stages(workspace):
        for name, snapshot in ((workspace.finished(stage) or {}).get("commits") or {}).items():
            if snapshot not in held.get(name, ()):
                what = f"its history holds no commit {snapshot}: it was put back, or another repository lies here"
                yield Defect("layout", name, what, stage=stage)


def _in_threads(
    call: Callable[[Written], tuple[Defect | None, int]], todo: Iterable[Written], threads: int
) -> Iterator[tuple[Defect | None, int]]:
    """Results as they come, a few blocks in flight at a time."""
    queue = iter(todo)
    flying: set[Future[tuple[Defect | None, int]]] = set()
    with ThreadPoolExecutor(max(1, threads)) as pool:
        while True:
            for written in queue:
                flying.add(pool.submit(call, written))
                if len(flying) >= 2 * threads:
                    break
            if not flying:
                return
            done, flying = wait(flying, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)


def _bad_record(workspace: Workspace, stage: str, path: Place) -> Defect:
    where = _relative(workspace, path)
    return Defect(
        "record", where, "the ledger record cannot be read: its block counts as not done", (where,), stage, path.name
    )


def _layouts(workspace: Workspace, receipts: Receipts) -> tuple[dict[tuple[str, str], Array], list[Defect]]:
    """Layout of every array with receipts, and those whose document is missing or does not fit what was written."""
    found: dict[tuple[str, str], Array] = {}
    defects = []
    by_array: dict[tuple[str, str], list[Written]] = {}
    for written in receipts.holding:
        by_array.setdefault((written.store, written.array), []).append(written)
    for (name, path), entries in by_array.items():
        where, stage = f"{name}/{path}", min((w.stage for w in entries), key=rank)
        document = f"{where}/{store.METADATA}"
        try:
            layout = store_inspection.read_array(workspace.root / name, path)
        except StoreError as error:
            what = " ".join(str(error).split()).replace(f"{workspace.root}/", "").removeprefix(f"{document}: ")
            defects.append(Defect("layout", where, what, (document,), stage))
            continue
        wrong = _does_not_fit(layout, entries)
        if not wrong and not layout.finished and workspace.finished(stage) is not None:
            wrong = f"stage {stage} is finished, but its metadata was never published"
        if wrong:
            defects.append(Defect("layout", where, wrong, (document,), stage))
        else:
            found[name, path] = layout
    groups = {(name, group) for name, path in by_array for group in _above(path)}
    for name, group in sorted(groups):
        stage = min(
            (w.stage for (n, p), ws in by_array.items() for w in ws if n == name and group in _above(p)), key=rank
        )
        document = "/".join(part for part in (name, group, store.METADATA) if part)
        if workspace.finished(stage) is not None and not workspace.file(document).is_file():
            where = document.removesuffix(f"/{store.METADATA}")
            defects.append(
                Defect(
                    "layout", where, "the group's document is missing: no reader finds its arrays", (document,), stage
                )
            )
    return found, defects


def _above(path: str) -> list[str]:
    """Groups that an array lies in, the store itself ("") included."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[:n]) for n in range(len(parts) + 1)]


def _does_not_fit(layout: Array, entries: list[Written]) -> str:
    """Why a layout is not that of its receipts; empty where it may be."""
    for written in entries:
        stops = [stop for _, stop in written.region]
        if len(stops) != len(layout.shape) or any(s > size for s, size in zip(stops, layout.shape, strict=True)):
            return f"its shape {_times(layout.shape)} does not hold what was written ({_times(stops)})"
    return ""


def _block(workspace: Workspace, layout: Array, written: Written) -> tuple[Defect | None, int]:
    """What is wrong with one written part, and the bytes read."""
    files = list(layout.files(written.region))
    absent = [path for path, _ in files if not path.is_file()]
    try:
        values = _read(layout, tuple(slice(*part) for part in written.region))
    except Unreachable:
        raise
    except Exception:  # whatever a codec raises on broken bytes
        broken = [path for path, part in files if path.is_file() and not _decodes(layout, part)]
        what = "cannot be decoded, truncated or altered"
        return _blame(workspace, layout, written, "unreadable", what, broken + absent), 0
    if store.checksum(values) == written.checksum:  # a shard of nothing but fill has no file
        return None, values.nbytes
    if absent:
        return _blame(workspace, layout, written, "missing", "no such file: it reads as fill", absent), values.nbytes
    what = "holds other values than were written"
    return _blame(workspace, layout, written, "altered", what, [path for path, _ in files]), values.nbytes


def _read(layout: Array, region: tuple[slice, ...]) -> np.ndarray:
    return store.read(layout.store, layout.group, layout.name, region)


def _decodes(layout: Array, region: tuple[slice, ...]) -> bool:
    try:
        _read(layout, region)
    except Unreachable:
        raise
    except Exception:
        return False
    return True


def _blame(workspace: Workspace, layout: Array, written: Written, kind: str, what: str, files: list[Place]) -> Defect:
    region = ", ".join(f"{d} {a}:{b}" for d, (a, b) in zip(layout.dims, written.region, strict=True))
    names = tuple(_relative(workspace, path) for path in files)
    where = f"{written.store}/{written.array}"
    return Defect(kind, where, what, names, written.stage, written.key, region, (written,))


def _without_receipt(workspace: Workspace, receipts: Receipts) -> tuple[list[Defect], list[str]]:
    """Arrays that no receipt covers: coordinates are read and must be in order; the rest is only read."""
    known = {(w.store, w.array) for w in receipts.holding}
    covered = Counter[tuple[str, str]]()
    for written in receipts.holding:
        covered[written.store, written.array] += math.prod(stop - start for start, stop in written.region)
    defects, unverified, coordinates = [], [], 0
    sealed = _sealed(workspace)
    for name in workspace.stores:
        for path in store_inspection.array_paths(workspace.root / name):
            where = f"{name}/{path}"
            try:
                layout = store_inspection.read_array(workspace.root / name, path)
            except StoreError as error:
                if (name, path) not in known:
                    defects.append(Defect("layout", where, _one_line(error), stage=_stage_of(name, path)))
                continue
            cells = math.prod(layout.shape)
            if (name, path) in known:
                if covered[name, path] < cells:
                    share = 100 * (1 - covered[name, path] / cells)
                    unverified.append(f"{where} ({share:.0f} % of it: no block wrote there)")
                continue
            if wrong := _loose(layout):
                defects.append(_of_no_receipt(where, wrong, _stage_of(name, path)))
            elif layout.is_coordinate:
                coordinates += not any(file.startswith(f"{where}/") for file in sealed)
            else:
                unverified.append(where)
    if coordinates:
        unverified.append(f"{coordinates} coordinates (read, in order, no checksum)")
    return defects, unverified


def _of_no_receipt(where: str, wrong: str, stage: str) -> Defect:
    """A defect of what a stage laid out; the station table is one block's, made anew with its coordinates."""
    if _of_stations(where):
        return Defect("unreadable", where, wrong, (where.rpartition("/")[0],), stage, "stations")
    return Defect("layout", where, wrong, stage=stage)


def _of_stations(where: str) -> bool:
    return where.partition("/")[2].startswith(STATIONS)


def _loose(layout: Array) -> str:
    """What is wrong with an array of which nothing was recorded."""
    try:
        # Station tables are read by rows of files: bounded, as blocks are.
        parts = [part for _, part in layout.files(layout.whole)] if layout.shape else [()]
        pieces = [_read(layout, part) for part in parts] if layout.is_coordinate else []
        if not layout.is_coordinate:
            for part in parts:
                _read(layout, part)
    except Unreachable:
        raise
    except Exception:
        return "cannot be decoded, truncated or altered"
    if layout.name in ORDERED and len(layout.shape) == 1 and layout.dims[0] in (layout.name, "lat", "lon"):
        steps = np.diff(np.concatenate(pieces).astype(np.float64))
        if not (np.all(steps > 0) or np.all(steps < 0)):
            return "its values are not in order: a file of it is missing or altered"
    return ""


def _sealed(workspace: Workspace) -> set[str]:
    """Files of which a finished stage recorded a checksum."""
    reports = [(workspace.finished(stage) or {}).get("report") or {} for stage in stages(workspace)]
    return {name for report in reports for name in report.get("files") or {}}


def _stage_of(name: str, path: str) -> str:
    """The stage that lays out an array of which no block tells."""
    return "downscale" if name.startswith("maps.") else "ingest"


# -- files beside the arrays --------------------------------------------------------------------


def _files(workspace: Workspace) -> tuple[list[Defect], int]:
    """Samples, models, report and whatever the stages recorded a checksum of."""
    defects, count = [], 0
    told: set[Place] = set()
    for stage in stages(workspace):
        done = workspace.finished(stage)
        if done is None:
            continue
        report = done.get("report") or {}
        for path, check in _expected(workspace, stage, report):
            count += 1
            if path not in told and (wrong := _wrong(path, check)):
                told.add(path)
                name = _relative(workspace, path)
                kind = "layout" if name.startswith(tuple(f"{s}/" for s in workspace.stores)) else "file"
                defects.append(Defect(kind, name, wrong, (name,), stage))
    return defects, count


def _expected(
    workspace: Workspace, stage: str, report: dict[str, Any]
) -> Iterator[tuple[Place, Callable[[Place], str]]]:
    """Files that a finished stage leaves, each with how it is checked; a check returns what is wrong."""
    if stage == "match":
        yield workspace.samples_path, lambda path: _table(path, report.get("samples"))
        if not workspace.recipe.get("table"):  # a table of one's own is not written again as CSV
            yield workspace.root / "samples.csv", lambda path: _rows(path, report.get("samples"))
    elif stage == "train":
        names = {p.name for p in (workspace.root / "models").glob("[!.]*") if p.is_dir()}
        names |= set(workspace.recipe.get("models") or ()) if not workspace.recipe.get("recovery") else set()
        for name in sorted(names):
            yield workspace.model(name), _model
    elif stage == "evaluate":
        yield workspace.report / "index.html", _page
        yield workspace.report / "metrics.json", _json
    for name, checksum in (report.get("files") or {}).items():
        yield workspace.file(name), lambda path, wanted=checksum: _same(path, wanted)  # type: ignore[misc]


def _wrong(path: Place, check: Callable[[Place], str]) -> str:
    """What is wrong with a file; empty where nothing is."""
    if not path.exists():
        return "is missing"
    try:
        return check(path)
    except Unreachable:
        raise
    except (OSError, ValueError, KeyError, pa.ArrowException, zipfile.BadZipFile, SmscaleError) as error:
        return f"cannot be read ({_one_line(error).replace(f'{path.parent}/', '')})"


def _table(path: Place, rows: int | None) -> str:
    with path.open("rb") as content, parquet.ParquetFile(content) as file:
        found = sum(file.read_row_group(i).num_rows for i in range(file.num_row_groups))
    return "" if rows is None or found == rows else f"holds {found} rows, stage match wrote {rows}"


def _rows(path: Place, rows: int | None) -> str:
    with path.open("rb") as file:
        found = sum(1 for _ in file) - 1
    return "" if rows is None or found == rows else f"holds {found} rows, stage match wrote {rows}"


def _model(folder: Place) -> str:
    from smscale.models.artefact import load

    with folder_to_read(folder) as here:
        load(here)  # checks SHA-256 of weights and record
    return ""


def _page(path: Place) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 1024))
        return "" if b"</html>" in file.read() else "is truncated"


def _json(path: Place) -> str:
    json.loads(path.read_text())
    return ""


def _same(path: Place, checksum: str) -> str:
    return "" if store_inspection.file_checksum(path) == checksum else "holds other bytes than were written"


# -- repair -------------------------------------------------------------------------------------


def repair(workspace: Workspace, found: Verification) -> Repair:
    """Remove the ledger's records of what is damaged, so that the next run does it again and keeps the rest.

    A stage is unfinished from then on, and so are those after it; blocks that are sound stay in the ledger. Where an
    array's layout is lost, the whole stage goes, with all that was made from it.

    Raises
    ------
    StoreError
        if a run holds the workspace.
    """
    with workspace.held():
        lost = [d for d in found.defects if d.kind == "layout" and d.stage]
        first_lost = min((d.stage for d in lost), key=rank, default=None)
        whole = tuple(s for s in stages(workspace) if first_lost is not None and rank(s) >= rank(first_lost))
        for stage in reversed(whole):
            workspace.forget(stage)
        redo = _to_redo(read_receipts(workspace), [d for d in found.defects if d.stage not in whole])
        damaged = {d.stage for d in found.defects if d.stage} | {stage for stage, _ in redo}
        first = min(damaged, key=rank, default=None)
        unfinished = tuple(s for s in stages(workspace) if first is not None and rank(s) >= rank(first))
        for stage in reversed(unfinished):  # what says that it is finished goes first
            (workspace.root / "ledger" / f"{stage}.json").unlink(missing_ok=True)
        for defect in found.defects:
            _clear(workspace, defect)
        for (stage, _), record in redo.items():
            (workspace.root / "ledger" / stage / record).unlink(missing_ok=True)
        return Repair(tuple(redo), tuple(sorted({*unfinished, *whole}, key=rank)), whole)


def _to_redo(receipts: Receipts, defects: list[Defect]) -> dict[tuple[str, str], str]:
    """(stage, block) -> record of what must be done again: the damaged ones, and later ones that wrote over what those write."""
    redo = {(w.stage, w.key): w.record for defect in defects for w in defect.written}
    redo |= {(d.stage, d.key): f"{d.key}.json" for d in defects if _of_stations(d.where)}
    replaced = {w.where: w for w in receipts.holding}
    by_block: dict[tuple[str, str], list[Written]] = {}
    for written in (*receipts.holding, *receipts.superseded):
        by_block.setdefault((written.stage, written.key), []).append(written)
    queue = list(redo)
    while queue:
        for written in by_block.get(queue.pop(), []):
            last = replaced[written.where]
            if (last.stage, last.key) not in redo:
                redo[last.stage, last.key] = last.record
                queue.append((last.stage, last.key))
    return dict(sorted(redo.items(), key=lambda item: (rank(item[0][0]), item[0][1])))


def _clear(workspace: Workspace, defect: Defect) -> None:
    """Remove what is damaged itself: an edge shard that cannot be decoded could not be written over."""
    if defect.kind in ("unreadable", "altered", "record"):
        for name in defect.files:
            remove(workspace.root / name)
    if defect.kind == "file":
        remove(workspace.root / defect.where)
        if defect.stage == "train":
            name = defect.where.rpartition("/")[2]
            (workspace.root / "ledger" / "train" / f"fit.{name}.json").unlink(missing_ok=True)


def _relative(workspace: Workspace, path: Place) -> str:
    return path.relative_to(workspace.root).as_posix() if path.is_relative_to(workspace.root) else str(path)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]


def _times(sizes: Iterable[int]) -> str:
    return " x ".join(map(str, sizes))
