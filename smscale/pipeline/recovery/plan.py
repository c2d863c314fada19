"""What a recovery is made from: its files, and the models that it trains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from smscale.config import Recipe, with_environment
from smscale.errors import InputError, RecipeError

TARGET = "soil_moisture"
#: What a model is called that was also given the fine field's own surface temperature.
WITH_TEMPERATURE = "_with_temperature"
CLOSURE = "_closure"
WHAT_FILES = {
    "file": "a SMAP L4 granule (SPL4SMAU or SPL4SMGP, from NSIDC DAAC)",
    "elevation": "the global 5' elevation Altitude.h5 (from the pvlib package)",
    "land_cover": "global IGBP land cover as GeoTIFF (MCD12C1, from LP DAAC)",
}


class Files(NamedTuple):
    """Paths of the fine field and of the predictors."""

    file: Path
    elevation: Path
    land_cover: Path


class Variant(NamedTuple):
    """One model on one set of predictors."""

    model: str
    settings: Mapping[str, Any]
    predictors: tuple[str, ...]


def files_of(recipe: Recipe) -> Files:
    """The files of a recovery recipe; one line says which are missing and where they come from."""
    spec = recipe.recovery
    if spec is None:
        raise RecipeError(f"{recipe.path}: key recovery is missing")
    wanted = {key: getattr(spec, key) for key in Files._fields}
    needs = "; ".join(f"{name}, {WHAT_FILES[key]}" for key, name in wanted.items())
    folder, unset = with_environment(spec.folder)
    if unset:
        raise RecipeError(
            f"recovery.folder is {spec.folder} but {unset[0]} is not set: set it in the environment, or --set recovery.folder=PATH, "
            f"to the folder that holds {needs}"
        )
    paths = {key: recipe.resolve(folder) / name for key, name in wanted.items()}
    missing = [f"{wanted[key]}, {WHAT_FILES[key]}" for key, path in paths.items() if not path.is_file()]
    if missing:
        raise InputError(f"{recipe.resolve(folder)} lacks {'; '.join(missing)}: put it there, or set recovery.folder")
    return Files(**paths)


def variants_of(recipe: Recipe) -> dict[str, Variant]:
    """Every model without, and where the recipe asks for it with the field's own surface temperature."""
    assert recipe.recovery is not None
    found = {name: Variant(name, dict(s), recipe.predictors) for name, s in recipe.models.items()}
    if recipe.recovery.with_surface_temperature:
        warm = (*recipe.predictors, "lst")
        found |= {f"{name}{WITH_TEMPERATURE}": Variant(name, dict(s), warm) for name, s in recipe.models.items()}
    return found
