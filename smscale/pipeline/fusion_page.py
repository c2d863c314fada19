"""What the report says of fusion, closure and status: tables and figures in the order in which a reader asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from smscale.config import Recipe
from smscale.evaluate import Figure, Section, Table
from smscale.evaluate.palette import label_of
from smscale.evaluate.report import spelled
from smscale.fusion.ladder import MIN_IDW, MIN_KRIGING
from smscale.fusion.residuals import MIN_STATION_RESIDUALS
from smscale.pipeline.closing import RETRIEVAL_ERROR
from smscale.pipeline.fusion_scores import side_by_side
from smscale.pipeline.maps import model_map
from smscale.schema import Status

#: Groups of steps whose variograms are listed one by one; of more, a row for each pooling.
MAX_VARIOGRAMS = 16
#: What was taken off as systematic, in a sentence.
SYSTEMATIC = {
    "none": "Nothing was taken off as systematic: where stations and map differ all through the period, the fusion spreads that too.",
    "network-mean": "The network's mean residual was taken off first, and is not spread.",
    "station-mean": "Each station's own mean residual was taken off first, and is not spread: fusion corrects changes alone.",
    "cdf": "Each station's values first got the distribution of the map at its cell: fusion corrects changes alone.",
    "spatial-bias": "The stations' mean residuals are a static field of their own, applied at every step; the daily field is of their anomalies.",
}
#: Counts of a solved field that are about single residuals or places.
CHANGED = {
    "floored": "residuals on a background below the floor",
    "capped": "residuals cut to the cap of the ratio",
    "stations_sharing_a_place": "stations that share a place with another (merged into their mean)",
    "stations_without_coordinates": "stations without coordinates",
    "observations_infinite": "infinite station values",
    "background_infinite": "infinite map values at stations",
    "stations_without_anomalies": "stations with too few residuals for anomalies of their own",
}
#: Status bits in words, in the order of the table; NOT_FUSED is set on cells without a value too and is counted otherwise.
STATUS_WORDS = {
    Status.FUSED_KRIGING: "by kriging",
    Status.FUSED_IDW: "by IDW",
    Status.FUSED_MEAN_RESIDUAL: "by mean residual",
    Status.CLOSURE_NOT_APPLIED: "closure not applied",
    Status.CLIPPED: "clipped",
    Status.OUTSIDE_TRAINING_RANGE: "outside training range",
    Status.NEIGHBOURS_FILLED: "neighbours filled",
    Status.LST_FILLED: "LST filled",
    Status.MODEL_WITHOUT_LST: "model without LST",
    Status.CLIMATOLOGICAL_DETAIL: "climatological detail",
    Status.NO_LST: "no LST",
    Status.PREDICTOR_MISSING: "predictor missing",
    Status.WATER_ICE_URBAN: "water, ice, urban",
    Status.OUTSIDE_REGION: "outside region",
}
CLOSURE_STATES = {
    "closed": "closed",
    "limited": "closed as far as the limit of the correction lets it be",
    "too_little_valid": "not closed: too little of the cell is valid",
    "no_retrieval": "not closed: no retrieval",
}


# -- fusion -------------------------------------------------------------------------------------


def fusion_section(
    recipe: Recipe, fused: Mapping[str, Any], stations: Mapping[str, Any] | None, figures: Mapping[str, list[Figure]]
) -> Section:
    """The fusion with stations; without parts where no station was merged."""
    fields = fused.get("fields", {})
    if stations is None or not fields:
        return Section("fusion", "Fusion with stations", "", [])
    parts: list[Table | Figure] = [
        *_scores(recipe, stations),
        *_left_one_out(fused),
        _selection(recipe, stations["left_out"]),
        *_changed(fields),
        _ladder(fields),
        *figures.get("stations", []),
        *_systematic(fields),
        *_variograms(fields),
        *figures.get("variograms", []),
        *_calibration(recipe, stations["calibration"]),
        *figures.get("variance", []),
    ]
    return Section("fusion", "Fusion with stations", _lead(recipe, fused), parts)


def _lead(recipe: Recipe, fused: Mapping[str, Any]) -> str:
    fusion = recipe.fusion
    closed = "closed " if "closure" in fused else ""
    taper = (
        "The correction reaches all cells."
        if fusion.taper_km is None
        else f"The correction is whole up to {fusion.taper_km:g} km from a station that reports and ends at {2 * fusion.taper_km:g} km."
    )
    nugget = (
        "Kriging honours every measurement (exact)."
        if fusion.exact
        else "Kriging takes the nugget as error of the measurement."
    )
    used = "all stations" if fusion.neighbours is None else f"the {fusion.neighbours} nearest stations"
    cut = ", negative weights set to zero" if fusion.negative_weights == "zero" else ""
    kriging = f"{nugget} It uses {used}{cut}." if "kriging" in fusion.interpolators else ""
    unstated = "Maps by inverse distance weighting have no variance: the method states none." if fusion.variance else ""
    words = [
        f"Stations are merged into the {closed}map of {label_of(str(fused['background']))}: on average {fused['reporting_per_step']:.1f} of them are compared with it at a step.",
        f"The final map is “{label_of(str(fused['final']).removeprefix(model_map('')))}”: the least RMSE when stations are left out one by one.",
        SYSTEMATIC[fusion.systematic],
        taper,
        kriging,
        unstated if "idw" in fusion.interpolators else "",
    ]
    return " ".join(word for word in words if word)


def _scores(recipe: Recipe, stations: Mapping[str, Any]) -> list[Table]:
    table = stations["before_and_after"]
    if not len(table) or not table["n"].iloc[0]:
        return []
    what = (
        "stations that were merged into no map"
        if recipe.fusion.holdout_unit == "station"
        else "records that were merged into no map"
    )
    note = (
        f"At {what}: {table['n'].iloc[0]} values at which every map has one, so all rows are of the same pairs. Gain: how much smaller the "
        "error is than that of the first row. Beside it what the paper states of its own stations and season (Chen et al. 2023, Table 2): "
        "its gains are comparable, its errors are of another place and network."
    )
    if recipe.fusion.holdout_unit == "record":
        note += " Records of one station are on both sides: these gains flatter."
    note_debiased = (
        "Raw scores count the persistent difference of map and station. Debiased ones take each station's mean difference off first "
        f"(of stations with at least {MIN_STATION_RESIDUALS} pairs), and so say how well changes are followed. A fusion that mends persistent errors gains in the first only."
    )
    return [
        Table("Before and after, as the paper's Table 2", note, table),
        Table("Held out: raw and debiased", note_debiased, stations["raw_and_debiased"]),
    ]


def _left_one_out(fused: Mapping[str, Any]) -> list[Table]:
    if not fused.get("leave_one_out"):
        return []
    note = (
        f"Each merged station predicted from the others, {fused['leave_one_out_pairs']} values at which every map has an estimate. "
        "The least raw RMSE decides which map is final; one that fusion makes worse stays as it is."
    )
    return [Table("Merged stations, left out one by one: raw and debiased", note, side_by_side(fused["leave_one_out"]))]


def _selection(recipe: Recipe, table: pd.DataFrame) -> Table:
    note = (
        f"Stations and their values within {recipe.fusion.tolerance_hours:g} h of an overpass, each under the first reason that holds. A station stands in the "
        "last row if any of its values is merged."
    )
    return Table("Stations and values that were merged, and why others were not", note, table)


def _changed(fields: Mapping[str, Any]) -> list[Table]:
    """Residuals that were not used as they came; only what occurred."""
    rows = [
        {"what": words} | {label_of(name): field["left_out"].get(key, 0) for name, field in fields.items()}
        for key, words in CHANGED.items()
        if any(field["left_out"].get(key, 0) for field in fields.values())
    ]
    note = "Counts by map. Each is used all the same where it says what became of it."
    return [Table("Residuals and stations that were changed", note, rows)] if rows else []


def _ladder(fields: Mapping[str, Any]) -> Table:
    rows = [
        {
            "source": name,
            "kriging": s["kriging"],
            "IDW": s["idw"],
            "mean residual": s["mean"],
            "none": s["none"],
            "steps": sum(s.values()),
        }
        for name, s in ((name, field["steps"]) for name, field in fields.items())
    ]
    note = (
        f"Overpass steps by the highest rung that their stations reach: kriging from {MIN_KRIGING} places that report and a variogram, inverse "
        f"distance from {MIN_IDW}, else the mean residual; none without a station."
    )
    if any(field["systematic"]["name"] == "spatial-bias" for field in fields.values()):
        note += " With a spatial bias kriging from all stations needs one that reports, and steps without any carry the bias alone."
    return Table("How many steps were fused by what", note, rows)


def _systematic(fields: Mapping[str, Any]) -> list[Table]:
    rows = [{"source": name, **_removed(field)} for name, field in fields.items()]
    if all(len(row) == 1 for row in rows):
        return []
    note = "What was taken off the residuals, in m³ m⁻³ for differences; for ratios a factor, of which 1 is nothing."
    if any("bias field by" in row for row in rows):
        note = (
            "The static field of the stations' mean residuals: in m³ m⁻³ for differences; for ratios a factor, of which 1 is nothing. The error "
            "variance of a station's mean counts neighbouring steps by their correlation."
        )
    silent = [label_of(name) for name, field in fields.items() if _lacks_variance(name, field)]
    if silent:
        note += (
            f" {', '.join(silent)}: the bias field is by inverse distance weighting or a mean, which state no variance, so the map's "
            "variance is missing throughout."
        )
    return [Table("Systematic error", note, rows, wrap="prose")]


def _lacks_variance(name: str, field: Mapping[str, Any]) -> bool:
    """Whether a map by kriging has no variance because its bias field is not by kriging."""
    return name.endswith("kriging") and field["systematic"].get("by", "kriging") != "kriging"


def _removed(field: Mapping[str, Any]) -> dict[str, Any]:
    record = dict(field["systematic"])
    if "by" in record:
        record["by"] = record["by"].replace("idw", "IDW")
        if not field["variograms"]:
            record.pop("mean_variance")  # of kriging alone
    names = {
        "mean_removed": "mean",
        "stations_of_their_own": "stations with a mean of their own",
        "stations_by_cdf": "stations with a distribution of their own",
        "stations_by_network_mean": "stations by the network's mean",
        "by": "bias field by",
        "mean": "mean",
        "stations": "stations",
        "step_correlation": "correlation from step to step",
        "mean_error_variance": "mean error variance of a station's mean",
        "mean_variance": "variance of a step's mean anomaly",
    }
    return {words: record[key] for key, words in names.items() if key in record}


def _variograms(fields: Mapping[str, Any]) -> list[Table]:
    rows = [row for name, field in fields.items() for row in _variogram_rows(name, field)]
    if not rows:
        return []
    note = (
        "What kriging was given: nugget and partial sill in (m³ m⁻³)² for differences, without unit for ratios; the range is the model's own "
        "parameter (an exponential model reaches 95 % of its sill at three ranges). Pairs are pairs of stations times steps within the cutoff."
    )
    return [Table("Variograms", note, rows, wrap="prose")]


def _variogram_rows(name: str, field: Mapping[str, Any]) -> list[dict[str, Any]]:
    records = dict(field["variograms"])
    if len(records) > MAX_VARIOGRAMS:
        rows = [_summary_row(name, pooled, records) for pooled in sorted({r["pooled"] for r in records.values()})]
    else:
        rows = [_variogram_row(name, label, record) for label, record in records.items()]
    bias = field["systematic"].get("variogram")
    return [*rows, *([_variogram_row(name, "persistent bias", bias)] if bias else [])]


def _variogram_row(name: str, label: str, record: Mapping[str, Any]) -> dict[str, Any]:
    remarks = [
        *([record["at_bound"]] if record.get("at_bound") else []),
        *(f"passed over {passed}" for passed in record.get("passed_over", ())),
        *([record["reason"]] if "reason" in record else []),
    ]
    return {
        "source": name,
        "steps": label,
        "pooled over": record["pooled"],
        "model": record.get("model", ""),
        "nugget": record.get("nugget", np.nan),
        "partial sill": record.get("partial_sill", np.nan),
        "range (km)": record.get("range", np.nan),
        "pairs": record.get("pairs", np.nan),
        "remarks": "; ".join(remarks),
    }


def _summary_row(name: str, pooled: str, records: Mapping[str, Any]) -> dict[str, Any]:
    """Many groups of one pooling: medians."""
    own = [record for record in records.values() if record["pooled"] == pooled]
    fitted = [record for record in own if "range" in record]
    bound = sum(bool(record.get("at_bound")) for record in fitted)

    def median(key: str) -> float:
        return float(np.median([record[key] for record in fitted])) if fitted else np.nan

    return {
        "source": name,
        "steps": f"{len(own)} groups (medians)",
        "pooled over": pooled,
        "model": fitted[0]["model"] if fitted else "",
        "nugget": median("nugget"),
        "partial sill": median("partial_sill"),
        "range (km)": median("range"),
        "pairs": int(sum(record.get("pairs", 0) for record in fitted)),
        "remarks": f"{bound} at a bound" if bound else "",
    }


def _calibration(recipe: Recipe, table: pd.DataFrame) -> list[Table]:
    if not len(table):
        return []
    note = (
        "Errors at stations over the standard deviation that is stated of them, that of kriging and of the measurement together. A root mean "
        "square of 1 says that the variance is right; 2, that errors are twice what it promises; 0.5, half. Errors are those at "
        "stations that were merged into no map, and those of leaving out merged ones (of kriging from all stations without a spatial bias)."
    )
    if recipe.fusion.systematic in ("network-mean", "station-mean", "cdf"):
        note += " The variance knows nothing of the systematic error that was taken off; errors at held-out stations still hold it."
    return [Table("Is the stated variance right?", note, table)]


# -- closure ------------------------------------------------------------------------------------


def closure_section(recipe: Recipe, fused: Mapping[str, Any], figures: Sequence[Figure]) -> Section:
    """The coarse-mean closure; without parts where there is none."""
    closure = fused.get("closure")
    if not closure:
        return Section("closure", "Coarse-mean closure", "", [])
    return Section(
        "closure",
        "Coarse-mean closure",
        _closure_lead(recipe, closure),
        [_states(fused, closure), _means(fused, closure), *figures],
    )


def _closure_lead(recipe: Recipe, closure: Mapping[str, Any]) -> str:
    error = "that of its quality flag" if recipe.smap.quality == "weighted" else f"{RETRIEVAL_ERROR:g} m³ m⁻³"
    kind = {
        "exact": "Exact: the map's coarse means become the retrievals, noise and all.",
        "weighted": (
            f"Weighted: only the share model variance / (model + retrieval variance) of a difference is closed. The model errs by {closure['model_error']:.4f} m³ m⁻³ "
            f"at 36 km on samples that it was not fitted to, which counts the retrieval's error too; a retrieval's is {error}."
        ),
    }[str(closure["kind"])]
    least = recipe.match.min_valid_fraction
    return (
        f"The map's mean over each 36 km cell is brought towards SMAP's retrieval before stations are merged. {kind} The mean is that of the cell's valid part: where "
        f"half of a cell is under cloud, the other half is compared with SMAP's value of the whole. Cells of which less than {least:.0%} is valid are not closed."
    )


def _states(fused: Mapping[str, Any], closure: Mapping[str, Any]) -> Table:
    counts = closure["coarse_cells"]
    total = sum(counts.values())
    rows = [
        {"coarse cells × steps": words, "count": counts[key], "%": round(100 * counts[key] / total, 1)}
        for key, words in CLOSURE_STATES.items()
    ]
    closed = fused["status"][f"{fused['background']}_closed"]
    note = (
        f"Of {spelled(total)}, all coarse cells that the region touches at all steps. The limit may bite in part of a cell only: on the fine grid "
        f"it holds back the correction of {spelled(closed['held_by_limit'])} of {spelled(closed['valid'])} cells × steps that have a value."
    )
    return Table("What was closed", note, rows)


def _means(fused: Mapping[str, Any], closure: Mapping[str, Any]) -> Table:
    errors = dict(closure["coarse_mean_errors"])
    aim = errors.pop("aim", None)
    rows = [
        {
            "source": str(fused["background"]) if name == "model" else name.removeprefix(model_map("")),
            "root mean square": errors[name]["rmse"],
            "mean": errors[name]["bias"],
            "largest": errors[name]["max"],
            "n": errors[name]["n"],
        }
        for name in sorted(errors, key=lambda name: (name != "model", not name.endswith("_closed")))
    ]
    note = (
        "Coarse mean of each map less the retrieval, m³ m⁻³, on the coarse cells that were closed. Fusion with stations departs from the "
        "retrievals again, as far as its row says."
    )
    if aim and aim["n"]:
        note += (
            f" The closed map's means differ by {aim['rmse']:.1g} (root mean square of {aim['n']}) from those aimed at, where the limit "
            "of the correction leaves them free: what rounding and the bounds of the map cut off."
        )
    return Table("Coarse means of the maps against the retrievals", note, rows)


# -- status -------------------------------------------------------------------------------------


def status_section(downscaled: Mapping[str, Any], fused: Mapping[str, Any]) -> Section:
    """Shares of every map's cells by what their status says."""
    counts = {**downscaled["status"], **fused.get("status", {})}
    cells = int(downscaled["cells"])
    bits = [bit for bit in STATUS_WORDS if any(found.get(_key(bit)) for found in counts.values())]
    by_station = [Status.FUSED_KRIGING, Status.FUSED_IDW, Status.FUSED_MEAN_RESIDUAL]
    rows = []
    for name, found in counts.items():
        row: dict[str, Any] = {"source": name, "value": _percent(found.get("valid", 0), cells)}
        for bit in bits:
            row[STATUS_WORDS[bit]] = _percent(found[_key(bit)], cells) if _key(bit) in found else np.nan
        if "not_fused" in found:
            merged = sum(found.get(_key(bit), 0) for bit in by_station)
            row["value, not fused"] = _percent(found.get("valid", 0) - merged, cells)
        rows.append(row)
    frame = pd.DataFrame(rows)
    note = (
        f"% of {spelled(cells)} cells × steps, from the bits of each map's status; a cell may carry several. Outside training range: it has a value, with a predictor beyond what "
        "the model was trained on. Closure not applied and not fused are counted of cells with a value."
    )
    if not counts:
        return Section("status", "Status", "", [])
    return Section(
        "status",
        "Status",
        "",
        [Table("Why each map's cells are what they are", note, _with_not_fused(frame), wrap="prose")],
    )


def _with_not_fused(frame: pd.DataFrame) -> pd.DataFrame:
    """The column of cells that have a value without stations, beside those that have one with."""
    if "value, not fused" not in frame:
        return frame
    rest = [name for name in frame if name not in ("source", "value", "value, not fused")]
    fused = [name for name in rest if str(name).startswith("by ")]
    return frame[["source", "value", *fused, "value, not fused", *(name for name in rest if name not in fused)]]


def _key(bit: Status) -> str:
    return str(bit.name).lower()


def _percent(count: int, cells: int) -> float:
    return round(100 * count / cells, 2) if cells else float("nan")
