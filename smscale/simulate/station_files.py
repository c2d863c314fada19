"""Soil moisture stations: where they stand, what their sensors say, and the files that people get from them.

Files are ISMN's header+values layout (Dorigo et al. 2021, doi:10.5194/hess-25-5749-2021), with the static variables beside
them as ISMN ships them, and a long CSV table.
"""

from __future__ import annotations

import os
import zlib

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.signal import lfilter

from smscale.errors import InputError
from smscale.grid import EARTH_RADIUS_KM, Floats
from smscale.places import Place, place
from smscale.schema import BARREN, SNOW_ICE, URBAN, WATER
from smscale.simulate.atomic import write_text

#: Layer that the sensors average over, m.
DEPTH_FROM, DEPTH_TO = 0.0, 0.10
CSV_COLUMNS = ("station", "time", "lat", "lon", "elevation", "depth_from", "depth_to", "soil_moisture", "flag")

# -- where they stand ---------------------------------------------------------------------------

#: Elevation over which stations thin out by e, m.
LOWLAND_SCALE_M = 900.0
#: Radius of a cluster (one county's stations), km, and its expected number of stations.
CLUSTER_RADIUS_KM, CLUSTER_SIZE = 25.0, 8
#: Weight of standing outside any cluster, beside 1 in the middle of one.
SCATTERED = 0.03


def place_stations(
    seed: int, n: int, lon: ArrayLike, lat: ArrayLike, elevation: ArrayLike, land_cover: ArrayLike
) -> pd.DataFrame:
    """Stations in clusters in the lowlands, sparse in the mountains, never on water, ice, towns or unknown ground.

    A Cox process: cluster centres are drawn with weight exp(-(z - z_min) / LOWLAND_SCALE_M), then cells without
    replacement with that weight times (SCATTERED + the sum of Gaussian bells around the centres).

    Parameters
    ----------
    seed : of the nature run
    n : number of stations, at most one in a cell
    lon, lat : (columns,), (rows,) float64, degrees; centres of the fine cells
    elevation : (rows, columns), m
    land_cover : (rows, columns), IGBP class

    Returns
    -------
    DataFrame, one row a station: station (S001, …), row, col, lon, lat, elevation (m)

    Raises
    ------
    InputError
        if fewer than `n` cells can bear a station.
    """
    lon, lat = np.asarray(lon, np.float64), np.asarray(lat, np.float64)
    z, classes = np.asarray(elevation, np.float64), np.asarray(land_cover)
    allowed = np.isfinite(z) & (classes >= 1) & ~np.isin(classes, (URBAN, SNOW_ICE, WATER)) & (classes <= BARREN)
    cells = np.flatnonzero(allowed)
    if cells.size < n or n < 1:
        raise InputError(
            f"{n} stations asked for, but {cells.size} cells can bear one (land that is no town, ice or water)"
        )
    rng = np.random.default_rng([seed, zlib.crc32(b"stations")])
    row, col = np.unravel_index(cells, z.shape)
    weight = np.exp(-(z.flat[cells] - z.flat[cells].min()) / LOWLAND_SCALE_M)
    centres = rng.choice(cells.size, size=max(1, round(n / CLUSTER_SIZE)), p=weight / weight.sum())
    bells = np.full(cells.size, SCATTERED)
    for centre in centres:
        bells += np.exp(
            -0.5 * (_distance(lon[col], lat[row], lon[col[centre]], lat[row[centre]]) / CLUSTER_RADIUS_KM) ** 2
        )
    weight *= bells
    chosen = np.sort(rng.choice(cells.size, size=n, replace=False, p=weight / weight.sum()))
    names = [f"S{i:03d}" for i in range(1, n + 1)]
    return pd.DataFrame(
        {
            "station": names,
            "row": row[chosen],
            "col": col[chosen],
            "lon": lon[col[chosen]],
            "lat": lat[row[chosen]],
            "elevation": z.flat[cells[chosen]],
        }
    )


def _distance(lon: Floats, lat: Floats, lon0: float, lat0: float) -> Floats:
    """Kilometres in the local plane of the second point: good enough for weights."""
    dx = np.deg2rad(lon - lon0) * np.cos(np.deg2rad(lat0))
    return EARTH_RADIUS_KM * np.hypot(dx, np.deg2rad(lat - lat0))


# -- what they say ------------------------------------------------------------------------------

#: Exponential filter from 0-5 cm to 5-10 cm (Wagner et al. 1999, doi:10.1016/S0034-4257(99)00036-X), days, and how much
#: wetter the lower half of the layer is, m3 m-3.
FILTER_DAYS = 4.0
LOWER_WETTER = 0.03
#: A sensor stands at a point of its cell: constant offset, and one that drifts over a month, m3 m-3.
REPRESENTATIVENESS_STD = 0.035
DRIFT_STD, DRIFT_DAYS = 0.010, 30.0
NOISE_STD = 0.004
#: Share of hours lost in gaps of a day and a half on average, and of hours that spike.
GAP_SHARE, GAP_HOURS = 0.05, 36.0
SPIKE_SHARE, SPIKE_SIZE = 0.002, 0.15
#: ISMN leaves values above this flagged C02, below 0 C01 (Dorigo et al. 2013, doi:10.2136/vzj2012.0097, table 2).
ISMN_MAXIMUM = 0.6


def station_series(
    seed: int,
    station: str,
    time: ArrayLike,
    truth_time: ArrayLike,
    truth: ArrayLike,
    *,
    frozen: ArrayLike | None = None,
    representativeness_std: float = REPRESENTATIVENESS_STD,
    drift_std: float = DRIFT_STD,
    noise_std: float = NOISE_STD,
    gap_share: float = GAP_SHARE,
    spike_share: float = SPIKE_SHARE,
) -> pd.DataFrame:
    """Hourly 0-10 cm soil moisture of one sensor, from the true 0-5 cm soil moisture of its cell.

    Deterministic in (seed, station, time, truth), whatever other stations there are.

    Parameters
    ----------
    seed : of the nature run
    station : name; every station has its own errors
    time : (hours,) datetime64, UTC, one hour apart
    truth_time, truth : (n,) datetime64 UTC ascending, and m3 m-3; between them the truth runs straight, before and after
        it stands still. Hours next to a missing truth are missing.
    frozen : (hours,) bool; flagged D03, as ISMN does by modelled soil temperature
    representativeness_std, drift_std, noise_std : m3 m-3
    gap_share, spike_share : share of the hours

    Returns
    -------
    DataFrame: time (datetime64[ns]), soil_moisture (m3 m-3), flag (ISMN: G good, C01 below 0, C02 above 0.6, D03 frozen,
    D06 spike; several joined by commas). Hours in gaps have no row.
    """
    hours = np.asarray(time, dtype="datetime64[ns]")
    rng = np.random.default_rng([seed, zlib.crc32(station.encode())])
    layer = layer_mean(_hourly(hours, truth_time, truth))
    drift = _ar1(rng, hours.size, np.exp(-1 / (24 * DRIFT_DAYS)))
    value = layer + representativeness_std * rng.standard_normal() + drift_std * drift
    value += noise_std * rng.standard_normal(hours.size)
    spike = rng.random(hours.size) < spike_share
    value = np.where(
        spike, value + rng.choice([-1.0, 1.0], hours.size) * SPIKE_SIZE * (1 + rng.random(hours.size)), value
    )
    # A probe does not read below its dry end, except in a spike.
    value = np.where(spike, value, np.maximum(value, 0.01))
    kept = np.isfinite(value) & ~_gaps(rng, hours.size, gap_share)
    cold = np.zeros(hours.size, bool) if frozen is None else np.asarray(frozen, bool)
    table = pd.DataFrame({"time": hours, "soil_moisture": value, "flag": _flags(value, spike, cold)})
    return table[kept].reset_index(drop=True)


def layer_mean(surface: Floats) -> Floats:
    """0-10 cm soil moisture from hourly 0-5 cm soil moisture: the mean of it and of a smoother, wetter layer below.

    The lower layer is the recursive exponential filter x(t) + k (s(t) - x(t)), k = 1 - exp(-1 h / FILTER_DAYS), started
    at the first value. NaN passes through; the filter sees the last value before it.
    """
    filled = pd.Series(surface).ffill().bfill().to_numpy(np.float64)
    k = -np.expm1(-1 / (24 * FILTER_DAYS))
    lower, _ = lfilter([k], [1, k - 1], filled, zi=[(1 - k) * filled[0]])
    return np.where(np.isnan(surface), np.nan, 0.5 * surface + 0.5 * (lower + LOWER_WETTER))


def _hourly(hours: NDArray[np.datetime64], truth_time: ArrayLike, truth: ArrayLike) -> Floats:
    known = np.asarray(truth_time, dtype="datetime64[ns]").astype(np.int64)
    values = np.asarray(truth, dtype=np.float64)
    if known.shape != values.shape or known.ndim != 1 or np.any(np.diff(known) <= 0):
        raise InputError(f"truth needs one value for each ascending time; got {values.shape} for {known.shape}")
    return np.interp(hours.astype(np.int64).astype(np.float64), known.astype(np.float64), values)


def _ar1(rng: np.random.Generator, n: int, correlation: float) -> Floats:
    """Standard AR(1) noise, stationary from the first value."""
    white = rng.standard_normal(n)
    white[1:] *= np.sqrt(1 - correlation**2)
    return lfilter([1.0], [1.0, -correlation], white)


def _gaps(rng: np.random.Generator, n: int, share: float) -> NDArray[np.bool_]:
    """True inside gaps, which begin at random and last exponentially long."""
    starts = np.flatnonzero(rng.random(n) < share / GAP_HOURS)
    lengths = np.ceil(rng.exponential(GAP_HOURS, starts.size)).astype(np.int64)
    lost = np.zeros(n, dtype=bool)
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        lost[start : start + length] = True
    return lost


def _flags(value: Floats, spike: NDArray[np.bool_], frozen: NDArray[np.bool_]) -> NDArray[np.object_]:
    flags = np.full(value.shape, "", dtype=object)
    for hit, name in ((value < 0, "C01"), (value > ISMN_MAXIMUM, "C02"), (frozen, "D03"), (spike, "D06")):
        flags[hit] = [f"{f},{name}" if f else name for f in flags[hit]]
    flags[flags == ""] = "G"
    return flags


# -- files --------------------------------------------------------------------------------------


def ismn_path(
    root: str | os.PathLike[str] | Place, network: str, station: str, sensor: str, start: object, end: object,
    depth_from: float = DEPTH_FROM, depth_to: float = DEPTH_TO,
) -> Place:  # fmt: skip
    """NETWORK/STATION/NETWORK_NETWORK_STATION_sm_0.000000_0.100000_SENSOR_START_END.stm under `root`."""
    first, last = (np.datetime64(day, "D").astype(object) for day in (start, end))  # type: ignore[call-overload]
    name = f"{network}_{network}_{station}_sm_{depth_from:.6f}_{depth_to:.6f}_{sensor}_{first:%Y%m%d}_{last:%Y%m%d}.stm"
    return place(root) / network / station / name


def write_ismn(
    root: str | os.PathLike[str] | Place,
    network: str,
    station: str,
    lat: float,
    lon: float,
    elevation: float,
    series: pd.DataFrame,
    *,
    sensor: str = "SIMULATED-TDR",
    depth_from: float = DEPTH_FROM,
    depth_to: float = DEPTH_TO,
    start: object = None,
    end: object = None,
    texture: tuple[float, float, float] | None = None,
    land_cover: str = "unknown",
) -> Place:
    """One sensor in ISMN's header+values layout, with the station's static variables beside it.

    Parameters
    ----------
    root : folder that is to hold the networks
    network, station, sensor : without blanks or underscores
    lat, lon, elevation : degrees, m
    series : columns time, soil_moisture, flag as `station_series` gives
    depth_from, depth_to : m
    start, end : days in the file's name; the first and last of the series without them
    texture : clay, sand, silt in percent of weight, for the static variables
    land_cover : name of the land cover class, for the static variables

    Returns
    -------
    path of the .stm file

    Raises
    ------
    InputError
        if a name has a blank or an underscore, or the series is empty.
    """
    for part in (network, station, sensor):
        if not part or any(c.isspace() or c == "_" for c in part):
            raise InputError(f"ISMN names may have no blank and no underscore; got {part!r}")
    if series.empty:
        raise InputError(f"station {station}: the series is empty; ISMN files hold at least one value")
    first, last = series["time"].iloc[0], series["time"].iloc[-1]
    path = ismn_path(
        root,
        network,
        station,
        sensor,
        first if start is None else start,
        last if end is None else end,
        depth_from,
        depth_to,
    )
    header = f"{network:<11}{network:<16}{station:<16}{lat:10.5f} {lon:11.5f} {elevation:7.2f} {depth_from:7.2f} {depth_to:7.2f} {sensor} "
    stamps = series["time"].dt.strftime("%Y/%m/%d %H:%M")
    rows = [
        f"{stamp} {value:8.4f} {flag} M "
        for stamp, value, flag in zip(stamps, series["soil_moisture"], series["flag"], strict=True)
    ]
    write_text(path, "\n".join([header, *rows, ""]))
    write_text(
        path.parent / f"{network}_{network}_{station}_static_variables.csv", _static_variables(texture, land_cover)
    )
    return path


def _static_variables(texture: tuple[float, float, float] | None, land_cover: str) -> str:
    lines = [
        "quantity_name;unit;depth_from[m];depth_to[m];value;description;quantity_source_name;quantity_source_description;"
        "quantity_source_provider;quantity_source_version;quantity_source_resolution;quantity_source_timerange;quantity_source_url;"
    ]
    source = "simulated;nature run;smscale;;;;;"
    if texture is not None:
        clay, sand, silt = texture
        for name, value in (("clay fraction", clay), ("sand fraction", sand), ("silt fraction", silt)):
            lines.append(f"{name};% weight;0.00;0.30;{value:.2f};;{source}")
    lines.append(f"land cover classification;;;;{land_cover};;insitu;{source.split(';', 1)[1]}")
    return "\n".join([*lines, ""])


def write_station_csv(
    path: str | os.PathLike[str] | Place, stations: pd.DataFrame, series: dict[str, pd.DataFrame]
) -> Place:
    """All stations in one long table: station,time,lat,lon,elevation,depth_from,depth_to,soil_moisture,flag (UTC).

    Parameters
    ----------
    stations : columns station, lat, lon, elevation as `place_stations` gives
    series : station -> columns time, soil_moisture, flag
    """
    parts = []
    for _, site in stations.iterrows():
        one = series[str(site["station"])]
        parts.append(
            pd.DataFrame(
                {
                    "station": site["station"],
                    "time": one["time"].dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
                    "lat": f"{site['lat']:.5f}",
                    "lon": f"{site['lon']:.5f}",
                    "elevation": f"{site['elevation']:.1f}",
                    "depth_from": f"{DEPTH_FROM:.2f}",
                    "depth_to": f"{DEPTH_TO:.2f}",
                    "soil_moisture": one["soil_moisture"].map("{:.4f}".format),
                    "flag": one["flag"],
                },
                columns=list(CSV_COLUMNS),
            )
        )
    return write_text(path, pd.concat(parts).to_csv(index=False, lineterminator="\n"))
