"""36 km SMAP soil moisture to 1 km maps over complex terrain, merged with stations."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "open": ("smscale.workspace", "open_workspace"),
    "Grid": ("smscale.grid", "Grid"),
    "open_smap": ("smscale.sources.smap", "open_smap"),
    "open_modis": ("smscale.sources.modis", "open_modis"),
    "open_dem": ("smscale.sources.dem", "open_dem"),
    "open_stations": ("smscale.sources.stations", "open_stations"),
    "terrain": ("smscale.features.terrain", "terrain"),
    "upscale": ("smscale.features.upscale", "upscale"),
    "GABPRegressor": ("smscale.models.gabp", "GABPRegressor"),
    "CNNRegressor": ("smscale.models.cnn", "CNNRegressor"),
    "Variogram": ("smscale.fusion.variogram", "Variogram"),
    "Kriging": ("smscale.fusion.interpolators", "Kriging"),
    "InverseDistance": ("smscale.fusion.interpolators", "InverseDistance"),
    "fuse": ("smscale.fusion.fuse", "fuse"),
    "scores": ("smscale.evaluate.scores", "scores"),
}

__all__ = [*_WHERE, "__version__"]

if TYPE_CHECKING:
    from smscale.evaluate.scores import scores as scores
    from smscale.features.terrain import terrain as terrain
    from smscale.features.upscale import upscale as upscale
    from smscale.fusion.fuse import fuse as fuse
    from smscale.fusion.interpolators import InverseDistance as InverseDistance
    from smscale.fusion.interpolators import Kriging as Kriging
    from smscale.fusion.variogram import Variogram as Variogram
    from smscale.grid import Grid as Grid
    from smscale.models.cnn import CNNRegressor as CNNRegressor
    from smscale.models.gabp import GABPRegressor as GABPRegressor
    from smscale.sources.dem import open_dem as open_dem
    from smscale.sources.modis import open_modis as open_modis
    from smscale.sources.smap import open_smap as open_smap
    from smscale.sources.stations import open_stations as open_stations
    from smscale.workspace import open_workspace as open  # noqa: F401


def __getattr__(name: str) -> Any:
    """Public names load what they need when they are first used."""
    if name not in _WHERE:
        raise AttributeError(f"module 'smscale' has no attribute {name!r}")
    module, attribute = _WHERE[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
