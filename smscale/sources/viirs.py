"""VIIRS land tiles, the successors of MODIS': VNP21A1D, VNP21A1N (LST), VNP13A2 (vegetation), and NOAA-20's and -21's.

They lie on MODIS' sinusoidal tiles, as HDF-EOS5, so `smscale.sources.modis` reads them with their own tables
(viirs_tables.json). What differs: day and night are files of their own, quality words of LST have 16 bits, errors are
counted the other way round (3 is best), and the vegetation indices' ranks of reliability are finer, with fills of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import xarray as xr
from xarray.backends import BackendEntrypoint

from smscale.errors import InputError
from smscale.sources.codes import Policy
from smscale.sources.modis import names_kind, open_lazily, open_modis


def open_viirs(path: str | Path, qc: Policy = "strict") -> xr.Dataset:
    """One VIIRS land tile, as `open_modis` gives it.

    Parameters
    ----------
    path : VNP21A1D, VNP21A1N, VNP13A2 file, or of VJ1 (NOAA-20) or VJ2 (NOAA-21), version 1 or 2
    qc : which quality bits are accepted; see `smscale.sources.codes`

    Raises
    ------
    InputError
        as `open_modis`, or if the file is a MODIS one.
    """
    ds = open_modis(path, qc)
    if not ds.attrs["sensor"].startswith("VIIRS"):
        raise InputError(
            f"{path}: is {ds.attrs['product']} of {ds.attrs['sensor']}, expected VIIRS; open_modis reads it"
        )
    return ds


class ViirsBackend(BackendEntrypoint):
    """xarray engine "viirs": `xarray.open_dataset(path, engine="viirs")` is `open_viirs(path)`."""

    description = "VIIRS land tiles (VNP21A1D, VNP21A1N, VNP13A2, VJ1, VJ2), HDF-EOS5"
    open_dataset_parameters: ClassVar[tuple] = ("filename_or_obj", "drop_variables", "qc")  # type: ignore[misc]

    def open_dataset(  # type: ignore[override]
        self, filename_or_obj: Any, *, drop_variables: Iterable[str] | None = None, qc: Policy = "strict"
    ) -> xr.Dataset:
        """See `open_viirs`."""
        return open_lazily(filename_or_obj, qc, drop_variables)

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether the name is that of a VIIRS land tile that is read here."""
        return names_kind(filename_or_obj, "HDF5")
