"""SPL3SMP granules: NASA's daily 36 km soil moisture in HDF5, version 8 (names, types, fills and links of the real schema).

Both groups hold the whole 406 x 964 EASE-Grid 2.0; in the PM group every name carries the suffix `_pm`. Since version 8
`soil_moisture` is the dual-channel algorithm's (DCA) and `soil_moisture_dca` another name of the same data set.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from smscale.errors import InputError
from smscale.grid import EASE2_GRIDS, Grid
from smscale.places import Place, place
from smscale.simulate.atomic import replacing

SHAPE = (EASE2_GRIDS[36][1], EASE2_GRIDS[36][0])
COMPOSITE_RELEASE = "R18290"
GROUPS = {"AM": "Soil_Moisture_Retrieval_Data_AM", "PM": "Soil_Moisture_Retrieval_Data_PM"}
#: `tb_time_seconds` counts from here, in UTC without leap seconds (checked on a genuine granule).
EPOCH = np.datetime64("2000-01-01T12:00:00", "ns")
#: Angle at which the antenna's beam meets the ground (SMAP Handbook, section 3).
INCIDENCE_DEG = 40.0
#: What stands in `tb_time_utc` where nothing was observed.
NO_TIME = b"N/A"

#: Bits of `surface_flag`, flag_meanings of the schema without the prefix "36_km_".
SURFACE_BITS = {
    name: 1 << bit
    for bit, name in enumerate(
        (
            "static_water_body", "radar_water_body", "coastal_proximity", "urban_area", "precipitation", "snow_or_ice",
            "permanent_snow_or_ice", "radiometer_frozen_ground", "model_frozen_ground", "mountainous_terrain",
            "dense_vegetation", "nadir_region",
        )
    )
}  # fmt: skip
#: Bits of `retrieval_qual_flag`; each is set where the good thing did NOT happen.
NOT_RECOMMENDED, NOT_ATTEMPTED, NOT_SUCCESSFUL, NO_FREEZE_THAW = 1, 2, 4, 8

#: Above these a condition is flagged (ProcessStep of a genuine SPL2SMP granule): fractions of the cell, standard deviation
#: of slope in degrees, rain in mm/s as the file words it, vegetation water content in kg m-2. The upper ones forbid retrieval.
FLAG_THRESHOLDS = {
    "water_fraction": (0.05, 0.5), "urban_fraction": (0.25, 1.0), "snow_fraction": (0.05, 0.5), "ice_fraction": (0.05, 0.5),
    "frozen_fraction": (0.05, 0.5), "mountain_slope": (3.0, 6.0), "rain_rate": (0.00027778, 0.00706),
    "vegetation_water_content": (5.0, 30.0),
}  # fmt: skip

_CHUNKS = (58, 241)


def granule_name(utc_day: object) -> str:
    """File name of a day's granule, as SMAP_L3_SM_P_20170610_R18290_001.h5."""
    return f"SMAP_L3_SM_P_{_day(utc_day).astype(object):%Y%m%d}_{COMPOSITE_RELEASE}_001.h5"


def surface_flag(shape: tuple[int, ...], **conditions: ArrayLike) -> NDArray[np.uint16]:
    """`surface_flag` from one boolean array for each condition of `SURFACE_BITS` that is known.

    Example
    -------
    >>> int(surface_flag((), mountainous_terrain=True, snow_or_ice=True))
    544
    """
    flag = np.zeros(shape, dtype=np.uint16)
    for name, condition in conditions.items():
        if name not in SURFACE_BITS:
            raise InputError(f"no surface condition is called {name!r}; expected one of {', '.join(SURFACE_BITS)}")
        flag |= np.where(np.asarray(condition, dtype=bool), SURFACE_BITS[name], 0).astype(np.uint16)
    return flag


def retrieval_qual_flag(
    recommended: ArrayLike,
    attempted: ArrayLike = True,
    successful: ArrayLike = True,
    freeze_thaw: ArrayLike = True,
) -> NDArray[np.uint16]:
    """`retrieval_qual_flag`: 0 where all went well; bit 0 not recommended, 1 not attempted, 2 failed, 3 no freeze-thaw.

    What was not attempted did not succeed, and what did not succeed is not recommended (7, as in the real files).
    """
    tried = np.asarray(attempted, dtype=bool)
    succeeded = np.asarray(successful, dtype=bool) & tried
    good = np.asarray(recommended, dtype=bool) & succeeded
    thawed = np.asarray(freeze_thaw, dtype=bool)
    bits = (NOT_RECOMMENDED, good), (NOT_ATTEMPTED, tried), (NOT_SUCCESSFUL, succeeded), (NO_FREEZE_THAW, thawed)
    return np.asarray(sum(np.where(happened, 0, bit) for bit, happened in bits), dtype=np.uint16)


@lru_cache(maxsize=1)
def schema() -> dict[str, dict[str, dict[str, Any]]]:
    """Group -> data set -> its facts: type, layers, link, _FillValue, valid range, units, long_name, flags."""
    return json.loads(files("smscale.simulate").joinpath("spl3smp.json").read_text(encoding="utf-8"))


def write_spl3smp(
    path: str | os.PathLike[str] | Place,
    utc_day: object,
    am: Mapping[str, ArrayLike],
    pm: Mapping[str, ArrayLike],
    grid: Grid | None = None,
) -> Place:
    """Write one granule, whole or not at all; the same arguments give the same bytes.

    Parameters
    ----------
    path : of the file; its last part is what `granule_name` says
    utc_day : the UTC day that the granule is cut by
    am, pm : what is known of each pass: `time`, (rows, columns) datetime64 UTC, NaT where not observed, and any data sets
        by their name without `_pm`, as soil_moisture (m3 m-3), retrieval_qual_flag, surface_flag, vegetation_opacity,
        surface_temperature (K), static_water_body_fraction; `landcover_class` and its fraction are (rows, columns, 3).
        NaN in floats is missing. The rest is fill, and so is every cell without an observation.
        Latitude, longitude, their centroids, row and column indices and both forms of the time follow from `time`;
        brightness temperatures count as flawless (tb_qual_flag_* 0) and are seen at 40 degrees unless given otherwise.
    grid : the window of `Grid.ease2(36)` that the arrays cover; None where they cover the globe

    Raises
    ------
    InputError
        if an array has another shape or no data set of the schema has its name, or a time lies outside the day.
    """
    grid = Grid.ease2(36) if grid is None else grid
    with (
        replacing(path) as temporary,
        h5py.File(temporary, "w", libver=("earliest", "v110"), track_order=False) as file,
    ):
        _write_metadata(file, utc_day, place(path).name)
        for overpass, values in (("AM", am), ("PM", pm)):
            _write_group(file, overpass, _day(utc_day), dict(values), grid)
    return place(path)


def _day(utc_day: object) -> np.datetime64:
    return np.datetime64(utc_day, "D")  # type: ignore[call-overload]


def _write_group(file: h5py.File, overpass: str, day: np.datetime64, values: dict[str, ArrayLike], grid: Grid) -> None:
    suffix = "_pm" if overpass == "PM" else ""
    facts = schema()[GROUPS[overpass]]
    if "time" not in values:
        raise InputError(f"SPL3SMP {overpass}: `time` is missing: (rows, columns) datetime64, NaT where not observed")
    time = np.asarray(values.pop("time"), dtype="datetime64[ns]")
    _check_shape(overpass, "time", time, grid)
    observed = ~np.isnat(time)
    if np.any(time[observed].astype("datetime64[D]") != day):
        raise InputError(
            f"SPL3SMP {overpass}: observation times lie outside the UTC day {day} that the granule is cut by"
        )
    known = {f"{name}{suffix}": value for name, value in (_defaults(time, grid) | values).items()}
    for name in known:
        if name not in facts:
            raise InputError(f"SPL3SMP has no data set {name!r} in {GROUPS[overpass]}")
    group = file.create_group(GROUPS[overpass])
    given = {facts[name].get("link", name): value for name, value in known.items()}
    for name, fact in facts.items():
        if "link" not in fact:
            _create(group, name, fact, overpass, given.get(name), observed, grid)
    for name, fact in facts.items():
        if "link" in fact:
            group[name] = group[fact["link"]]


def _defaults(time: NDArray[np.datetime64], grid: Grid) -> dict[str, ArrayLike]:
    lat, lon = np.broadcast_arrays(grid.lat[:, None], grid.lon[None, :])
    row, col = np.indices(grid.shape)
    seconds = (time - EPOCH) / np.timedelta64(1, "ms") / 1e3
    return {
        "latitude": lat,
        "longitude": lon,
        "latitude_centroid": lat,
        "longitude_centroid": lon,
        "EASE_row_index": row + grid.row0,
        "EASE_column_index": col + grid.col0,
        "tb_time_seconds": seconds,
        "tb_time_utc": time,
        "boresight_incidence": np.full(grid.shape, INCIDENCE_DEG),
        **{f"tb_qual_flag_{polarisation}": np.zeros(grid.shape, np.uint16) for polarisation in "hv34"},
    }


def _check_shape(overpass: str, name: str, value: NDArray[Any], grid: Grid) -> None:
    if value.shape[:2] != grid.shape:
        raise InputError(f"SPL3SMP {overpass}: {name} has shape {value.shape}, expected {grid.shape} as the grid")


def _create(
    group: h5py.Group,
    name: str,
    fact: dict[str, Any],
    overpass: str,
    value: ArrayLike | None,
    observed: NDArray[np.bool_],
    grid: Grid,
) -> None:
    layers = (fact["layers"],) if "layers" in fact else ()
    dtype = np.dtype(fact["type"])
    fill = np.array(_fill(fact), dtype=dtype)[()]
    data = group.create_dataset(
        name,
        shape=SHAPE + layers,
        dtype=dtype,
        chunks=_CHUNKS + layers,
        compression="gzip",
        compression_opts=2,
        fillvalue=fill,
        track_times=False,
    )
    for key in ("_FillValue", "valid_min", "valid_max"):
        if key in fact:
            data.attrs[key] = dtype.type(fact[key])
    for key in ("long_name", "units", "flag_masks", "flag_meanings"):
        if key in fact:
            data.attrs[key] = np.bytes_(fact[key])
    if fact.get("coordinates"):
        data.attrs["coordinates"] = np.bytes_(f"/{GROUPS['AM']}/latitude /{GROUPS['AM']}/longitude")
    if value is not None and observed.any():
        array = np.asarray(value)
        _check_shape(overpass, name, array, grid)
        _put(data, _encode(array, dtype, fill), observed, fill, grid)
    # Now, not when the object goes: a profiler (dask's is one) may hold this frame a little longer, and the file's parts would
    # come in another order.
    data.flush()


def _fill(fact: dict[str, Any]) -> Any:
    if "_FillValue" in fact:
        return fact["_FillValue"]
    return NO_TIME if fact["type"].startswith("S") else -9999.0


def _encode(array: NDArray[Any], dtype: np.dtype[Any], fill: Any) -> NDArray[Any]:
    if array.dtype.kind == "M":
        text = np.datetime_as_string(array, unit="ms").astype("S23")
        return np.where(np.isnat(array), fill, np.char.add(text, b"Z")).astype(dtype)
    if array.dtype.kind == "f":
        array = np.where(np.isnan(array), fill, array)
    return array.astype(dtype)


def _put(data: h5py.Dataset, array: NDArray[Any], observed: NDArray[np.bool_], fill: Any, grid: Grid) -> None:
    """Write the rows and columns that hold observations; what lies outside stays unallocated fill."""
    rows, cols = np.flatnonzero(observed.any(axis=1)), np.flatnonzero(observed.any(axis=0))
    window = np.s_[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    mask = observed[window] if array.ndim == 2 else observed[window][..., None]
    block = np.where(mask, array[window], fill).astype(array.dtype)
    if not np.any(block != fill):
        return
    r0, c0 = grid.row0 + rows[0], grid.col0 + cols[0]
    data[r0 : r0 + block.shape[0], c0 : c0 + block.shape[1]] = block


def _write_metadata(file: h5py.File, utc_day: object, name: str) -> None:
    day = str(_day(utc_day))
    text: dict[str, dict[str, Any]] = {
        "DatasetIdentification": {
            "shortName": "SPL3SMP", "SMAPShortName": "L3_SM_P", "ECSVersionID": "008", "format": "HDF5",
            "CompositeReleaseID": COMPOSITE_RELEASE, "fileName": name, "creationDate": day, "language": "eng",
            "characterSet": "utf8", "spatialRepresentationType": "grid", "status": "onGoing",
            "abstract": "Simulated daily global composite of half-orbit soil moisture on the 36 km EASE-Grid 2.0.",
            "originatorOrganizationName": "smscale nature run",
        },
        "SeriesIdentification": {
            "shortName": "SPL3SMP", "ECSVersionID": "008", "mission": "SMAP", "CompositeReleaseID": COMPOSITE_RELEASE[:3],
            "longName": "SMAP L3 Radiometer Global Daily 36 km EASE-Grid Soil Moisture", "language": "eng",
        },
        "Extent": {
            "rangeBeginningDateTime": f"{day}T00:00:00.000Z", "rangeEndingDateTime": f"{day}T23:59:59.999Z",
            "westBoundLongitude": np.float32(-180), "eastBoundLongitude": np.float32(180),
            "southBoundLatitude": np.float32(-85.04450226), "northBoundLatitude": np.float32(85.04450226),
        },
        "GridSpatialRepresentation": {
            "numberOfDimensions": np.int64(2), "cellGeometry": "point",
            "georeferencedParameters": "EASE-Grid 2.0 global cylindrical, EPSG:6933",
        },
        "GridSpatialRepresentation/Row": {"dimensionSize": np.uint32(SHAPE[0]), "resolution": np.float32(36)},
        "GridSpatialRepresentation/Column": {"dimensionSize": np.uint32(SHAPE[1]), "resolution": np.float32(36)},
        "GridSpatialRepresentation/GridDefinition": {"identifier": "Equal-Area Scalable Earth Grid"},
        "ProcessStep": {
            "stepDateTime": f"{day}T23:59:59.999Z", "timeVariableEpoch": "J2000", "identifier": "L3_SM_P_SPS",
            "algorithmTitle": "Soil Moisture Active Passive (SMAP) Radiometer processing algorithm",
            "algorithmDescription": "Simulated: the default algorithm is the dual-channel algorithm (DCA).",
        },
        "AcquisitionInformation/platform": {"identifier": "SMAP"},
        "AcquisitionInformation/radiometer": {"identifier": "SMAP RAD", "type": "L-Band Radiometer"},
    }  # fmt: skip
    for group_name, attributes in text.items():
        group = file.require_group(f"Metadata/{group_name}")
        for key, value in attributes.items():
            group.attrs[key] = value
