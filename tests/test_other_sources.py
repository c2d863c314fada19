"""The same pixels as VIIRS tiles, or as layers that AppEEARS cut out, give the same cube as MODIS tiles."""

import os
import shutil
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr
from pyhdf.SD import SD, SDC
from rasterio.transform import Affine
from test_sources_viirs import write_lst

from smscale import config, sinusoidal
from smscale.pipeline.ingest import ingest
from smscale.pipeline.layout import layout_of
from smscale.pipeline.run import Run
from smscale.workspace import Workspace

PERIOD = ("2017-07-11", "2017-07-13")
#: Rows and columns of h26v05 around the tiny world.
CROP = slice(880, 1080), slice(500, 1000)
SETS = ("LST_Day_1km", "QC_Day", "Day_view_time", "LST_Night_1km", "QC_Night", "Night_view_time")


@pytest.fixture(scope="module")
def recipe(tiny_recipe):
    made = replace(config.read(tiny_recipe), world=None, inputs="raw", region=(102.8, 31.66, 103.7, 32.34))
    return replace(made, period=PERIOD)


def raw_folder(tiny_run, folder):
    """The tiny world's raw files, by hard links, without its LST; and that LST, date -> stored arrays."""
    left_out = shutil.ignore_patterns("*.zarr", "ledger", "MYD11A1")
    shutil.copytree(tiny_run / "world", folder, copy_function=os.link, ignore=left_out)
    found = {}
    for path in sorted((tiny_run / "world" / "modis" / "MYD11A1").rglob("*.hdf")):
        file = SD(str(path), SDC.READ)
        found[path.name.split(".")[1][1:]] = {name: file.select(name).get() for name in SETS}
        file.end()
    return found


def lst_of(recipe, root, raw):
    run = Run(recipe, Workspace(Path(root)), ("ingest",), progress=False)
    report = ingest(run, layout_of(recipe), raw)
    return run.workspace.fine["overpass"].load(), report


@pytest.fixture(scope="module")
def from_modis(recipe, tiny_run, tmp_path_factory):
    root = tmp_path_factory.mktemp("modis")
    lst, report = lst_of(recipe, root, tiny_run / "world")
    assert np.isfinite(lst["lst"]).mean() > 0.2
    return lst, report


def test_layers_that_appeears_cut_out_give_the_cube_of_the_whole_tiles(recipe, tiny_run, tmp_path, from_modis):
    left, top, *_ = sinusoidal.tile_corners(26, 5)
    step = sinusoidal.TILE_SIZE / 1200
    corner = Affine(step, 0, left + CROP[1].start * step, 0, -step, top - CROP[0].start * step)
    for day, sets in raw_folder(tiny_run, tmp_path / "raw").items():
        for name, values in sets.items():
            part = values[CROP]
            path = tmp_path / "raw" / f"MYD11A1.061_{name}_doy{day}000000_aid0001.tif"
            profile = {
                "driver": "GTiff",
                "dtype": part.dtype,
                "count": 1,
                "height": part.shape[0],
                "width": part.shape[1],
            }
            where = {"crs": sinusoidal.CRS, "transform": corner}
            with rasterio.open(path, "w", **profile, **where) as file:
                file.write(part, 1)
    found, report = lst_of(recipe, tmp_path / "w", tmp_path / "raw")
    xr.testing.assert_identical(found, from_modis[0])
    for name in ("coverage", "quality", "granules", "products"):
        assert report[name] == from_modis[1][name], name


def test_viirs_tiles_of_day_and_night_give_the_cube_of_modis(recipe, tiny_run, tmp_path, from_modis):
    for day, sets in raw_folder(tiny_run, tmp_path / "raw").items():
        for view, product in (("Day", "VNP21A1D"), ("Night", "VNP21A1N")):
            quality = sets[f"QC_{view}"].astype(np.uint16)
            words = (quality & 3) | np.array([3, 2, 0, 0], np.uint16)[
                quality >> 6
            ] << 14  # error at most 1 K, 2 K, more
            path = tmp_path / "raw" / f"{product}.A{day}.h26v05.002.2023170000000.h5"
            write_lst(path, sets[f"LST_{view}_1km"], words.astype(np.uint16), sets[f"{view}_view_time"])
    found, report = lst_of(recipe, tmp_path / "w", tmp_path / "raw")
    xr.testing.assert_identical(found, from_modis[0])
    assert report["products"]["LST"] == ["VNP21A1D", "VNP21A1N"]
    assert report["coverage"]["overpass"] == from_modis[1]["coverage"]["overpass"]
    for view in ("day", "night"):
        accepted = [
            r["quality"][f"{p} {view}"]["accepted"]
            for r, p in ((report, f"VNP21A1{view[0].upper()}"), (from_modis[1], "MYD11A1"))
        ]
        assert accepted[0] == accepted[1]


def test_a_day_without_its_night_file_is_named(recipe, tiny_run, tmp_path):
    for day, sets in raw_folder(tiny_run, tmp_path / "raw").items():
        words = np.zeros((1200, 1200), np.uint16)
        path = tmp_path / "raw" / f"VNP21A1D.A{day}.h26v05.002.2023170000000.h5"
        write_lst(path, sets["LST_Day_1km"], words, sets["Day_view_time"])
    _, report = lst_of(recipe, tmp_path / "w", tmp_path / "raw")
    first = datetime.strptime("2017191", "%Y%j").date().isoformat()
    named = [p["what"] for p in report["problems"] if p["file"] == "LST"]
    assert len(named) == 1
    assert "VNP21A1N" in named[0]
    assert first in named[0]
