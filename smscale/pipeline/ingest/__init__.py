"""ingest: raw product files -> the cube.

What a block is made from stands in its fingerprint: the recipe's settings and its own files. So days that are added, a
tile or a granule that comes late, cost the blocks that they touch, and no others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from smscale import schema, store
from smscale.blocks import Task, spans
from smscale.cube import lst_file_dates
from smscale.pipeline.ingest import arrays
from smscale.pipeline.ingest.arrays import DAY
from smscale.pipeline.ingest.coarse import refuse_mixed, smap_block, stations_block
from smscale.pipeline.ingest.fine import Source, composite_block, land_cover_block, overpass_block, static_block
from smscale.pipeline.ingest.inputs import COMPOSITES, Inputs, OfDate, column_map, gather
from smscale.pipeline.ingest.report import merged, summary
from smscale.pipeline.layout import Layout
from smscale.pipeline.run import Run, file_fingerprints, sealed
from smscale.places import Place
from smscale.workspace import NEWEST, OVERPASS

__all__ = ["ingest"]

#: Raised when blocks are made otherwise: what an older version finished is done again.
VERSION = 3


def ingest(run: Run, layout: Layout, folder: Place) -> dict[str, Any]:
    """Fill the cube from the raw files; the report counts what was read and what was left out."""
    recipe, path = run.recipe, str(run.workspace.cube)
    inputs = gather(folder, layout, recipe)
    work = _Work(run, layout, inputs, path, file_fingerprints(inputs.files))
    world = recipe.resolve(recipe.world).read_text() if recipe.world else ""
    settings = (recipe.part("region", "grid", "chunks", "products"), recipe.modis.quality)
    fine = store.fingerprint("ingest", VERSION, settings, layout.period[0], layout.grid.bounds, world)
    coarse = store.fingerprint(recipe.part("smap"))
    files = sorted(work.prints.values())
    whole = store.fingerprint(fine, coarse, recipe.part("stations"), layout.period, files)

    def extend(held: str) -> bool:
        if held.partition("+")[0] != fine:
            return False
        ledger = run.workspace.ledger("ingest")
        if held.partition("+")[2] != coarse:
            arrays.lay_out_coarse(layout, path)
            ledger.forget("smap/")
        again = arrays.make_longer(layout, inputs, path)
        for prefix in again or ():
            ledger.forget(f"{prefix}/")
        if not inputs.stations:  # those of an earlier run
            store.remove(path, "stations")
            ledger.forget("stations")
        return again is not None

    base = f"{fine}+{coarse}"
    report = run.stage("ingest", whole, lambda: arrays.lay_out(layout, inputs, path), work.do, base, extend)
    if report["set_aside"] != work.set_aside and not run.check:  # files that change nothing but the report
        report = work.do()
        run.workspace.finish("ingest", whole, report)
    return report


class _Work:
    """The tasks of one ingest."""

    def __init__(self, run: Run, layout: Layout, inputs: Inputs, path: str, prints: dict[str, str]) -> None:
        self.run, self.layout, self.inputs, self.path, self.prints = run, layout, inputs, path, prints
        self.settings = (run.recipe.part("region", "grid", "chunks"), run.recipe.modis.quality)
        self.set_aside = store.fingerprint(inputs.problems)
        self.bands = layout.bands()
        self.lst = inputs.by_date("LST")

    def do(self) -> dict[str, Any]:
        """Fill what is not filled, publish it, and report."""
        if arrays.end_compaction(self.layout, self.path):
            self.run.workspace.ledger("ingest").forget("overpass_newest/")
        results = dict(self.run.blocks("ingest", self._tasks()))
        refuse_mixed([kind for result in results.values() for kind in result.get("kinds", [])])
        for group in self._groups():
            store.publish(self.path, group)
        steps = arrays.compaction(self.layout, self.path)
        if steps is not None:
            results = self._compact(steps, results)
        report, cube = summary(self.inputs, results, self.run.recipe.modis.quality), self.run.workspace.cube.name
        return {
            **report,
            "set_aside": self.set_aside,
            "files": sealed(self.run.workspace, f"{cube}/fine", f"{cube}/stations"),
        }

    def _groups(self) -> list[str]:
        groups = [f"fine/{cadence}" for cadence in schema.CADENCES] + ["fine/land_cover", "coarse"]
        groups += [NEWEST] if arrays.newest_steps(self.path) else []
        return [*groups, "stations"] if self.inputs.stations else groups

    def _fingerprint(self, *parts: Any, files: Sequence[str] = ()) -> str:
        """Of one block: what the recipe sets, and its own files in the order in which they are read."""
        return store.fingerprint("ingest", VERSION, self.settings, parts, [self.prints[file] for file in files])

    # -- what there is to do ----------------------------------------------------------------------

    def _tasks(self) -> list[Task]:
        main, newest = arrays.main_steps(self.path), arrays.newest_steps(self.path)
        tasks = self._overpass(OVERPASS, 0, spans(main, self.layout.shards["time"]))
        tasks += self._overpass(NEWEST, main, spans(newest, DAY))
        tasks += [self._smap(slab) for slab in self.layout.slabs()]
        for cadence in COMPOSITES:
            tasks += self._composites(cadence)
        tasks += self._land_cover()
        for rows, cols in self.layout.tiles():
            grid = self.layout.grid.window(rows, cols)
            dem = self.inputs.dem_touching(grid)
            key = f"static/{rows.start}-{cols.start}"
            fingerprint = self._fingerprint(files=dem)
            args = (self.path, (rows, cols), grid, dem, self.inputs.dem_halo)
            tasks.append(Task(key, static_block, args, fingerprint))
        if self.inputs.stations:
            recipe, files = self.run.recipe, [*self.inputs.stations, *self.inputs.described]
            fingerprint = self._fingerprint(recipe.part("stations"), self.layout.period, files=files)
            stations = (self.path, self.inputs.stations, self.layout.grid, self.layout.steps, column_map(recipe))
            tasks.append(Task("stations", stations_block, stations, fingerprint))
        return tasks

    def _overpass(self, group: str, first: int, slabs: Sequence[slice]) -> list[Task]:
        """Blocks of LST; `first` is the step of the period at which the group begins."""
        tasks = []
        source = self._source("LST")
        for slab in slabs:
            steps = self.layout.steps.isel(time=slice(first + slab.start, first + slab.stop))
            days = steps["local_date"].values.astype("datetime64[D]")
            labels = list(zip(map(str, days), steps["overpass"].values.tolist(), strict=True))
            wanted = lst_file_dates(days[0], days[-1], self.layout.grid.lon)
            files = {day: self.lst[day] for day in wanted if day in self.lst}
            names = [path for day in files.values() for paths in day.values() for path in paths]
            fingerprint = self._fingerprint(labels, files=names)
            for band, tiles in self.bands.items():
                args = (self.path, group, slab, tiles, self.layout.grid, labels, files, source)
                key = f"{group.rpartition('/')[2]}/{slab.start}-{band}"
                tasks.append(Task(key, overpass_block, args, fingerprint))
        return tasks

    def _source(self, family: str, qc: str | None = None) -> Source:
        return Source(family, qc or self.run.recipe.modis.quality, self.inputs.lattice(family))

    def _smap(self, slab: slice) -> Task:
        smap = self.run.recipe.smap
        steps = self.layout.steps.isel(time=slab)
        days = steps["local_date"].values.astype("datetime64[D]")
        wanted = {str(d) for d in np.arange(days[0] - 1, days[-1] + 2)}
        files = [path for g in self.inputs.granules["SPL3SMP"] if g.date in wanted for path in map(str, g.files)]
        settings = (smap.quality, dict(smap.errors), smap.algorithm)
        args = (self.path, slab, self.layout.coarse, steps, files, *settings)
        labels = [str(d) for d in days]
        return Task(f"smap/{slab.start}", smap_block, args, self._fingerprint(labels, settings, files=files))

    def _composites(self, cadence: str) -> list[Task]:
        tasks = []
        by_date, source = self.inputs.by_date(COMPOSITES[cadence]), self._source(COMPOSITES[cadence])
        for i, (first, _) in enumerate(self.inputs.composites(cadence, self.layout)):
            files = by_date[first]
            fingerprint = self._fingerprint(first, files=_names(files))
            for band, tiles in self.bands.items():
                args = (self.path, cadence, i, tiles, self.layout.grid, files, source)
                tasks.append(Task(f"{cadence}/{first}-{band}", composite_block, args, fingerprint))
        return tasks

    def _land_cover(self) -> list[Task]:
        tasks = []
        source = self._source("LC", "none")
        for day, files in sorted(self.inputs.by_date("LC").items()):
            year = int(day[:4])
            fingerprint = self._fingerprint(year, files=_names(files))
            for band, tiles in self.bands.items():
                args = (self.path, self.inputs.years.index(year), tiles, self.layout.grid, files, source)
                tasks.append(Task(f"land_cover/{year}-{band}", land_cover_block, args, fingerprint))
        return tasks

    # -- the newest days join the others ----------------------------------------------------------

    def _compact(self, steps: slice, results: dict[str, Any]) -> dict[str, Any]:
        """Move the newest days into the shards of the others; the records are then those of an ingest in one go."""
        main = arrays.main_steps(self.path)
        shard = self.layout.shards["time"]
        slabs = [slice(s.start + steps.start, s.stop + steps.start) for s in spans(steps.stop - steps.start, shard)]
        reports = {}
        for band in self.bands:
            for slab in slabs:
                late = range(max(slab.start, main) - main, slab.stop - main, DAY)
                parts = [results.get(f"overpass/{slab.start}-{band}")]
                parts += [results[f"overpass_newest/{start}-{band}"] for start in late]
                reports[slab.start, band] = merged([part for part in parts if part])
        arrays.begin_compaction(self.layout, self.path, steps)
        tasks = [
            Task(
                task.key, arrays.compact_block, (self.path, main, task.args[2], task.args[3], report), task.fingerprint
            )
            for task in self._overpass(OVERPASS, 0, slabs)
            for report in [reports[task.args[2].start, task.key.rpartition("-")[2]]]
        ]
        moved = self.run.blocks("ingest", tasks, "compact")
        store.publish(self.path, OVERPASS)
        store.remove(self.path, NEWEST)
        self.run.workspace.ledger("ingest").forget("overpass_newest/")
        return {k: r for k, r in results.items() if not k.startswith("overpass_newest/")} | dict(moved)


def _names(files: OfDate) -> list[str]:
    return [path for paths in files.values() for path in paths]
