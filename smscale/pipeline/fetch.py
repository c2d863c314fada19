"""fetch: what a recipe needs and its folder lacks, from the archives into the folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any, Literal

from smscale.config import Recipe
from smscale.errors import InputError, RecipeError
from smscale.fetch import Archive, Cmr, Copernicus, Login, Remote, Result, Wanted, download_all
from smscale.fetch.download import MANIFEST
from smscale.fetch.login import HOW
from smscale.fetch.patience import Patience
from smscale.pipeline.ingest.inputs import REQUIRED, column_map
from smscale.pipeline.layout import layout_of
from smscale.places import is_remote
from smscale.sources import outline
from smscale.sources.catalogue import Catalogue, Granule, Missing, read_name, scan
from smscale.sources.products import SERIES, SERIES_OF, TABLES

Say = Callable[[str], Any]
Dem = Literal["copernicus", "aster"]
#: Date and tile ("h26v05", or nothing).
Key = tuple[str, str]
Found = dict[Key, tuple[Granule, Remote]]

#: Years that an older land-cover map may stand in for one that is not published yet.
OLDER_LAND_COVER = 3
#: Lines of one list that are shown.
SHOWN = 20


@dataclass(frozen=True)
class Outcome:
    """What a fetch did: names of files that came, that were there, that the archives do not have; "NAME: why" of those that failed."""

    fetched: tuple[str, ...] = ()
    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """2 if something failed, or a family is not there at all, so that a run would refuse; single gaps are no failure."""
        return 2 if self.failed or self.lacking else 0


@dataclass
class _Plan:
    """Files to get, by where they go; what no archive has; what the user should know."""

    files: dict[Path, Remote] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def fetch(
    recipe: Recipe,
    into: Path | None = None,
    dry_run: bool = False,
    jobs: int = 4,
    dem: Dem = "copernicus",
    progress: bool = True,
    say: Say = lambda text: None,
    patience: Patience | None = None,
) -> Outcome:
    """Download what a recipe needs and its folder of raw files lacks.

    Parameters
    ----------
    into : where files are looked for and go; the recipe's inputs if not given
    dry_run : only say what is missing; no archive is asked
    jobs : downloads at a time
    dem : where elevation comes from: "copernicus" (GLO-30, no login) or "aster" (GDEM V3, NASA)

    Raises
    ------
    SmscaleError
        in one line: a recipe without a region or with a world, no login, an archive out of reach, too small a disk.
    """
    folder = into or _inputs_of(recipe)
    layout = layout_of(_with_region(recipe))
    catalogue = scan(folder, column_map(recipe)) if folder.is_dir() else Catalogue(folder, (), (), (), (), (), ())
    needs = catalogue.needs(*layout.period, layout.grid.bounds, products=recipe.products)
    lacks = catalogue.missing(needs)
    say(_table(recipe.name, folder, lacks, dem))
    if dry_run:
        return Outcome(missing=tuple(f"{lack.family} {name}" for lack in lacks for name in lack.absent))
    plan = _plan(catalogue, lacks, dem, patience or Patience())
    for note in plan.notes:
        say(f"note       {note}\n")
    login = Login.from_environment()
    _check(plan, folder, login)
    folder.mkdir(parents=True, exist_ok=True)
    suspect = frozenset(Path(str(path)) for path, _ in catalogue.problems)
    wanted = [(remote, path) for path, remote in plan.files.items()]
    results = download_all(wanted, folder / MANIFEST, jobs, login, patience, suspect, progress)
    held = scan(folder, column_map(recipe))
    bounds = layout.grid.bounds
    lacking = [f for f in REQUIRED if not (held.dem_covering(bounds) if f == "DEM" else held.select(f))]
    outcome = replace(_outcome(results, plan.absent), lacking=tuple(lacking))
    say(_summary(outcome, results))
    return outcome


def _inputs_of(recipe: Recipe) -> Path:
    if not recipe.inputs:
        raise RecipeError(
            f"recipe {recipe.name}: has no inputs: folder to fetch into; set inputs, or give --into FOLDER"
        )
    if is_remote(recipe.inputs):
        raise RecipeError(
            f"recipe {recipe.name}: inputs {recipe.inputs}: files go to a folder first: give --into FOLDER"
        )
    return recipe.resolve(recipe.inputs)


def _with_region(recipe: Recipe) -> Recipe:
    """A recipe that names no region takes that of its outline."""
    if recipe.region is None and recipe.outline:
        return replace(recipe, region=outline.bounds(outline.read_outline(recipe.resolve(recipe.outline))))
    return recipe


# -- what to get ------------------------------------------------------------------------------------


def _plan(catalogue: Catalogue, lacks: Sequence[Missing], dem: Dem, patience: Patience) -> _Plan:
    plan, cmr = _Plan(), Cmr(patience=patience)
    for lack in lacks:
        if lack.family == "DEM":
            _plan_dem(plan, Path(str(catalogue.folder)), lack, dem, cmr)
        elif lack.keys:
            _plan_granules(plan, catalogue, lack, cmr)
    return plan


def _plan_granules(plan: _Plan, catalogue: Catalogue, lack: Missing, cmr: Archive) -> None:
    """The newest production of each granule that is missing."""
    broken = {path.name: path for path, _ in catalogue.problems}
    for product in SERIES[lack.product].members:
        keys = [(day, tile) for day, tile, member in lack.keys if member == product]
        found = _search(cmr, product, keys)
        left = [key for key in keys if key not in found]
        if lack.family == "LC":
            left = _older_land_cover(plan, catalogue, cmr, product, left, found)
        for _, remote in found.values():
            where = broken.get(remote.name, catalogue.folder / product / remote.name)
            plan.files[Path(str(where))] = remote
        plan.absent += [" ".join(filter(None, (product, *key))) for key in left]
        _note_mixture(plan, catalogue, product, [granule for granule, _ in found.values()])


def _search(cmr: Archive, product: str, keys: Iterable[Key]) -> Found:
    """The newest production of each (date, tile) that the archive has."""
    keys = set(keys)
    if not keys:
        return {}
    days, tiles = [day for day, _ in keys], sorted({tile for _, tile in keys if tile})
    names = tuple(f"{product}.A*.{tile}.*" for tile in tiles)
    version = SERIES[SERIES_OF[product]].version
    found: Found = {}
    for remote in cmr.search(Wanted(product, version, min(days), max(days), names)):
        granule = read_name(Path(remote.name))
        if granule is None or granule.product != product:
            continue
        key = (granule.date, granule.tile_name)
        if key in keys and (key not in found or _age(found[key][0]) < _age(granule)):
            found[key] = (granule, remote)
    return found


def _age(granule: Granule) -> tuple[str, str]:
    return granule.collection, granule.production


def _older_land_cover(
    plan: _Plan,
    catalogue: Catalogue,
    cmr: Archive,
    product: str,
    left: Sequence[Key],
    found: Found,
) -> list[Key]:
    """What is still missing when the newest earlier map of a tile stands in for years that are not published."""
    still = []
    for day, tile in left:
        years = [int(day[:4]) - n for n in range(1, OLDER_LAND_COVER + 1)]
        held = [g for g in catalogue.select("LC") if g.tile_name == tile and int(g.date[:4]) in years]
        older = _search(cmr, product, [(date(year, 1, 1).isoformat(), tile) for year in years])
        if not older and not held:
            still.append((day, tile))
            continue
        newest = max([*older, *((g.date, tile) for g in held)])
        if newest in older:
            found.setdefault(newest, older[newest])
        plan.notes.append(f"{product} {day[:4]} {tile} is not in the archive: {newest[0][:4]} stands in")
    return still


def _note_mixture(plan: _Plan, catalogue: Catalogue, product: str, found: Sequence[Granule]) -> None:
    held = {g.collection[:3] for g in catalogue.select(product)}
    new = {g.collection[:3] for g in found}
    if held and new - held:
        plan.notes.append(
            f"{product}: the folder holds collection {', '.join(sorted(held))}, the archive gives {', '.join(sorted(new - held))}: "
            "they should not be mixed in one run; move the older files away and fetch again"
        )


def _plan_dem(plan: _Plan, folder: Path, lack: Missing, dem: Dem, cmr: Archive) -> None:
    source = TABLES["dem"][dem]
    if dem == "copernicus":
        remotes = Copernicus.at(source["url"]).search(Wanted("", "", names=lack.absent))
    else:
        names = tuple(f"ASTGTMV003_{tile}*" for tile in lack.absent)
        wanted = Wanted(source["short_name"], source["version"], names=names, suffixes=("_dem.tif",))
        remotes = cmr.search(wanted)
        held = {remote.name[11:18] for remote in remotes}
        plan.absent += [f"DEM {tile}" for tile in lack.absent if tile not in held]
    for remote in remotes:
        plan.files[folder / "DEM" / remote.name] = remote


def _check(plan: _Plan, folder: Path, login: Login) -> None:
    """Refuse what cannot end well before anything is downloaded."""
    if not login.known and any(remote.login for remote in plan.files.values()):
        raise InputError(f"fetch: NASA's archives ask for an Earthdata login (a free account): {HOW}")
    needed = sum(remote.size or 0 for remote in plan.files.values())
    where = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(where).free
    if needed > free:
        raise InputError(
            f"{folder}: {needed / 1e9:.1f} GB are to come, {free / 1e9:.1f} GB are free: give another disk with --into FOLDER"
        )


# -- words --------------------------------------------------------------------------------------------


def _table(name: str, folder: Path, lacks: Sequence[Missing], dem: Dem) -> str:
    """What is missing, family by family, with a rough size."""
    if not lacks:
        return f"fetch      {name}: nothing is missing in {folder}\n"
    lines = [f"fetch      {name} into {folder}"]
    for lack in lacks:
        if lack.family == "STATIONS":
            lines.append(f"  {'stations':<9} none there, and not to be fetched: {lack.how}")
            continue
        product = TABLES["dem"][dem]["title"] if lack.family == "DEM" else lack.product
        size = len(lack.absent) * _megabytes(lack, dem) / 1000
        lines.append(
            f"  {lack.family:<9} {product:<22} {len(lack.absent):>6} of {lack.wanted} missing, about {size:.1f} GB: {_some(lack.absent)}"
        )
    return "\n".join(lines) + "\n"


def _megabytes(lack: Missing, dem: Dem) -> float:
    return TABLES["dem"][dem]["megabytes"] if lack.family == "DEM" else SERIES[lack.product].megabytes


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + (f", … {names[-1]}" if len(names) > 2 else "")


def _outcome(results: Sequence[Result], absent: Sequence[str]) -> Outcome:
    named: Mapping[str, list[str]] = {"fetched": [], "present": [], "absent": list(absent), "failed": []}
    for result in results:
        named[result.status].append(result.remote.name + (f": {result.reason}" if result.status == "failed" else ""))
    return Outcome(**{status: tuple(names) for status, names in named.items()})


def _summary(outcome: Outcome, results: Sequence[Result]) -> str:
    size = sum(result.bytes for result in results)
    lines = [f"fetched    {len(outcome.fetched)} files, {size / 1e6:.0f} MB"]
    if outcome.present:
        lines.append(f"there      {len(outcome.present)} files had come before")
    if outcome.absent:
        sea = (
            " (Copernicus has no tile where there is only sea)" if any("_DEM.tif" in n for n in outcome.absent) else ""
        )
        lines += [f"absent     {len(outcome.absent)} are not in the archive{sea}:", *_listed(outcome.absent)]
    if outcome.failed:
        lines += [f"failed     {len(outcome.failed)}; the same command tries them again:", *_listed(outcome.failed)]
    if outcome.lacking:
        lines.append(f"nothing    of {', '.join(outcome.lacking)} is there: a run would refuse")
    return "\n".join(lines) + "\n"


def _listed(names: Sequence[str]) -> list[str]:
    rest = [f"  … and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return [f"  {name}" for name in names[:SHOWN]] + rest
