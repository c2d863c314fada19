"""Recipes: values only, read from YAML into frozen dataclasses, checked key by key.

An unknown key, a wrong type or an impossible value gives one line: the key, what was found, what is expected.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
import os
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from smscale import schema
from smscale.errors import RecipeError

if TYPE_CHECKING:
    from smscale.places import Place

MODELS = ("gabp", "cnn", "rf", "xgb")
SplitName = Literal["random", "time-block", "space-block", "station-block", "space-time"]


@dataclass(frozen=True)
class GridSpec:
    """The fine grid: cells of `step` degrees, or EASE-Grid 2.0 cells of `resolution` km."""

    kind: Literal["latlon", "ease2"] = "latlon"
    step: float = 0.01
    resolution: int = 9


@dataclass(frozen=True)
class Chunks:
    """Cells of one chunk along time, lat and lon, and chunks of one shard along each: a shard is one block of work."""

    time: int = 8
    lat: int = 100
    lon: int = 100
    shard: tuple[int, int, int] = (1, 3, 3)

    @property
    def sizes(self) -> dict[str, int]:
        return {"time": self.time, "lat": self.lat, "lon": self.lon}

    @property
    def shards(self) -> dict[str, int]:
        return {name: size * n for (name, size), n in zip(self.sizes.items(), self.shard, strict=True)}


@dataclass(frozen=True)
class Smap:
    """errors : of a retrieval, m3 m-3, by flag, for `weighted` (its weight is 1 / error^2, of the largest that applies)."""

    quality: Literal["strict", "paper", "weighted"] = "paper"
    algorithm: Literal["dca", "scav", "scah"] | None = None
    errors: Mapping[str, float] = field(default_factory=lambda: {"recommended": 0.04, "not_recommended": 0.08})


@dataclass(frozen=True)
class Modis:
    quality: Literal["strict", "paper", "none"] = "paper"
    never_later: bool = False


@dataclass(frozen=True)
class Match:
    """How fine predictors and 36 km retrievals meet.

    space : "area", the exact area-weighted mean of a coarse cell; "nearest", the fine cell nearest its centre
    min_valid_fraction : for every predictor but LST, which clouds hide: that has its own
    tolerance_hours : how far apart an LST view and the retrieval that it is matched with may be (06:00 and 01:30, 18:00 and
        13:30 local solar time are 4.5 h)
    """

    space: Literal["area", "nearest"] = "area"
    min_valid_fraction: float = 0.5
    min_lst_valid_fraction: float = 0.5
    tolerance_hours: float = 8.0
    exclude_land_cover: tuple[int, ...] = (schema.URBAN, schema.SNOW_ICE, schema.WATER)


@dataclass(frozen=True)
class Split:
    """What is held out to score the models, and how models are chosen without it.

    validation : rows that score and choose nothing; of them `fraction`
    inner : blocks that the folds inside the training side keep whole (as `validation`, if not given)
    compare : further splits on which every model is fitted and scored, side by side, in `folds` folds
    block_days, block_cells : sides of a block; as far as the target is correlated, as measured on the samples, if not given
    """

    validation: SplitName = "random"
    fraction: float = 0.3
    inner: SplitName | None = None
    inner_folds: int = 3
    compare: tuple[SplitName, ...] = ()
    folds: int = 3
    block_days: int | None = None
    block_cells: int | None = None


@dataclass(frozen=True)
class Fusion:
    """Station residuals spread over the map.

    variogram, pooling : the model, and which steps share one: all of a season and overpass, all, or each step its own
    neighbours : stations that kriging uses at a cell, all if not given
    exact : honour every measurement at its station; else the nugget is its error
    negative_weights : "zero" takes kriging's negative weights away (Deutsch 1996); needs `neighbours`
    taper_km : full correction up to so far from a reporting station, none from twice as far
    systematic : which part of the disagreement is taken off first (docs/fusion.md)
    variance : write the kriging variance of every map by kriging
    ratio_floor, ratio_cap : of the ratio: background, m3 m-3, below which it is one of the floor; least and greatest ratio
    """

    holdout: float = 0.3
    holdout_unit: Literal["station", "record"] = "station"
    residuals: tuple[Literal["difference", "ratio"], ...] = ("difference", "ratio")
    interpolators: tuple[Literal["kriging", "idw"], ...] = ("kriging", "idw")
    variogram: Literal["exponential", "spherical", "gaussian", "matern"] = "exponential"
    pooling: Literal["season-overpass", "all", "step"] = "season-overpass"
    neighbours: int | None = None
    exact: bool = False
    negative_weights: Literal["keep", "zero"] = "keep"
    taper_km: float | None = None
    idw_neighbours: int = 12
    idw_power: float = 2.0
    systematic: Literal["none", "network-mean", "station-mean", "cdf", "spatial-bias"] = "none"
    variance: bool = True
    ratio_floor: float = 0.02
    ratio_cap: tuple[float, float] = (0.2, 5.0)
    tolerance_hours: float = 1.0


@dataclass(frozen=True)
class Resources:
    workers: int | None = None
    memory_per_worker: str = "1.5GiB"


@dataclass(frozen=True)
class Coarsened:
    """A coarse target made from a fine field that is its own truth (a recovery experiment).

    folder : where the files lie, relative to the recipe; `${NAME}` in it is an environment variable
    file, elevation, land_cover : the fine field (SMAP L4), global 5' elevation and global IGBP land cover, in that folder
    with_surface_temperature : train every model a second time, with the fine field's own surface temperature
    """

    file: str
    elevation: str
    land_cover: str
    folder: str = "."
    with_surface_temperature: bool = True


@dataclass(frozen=True)
class Table:
    """A training table of one's own, of any target: the models are trained and compared on it, and no map is made.

    file : parquet or CSV, relative to the recipe; `${NAME}` in it is an environment variable
    target : its column
    columns : what the file calls station, local_date, time, longitude, latitude, row, col or weight, where it does not say it so
    history : column -> days; the sum of each over so many days up to the row's own, by station, becomes the predictor
        <column>_<days>d
    units : of the target and the predictors, by column
    valid : least and greatest value of the target; rows beyond are left out
    every : take the rows of every so-many-th day alone; neighbouring days say nearly the same
    """

    file: str
    target: str
    columns: Mapping[str, str] = field(default_factory=dict)
    history: Mapping[str, Any] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    valid: tuple[float, float] | None = None
    every: int = 1


def with_environment(text: str) -> tuple[str, list[str]]:
    """A path with `${NAME}` and `${NAME:-default}` filled in from the environment, and the names that are not set."""
    filled = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: os.environ.get(m[1]) or m[2], text)
    filled = os.path.expandvars(filled)
    return filled, re.findall(r"\$\{?(\w+)\}?", filled)


#: What a training table may say of its rows beside target and predictors.
TABLE_COLUMNS = ("station", "local_date", "time", "longitude", "latitude", "row", "col", "weight")
#: Predictors that a run has: the paper's twelve first.
PREDICTORS = tuple(
    dict.fromkeys(
        (*schema.PAPER_PREDICTORS, *(n for n in schema.VARIABLES if n not in ("soil_moisture", "lst_view_time")))
    )
)
#: Predictors that a recovery has: its surface temperature comes by `with_surface_temperature`.
RECOVERY_PREDICTORS = ("longitude", "latitude", "elevation", "slope", "aspect", "land_cover")


#: Least value of settings that have one.
LEAST = {
    "seed": 0,
    "split.inner_folds": 2,
    "split.folds": 2,
    "split.block_days": 10,
    "split.block_cells": 3,
    "fusion.neighbours": 1,
    "fusion.idw_neighbours": 1,
    "fusion.tolerance_hours": 0,
    "match.tolerance_hours": 0,
    "resources.workers": 1,
}
#: Most that settings may be: a century, an ocean.
MOST = {"split.block_days": 36_500, "split.block_cells": 1_000}
MOST_HISTORY_DAYS = 3_650


@dataclass(frozen=True)
class Recipe:
    """Everything a run is made from. `path` is where it was read; paths in it are relative to that."""

    name: str
    title: str = ""
    region: tuple[float, float, float, float] | None = None
    outline: str | None = None
    period: tuple[str, str] | None = None
    inputs: str | None = None
    world: str | None = None
    recovery: Coarsened | None = None
    table: Table | None = None
    seed: int = 0
    grid: GridSpec = GridSpec()
    chunks: Chunks = Chunks()
    store: Literal["zarr", "icechunk"] = "zarr"
    products: Mapping[str, str] = field(default_factory=dict)
    stations: Mapping[str, Any] | None = None
    smap: Smap = field(default_factory=Smap)
    modis: Modis = Modis()
    predictors: tuple[str, ...] = schema.PAPER_PREDICTORS
    match: Match = Match()
    split: Split = Split()
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {name: {} for name in MODELS})
    closure: Literal["none", "weighted", "exact"] = "none"
    fusion: Fusion = Fusion()
    bounds: tuple[float, float] = (0.0, 0.6)
    resources: Resources = Resources()
    assumed: tuple[str, ...] = ()
    path: str = ""

    def resolve(self, relative: str) -> Path:
        """A path of the recipe, relative to the recipe's folder."""
        return (Path(self.path).parent / relative).expanduser()

    @property
    def target(self) -> str:
        """What the models learn: a column of the samples."""
        return self.table.target if self.table else "soil_moisture"

    def part(self, *names: str) -> dict[str, Any]:
        """Plain values of some keys: what a stage's fingerprint is made from."""
        values = dataclasses.asdict(self)
        return {name: values[name] for name in names}


def read(path: str | Path, settings: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe; `settings` are `key.subkey=value` pairs that replace values of the file.

    Raises
    ------
    RecipeError
        in one line, for a missing or unreadable file and for every wrong key or value.
    """
    path = Path(path)
    values = read_yaml(path)
    for setting in settings:
        _set(values, setting)
    recipe = build(Recipe, {**values, "path": str(path.resolve())}, where=path.name)
    _check(recipe, path.name)
    return dataclasses.replace(recipe, region=_folded(recipe.region))


def _folded(region: tuple[float, float, float, float] | None) -> tuple[float, float, float, float] | None:
    """A region in longitudes of -180..180, as every file and station is read."""
    if region is None or region[0] < 180:
        return region
    west, south, east, north = region
    return west - 360, south, east - 360, north


class _NoRepeats(yaml.SafeLoader):
    """YAML without keys given twice: the second would silently hide the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise ValueError(f"key {key.value} is given twice, again in line {key.start_mark.line + 1}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Place) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        values = yaml.load(path.read_text(), _NoRepeats)  # a SafeLoader
    except FileNotFoundError:
        raise RecipeError(f"recipe not found: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # YAML reads 2017-13-01 as a date, and fails
        what = " ".join(str(error).replace('in "<unicode string>", ', "").split())
        raise RecipeError(f"{path}: not valid YAML: {what}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: expected keys and values, found {type(values).__name__}")
    return values


def build(cls: type, values: Mapping[str, Any], where: str, prefix: str = "") -> Any:
    """A dataclass from a mapping; its type hints are the check."""
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, 1)
            hint = (
                f"did you mean {prefix}{near[0]}?"
                if near
                else f"expected one of {', '.join(n for n in names if n != 'path')}"
            )
            raise RecipeError(f"{where}: unknown key {prefix}{key}; {hint}")
    for f in dataclasses.fields(cls):
        if f.name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise RecipeError(f"{where}: key {prefix}{f.name} is missing; expected {_spell(hints[f.name])}")
    return cls(**{k: _convert(hints[k], v, where, f"{prefix}{k}") for k, v in values.items()})


def _convert(hint: Any, value: Any, where: str, key: str) -> Any:
    """`value` as the type that the hint asks for, or one clear line."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    wrong = RecipeError(f"{where}: key {key}: found {value!r}, expected {_spell(hint)}")
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where, key)
    if origin is Literal:
        if value not in args:
            raise wrong
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise wrong
        inner = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else list(args)
        if len(inner) != len(value):
            raise wrong
        return tuple(_convert(h, v, where, f"{key}[{i}]") for i, (h, v) in enumerate(zip(inner, value, strict=True)))
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise wrong
        return build(typing.cast(type, hint), value, where, f"{key}.")
    if origin is not None:
        if not isinstance(value, Mapping):
            raise wrong
        if args[1] in (str, float, Any):
            return {str(k): _convert(args[1], v, where, f"{key}.{k}") for k, v in value.items()}
        # Model settings: the values are checked by the model.
        for name, settings in value.items():
            if not isinstance(settings or {}, Mapping):
                raise RecipeError(f"{where}: key {key}.{name}: found {settings!r}, expected keys and values")
        return {str(k): dict(v or {}) for k, v in value.items()}
    return _scalar(hint, value, wrong)


def _scalar(hint: Any, value: Any, wrong: RecipeError) -> Any:
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, date):
        return value.isoformat()
    if hint is Any or (isinstance(value, hint) and not (hint is int and isinstance(value, bool))):
        return value
    raise wrong


def _spell(hint: Any) -> str:
    """A type hint in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("nothing" if a is type(None) else _spell(a) for a in args)
    if origin is Literal:
        return "one of " + ", ".join(repr(a) for a in args)
    if origin is tuple:
        return (
            f"a list of {_spell(args[0])}s"
            if args[-1] is Ellipsis
            else f"a list of {len(args)}: " + ", ".join(map(_spell, args))
        )
    if origin is not None or dataclasses.is_dataclass(hint):
        return "keys and values"
    return {str: "text", int: "a whole number", float: "a number", bool: "true or false"}.get(hint, str(hint))


def _set(values: dict[str, Any], setting: str) -> None:
    """Apply one `key.subkey=value`, the value read as YAML."""
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {setting}: expected key=value, as fusion.holdout=0.2")
    *parents, last = key.strip().split(".")
    for parent in parents:
        child = values.setdefault(parent, {})
        if not isinstance(child, dict):
            child = values[parent] = {}
        values = child
    try:
        values[last] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # YAML reads 2017-13-01 as a date, and fails
        raise RecipeError(f"--set {setting}: {text!r} is not a YAML value") from None


def _check(recipe: Recipe, where: str) -> None:
    """What types cannot say."""

    def refuse(key: str, found: Any, expected: str) -> typing.NoReturn:
        raise RecipeError(f"{where}: key {key}: found {found!r}, expected {expected}")

    for key, least in LEAST.items():
        value = operator.attrgetter(key)(recipe)
        if value is not None and not value >= least:  # nor NaN
            refuse(key, value, f"at least {least}")
    for key, most in MOST.items():
        value = operator.attrgetter(key)(recipe)
        if value is not None and value > most:
            refuse(key, value, f"at most {most}")
    if recipe.split.validation not in ("random",) and recipe.split.fraction > 0.5:
        refuse("split.fraction", recipe.split.fraction, "at most 0.5 where blocks are held out")
    if recipe.seed >= 2**32:
        refuse("seed", recipe.seed, "less than 2**32")
    if not 0 <= recipe.bounds[0] < recipe.bounds[1] <= 1:
        refuse("bounds", list(recipe.bounds), "[least, most] soil moisture in m3 m-3, between 0 and 1")
    for cover in recipe.match.exclude_land_cover:
        if not 1 <= cover <= len(schema.IGBP):
            refuse("match.exclude_land_cover", cover, f"IGBP classes 1 to {len(schema.IGBP)}")
    if not re.fullmatch(r"[1-9]\d*(\.\d+)? ?[kMG]i?B", recipe.resources.memory_per_worker):
        refuse("resources.memory_per_worker", recipe.resources.memory_per_worker, "a size, as 1.5GiB")
    given = [key for key in ("inputs", "world", "recovery", "table") if getattr(recipe, key)]
    if len(given) != 1:
        raise RecipeError(
            f"{where}: expected exactly one of inputs (a folder of raw files), world (a nature run), recovery, table; found {' and '.join(given) or 'none'}"
        )
    if recipe.name in ("", ".", "..") or any(c in recipe.name for c in "/\\ "):
        refuse("name", recipe.name, "a name without spaces or slashes")
    if recipe.inputs:
        if recipe.region is None and recipe.outline is None:
            raise RecipeError(f"{where}: key region is missing; expected [west, south, east, north] in degrees")
        if recipe.period is None:
            raise RecipeError(
                f"{where}: key period is missing; expected [first day, last day], as [2017-06-10, 2017-11-30]"
            )
    if recipe.region is not None:
        w, s, e, n = recipe.region
        if not (-180 <= w < e <= 360 and -90 <= s < n <= 90):
            refuse(
                "region",
                list(recipe.region),
                "[west, south, east, north] in degrees with west < east and south < north",
            )
        if w < 180 < e:
            refuse("region", list(recipe.region), "a region on one side of 180 E: run its two sides one by one")
    if recipe.period is not None:
        try:
            first, last = (date.fromisoformat(d) for d in recipe.period)
        except ValueError:
            refuse("period", list(recipe.period), "two ISO dates, as [2017-06-10, 2017-11-30]")
        if last < first:
            refuse("period", list(recipe.period), "a first day that is not after the last")
    named = {recipe.split.validation, recipe.split.inner, *recipe.split.compare}
    if "station-block" in named and not recipe.table:
        refuse("split", "station-block", "blocks of time or space: SMAP's samples have no station, only a table has")
    if recipe.table:
        for key in ("period", "region"):
            if getattr(recipe, key):
                refuse(key, getattr(recipe, key), "no such key beside table: all rows of the table are taken")
        _check_table(recipe.table, recipe.predictors, refuse)
    for name in () if recipe.table else recipe.predictors:
        if name not in PREDICTORS:
            near = difflib.get_close_matches(name, PREDICTORS, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            refuse("predictors", name, f"predictors among {', '.join(PREDICTORS)}{hint}")
        if recipe.recovery and name not in RECOVERY_PREDICTORS:
            refuse("predictors", name, f"in a recovery, predictors among {', '.join(RECOVERY_PREDICTORS)}")
    _check_fusion(recipe, refuse)
    if not recipe.predictors or len(set(recipe.predictors)) != len(recipe.predictors):
        refuse("predictors", list(recipe.predictors), "at least one predictor, each once")
    for name in recipe.models:
        if name not in MODELS:
            refuse("models", name, f"models among {', '.join(MODELS)}")
    if not recipe.models:
        refuse("models", {}, f"at least one of {', '.join(MODELS)}")
    for key, value in {
        "match.min_valid_fraction": recipe.match.min_valid_fraction,
        "match.min_lst_valid_fraction": recipe.match.min_lst_valid_fraction,
        "split.fraction": recipe.split.fraction,
        "fusion.holdout": recipe.fusion.holdout,
    }.items():
        if not 0 < value < 1:
            refuse(key, value, "a fraction between 0 and 1")
    if min(recipe.chunks.time, recipe.chunks.lat, recipe.chunks.lon, *recipe.chunks.shard) < 1:
        refuse("chunks", dataclasses.asdict(recipe.chunks), "whole numbers of at least 1")


def _check_fusion(recipe: Recipe, refuse: Callable[[str, Any, str], typing.NoReturn]) -> None:
    fusion = recipe.fusion
    for key, chosen in (("fusion.residuals", fusion.residuals), ("fusion.interpolators", fusion.interpolators)):
        if not chosen or len(set(chosen)) != len(chosen):
            refuse(key, list(chosen), "at least one, each once")
    for key in ("idw_power", "taper_km", "ratio_floor"):
        value = getattr(fusion, key)
        if value is not None and not 0 < value < math.inf:
            refuse(f"fusion.{key}", value, "a number above 0")
    if not 0 <= fusion.ratio_cap[0] < 1 < fusion.ratio_cap[1] < math.inf:
        refuse("fusion.ratio_cap", list(fusion.ratio_cap), "[least, greatest] ratio, below and above 1")
    if fusion.negative_weights == "zero" and fusion.neighbours is None:
        refuse(
            "fusion.negative_weights",
            "zero",
            "fusion.neighbours with it: only kriging from some neighbours can do that",
        )
    if recipe.closure != "none" and (recipe.recovery or recipe.table):
        refuse(
            "closure",
            recipe.closure,
            "none beside recovery (which closes every map itself) or table (which makes no map)",
        )


def _check_table(table: Table, predictors: Sequence[str], refuse: Callable[[str, Any, str], typing.NoReturn]) -> None:
    for name in table.columns:
        if name not in TABLE_COLUMNS:
            refuse("table.columns", name, f"names among {', '.join(TABLE_COLUMNS)}")
    for name, days in table.history.items():
        if (
            not isinstance(days, list | tuple)
            or not days
            or not all(type(d) is int and 1 <= d <= MOST_HISTORY_DAYS for d in days)
        ):
            refuse(
                f"table.history.{name}", days, f"a list of numbers of days up to {MOST_HISTORY_DAYS}, as [3, 10, 30]"
            )
    if table.valid is not None and not table.valid[0] < table.valid[1]:
        refuse("table.valid", list(table.valid), "[least, greatest] of the target")
    if table.every < 1:
        refuse("table.every", table.every, "a whole number of days, at least 1")
    if table.target in predictors:
        refuse("predictors", table.target, "predictors beside the target itself")
