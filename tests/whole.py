"""What any reader may see of a run that was killed: whole things of the undisturbed run, or nothing."""

import re
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import smscale
from smscale.errors import SmscaleError
from smscale.models import load_model

GROUPS = ("fine/overpass", "fine/eight_day", "fine/sixteen_day", "fine/static", "fine/land_cover", "coarse", "stations")


@cache
def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder that nobody writes to."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_only_whole_things_show(root: Path, undisturbed: Path) -> None:
    """What any reader can see of a killed run is what the undisturbed run has."""
    for path in (*(f"cube.zarr/{group}" for group in GROUPS), "maps.zarr"):
        if contents.__wrapped__(root / path) == contents(undisturbed / path):
            continue  # the same bytes read the same
        try:
            seen = xr.open_zarr(root / path, consolidated=False, chunks=None)
        except (FileNotFoundError, KeyError):
            continue
        whole = xr.open_zarr(undisturbed / path, consolidated=False, chunks=None)
        for name, data in seen.data_vars.items():
            np.testing.assert_array_equal(data.values, whole[name].values, err_msg=f"{path}/{name}")
    if not (root / "ledger" / "recipe.json").is_file():
        return
    opened = smscale.open(root)
    for name in ("coarse", "stations", "maps", "land_cover"):
        with suppress(SmscaleError):
            assert getattr(opened, name).sizes
    for name in ("samples.parquet", "samples.csv", "report/metrics.json", "report/index.html"):
        if (root / name).exists():
            assert (root / name).read_bytes() == (undisturbed / name).read_bytes(), name
    for model in (root / "models").glob("[a-z]*"):
        assert load_model(model).features
    if (root / "report" / "index.html").exists():
        for figure in re.findall(r'src="(figures/[^"]+)"', (root / "report" / "index.html").read_text()):
            assert (root / "report" / figure).read_bytes() == (undisturbed / "report" / figure).read_bytes()


def assert_product_files_are_whole(root: Path, undisturbed: Path) -> None:
    """What a killed simulation shows beside the truth is what the undisturbed one wrote."""
    for path in (root / "world").rglob("*"):
        name = path.relative_to(root)
        if path.is_file() and not any(p.startswith(".") or p in ("ledger", "truth.zarr") for p in name.parts):
            assert path.read_bytes() == (undisturbed / name).read_bytes(), name
    with pytest.raises((FileNotFoundError, KeyError)):
        xr.open_zarr(root / "world" / "truth.zarr", group="fine", consolidated=False)
