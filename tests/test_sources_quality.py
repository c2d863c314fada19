"""SMAP quality control: bits against hand-made cells, and the counts of a real half orbit against plain bit arithmetic."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

from smscale.errors import InputError
from smscale.sources.quality import (
    DEFAULT_ERRORS,
    checked_errors,
    flag_counts,
    flag_meanings,
    flag_set,
    quality,
    recommended,
)
from smscale.sources.smap import FLAG_FILL, TABLES, open_smap

Real = Callable[[str], Path]


def cells(
    soil_moisture: list[float],
    quality_flag: list[int],
    surface: list[int] | None = None,
    tb: list[int] | None = None,
    water: list[float] | None = None,
) -> xr.Dataset:
    """A row of cells."""
    n = len(soil_moisture)
    row = ("lat", "lon")
    zeros = [0] * n
    return xr.Dataset(
        {
            "soil_moisture": (row, np.array([soil_moisture], np.float32)),
            "retrieval_quality": (row, np.array([quality_flag], np.uint16)),
            "surface_flag": (row, np.array([surface or zeros], np.uint16)),
            "tb_quality_h": (row, np.array([tb or zeros], np.uint16)),
            "tb_quality_v": (row, np.array([zeros], np.uint16)),
            "static_water_body_fraction": (row, np.array([water or zeros], np.float32)),
        }
    )


def test_policies_differ_in_what_is_not_recommended_and_in_rain() -> None:
    ds = cells([0.2, 0.2, 0.2, 0.2], [0, 1, 9, 0], [0, 512, 1024, 16])
    kept = {policy: quality(ds, policy)[0].values[0].tolist() for policy in ("strict", "paper", "weighted")}  # type: ignore[arg-type]
    assert kept["strict"] == [True, False, False, True]
    assert kept["paper"] == [True, True, True, False]
    assert kept["weighted"] == [True, True, True, True]


def test_weights_are_inverse_error_variances() -> None:
    ds = cells([0.2, 0.2, np.nan], [0, 1, 0])
    _, weight, _ = quality(ds, "weighted")
    assert weight.dtype == np.float32
    np.testing.assert_allclose(weight.values[0], [1 / 0.04**2, 1 / 0.08**2, 0.0], rtol=1e-6)
    _, other, _ = quality(ds, "weighted", {"recommended": 0.05, "not_recommended": 0.1})
    np.testing.assert_allclose(other.values[0], [400.0, 100.0, 0.0], rtol=1e-6)
    assert quality(ds, "paper")[1].values[0].tolist() == [1.0, 1.0, 0.0]
    with pytest.raises(InputError, match="errors needs positive"):
        quality(ds, "weighted", {"recommended": 0.05})


def test_of_the_errors_that_apply_the_largest_counts() -> None:
    mountains, dense = TABLES["surface_flag"]["mountains"], TABLES["surface_flag"]["dense_vegetation"]
    ds = cells(
        [0.2] * 6, [0, 1, 0, 1, 0, 1], [0, 0, mountains, mountains, mountains | dense, dense], tb=[4, 0, 0, 0, 0, 0]
    )
    errors = {**DEFAULT_ERRORS, "mountains": 0.05, "dense_vegetation": 0.1, "rfi_detected": 0.2}
    weight = quality(ds, "weighted", errors)[1].values[0]
    np.testing.assert_allclose(weight**-0.5, [0.2, 0.08, 0.05, 0.08, 0.1, 0.1], rtol=1e-6)


@pytest.mark.parametrize(
    ("errors", "says"),
    [
        ({**DEFAULT_ERRORS, "mountain": 0.1}, "no flag 'mountain'; did you mean mountains"),
        ({**DEFAULT_ERRORS, "zzz": 0.1}, "no flag 'zzz'; known are recommended"),
        ({**DEFAULT_ERRORS, "urban": -0.1}, "urban is -0.1"),
        ({**DEFAULT_ERRORS, "urban": float("nan")}, "urban is nan"),
        ({**DEFAULT_ERRORS, "urban": "0.1"}, "urban is '0.1'"),
        ({**DEFAULT_ERRORS, "urban": True}, "urban is True"),
        ({**DEFAULT_ERRORS, "urban": 4}, "urban is 4"),
        ({"not_recommended": 0.1}, "add recommended"),
    ],
)
def test_errors_are_checked_whatever_the_policy(errors: dict[str, float], says: str) -> None:
    with pytest.raises(InputError, match=says) as raised:
        quality(cells([0.2], [0]), "paper", errors)
    assert "\n" not in str(raised.value)
    assert checked_errors(DEFAULT_ERRORS) == DEFAULT_ERRORS


def test_every_bit_of_retrieved_cells_is_counted() -> None:
    ds = cells([0.2, 0.2, np.nan, 0.2], [1, 9, 15, FLAG_FILL], [512 | 1024, 512, 512, 0], tb=[32768, 0, 0, 0])
    counts = flag_counts(ds)
    assert {k: v for k, v in counts["retrieval_quality"].items() if v} == {
        "retrieved": 3,
        "missing": 1,
        "not_recommended": 2,
        "freeze_thaw_not_successful": 1,
    }
    assert {k: v for k, v in counts["surface_flag"].items() if v} == {
        "retrieved": 3,
        "mountains": 2,
        "dense_vegetation": 1,
    }
    assert counts["tb_quality_h"]["rfi_clean"] == 1
    assert counts["tb_quality_v"]["rfi_clean"] == 0


def test_every_bit_has_a_meaning() -> None:
    for flag in ("retrieval_quality", "surface_flag", "tb_quality_h", "tb_quality_v"):
        counted = list(flag_counts(cells([0.2], [0]))[flag])[2:]
        assert counted == list(flag_meanings(flag))
        assert all(flag_meanings(flag).values())
    for table in ("retrieval_quality", "surface_flag", "tb_quality"):
        assert list(TABLES[table].values()) == [1 << i for i in range(len(TABLES[table]))]
    with pytest.raises(InputError, match="no flag is called 'x'"):
        flag_meanings("x")


@pytest.mark.real_data
def test_bits_of_a_real_half_orbit_are_those_of_its_own_table(real: Real) -> None:
    """Counts by the file's own flag_masks, bit by bit, in their order."""
    path = real("smap/SMAP_L2_SM_P_02801_A_20150811T013002_R18290_001.h5")
    ds = open_smap(path)
    counts = flag_counts(ds)
    with h5py.File(path) as file:
        group = file["Soil_Moisture_Retrieval_Data"]
        has_value = group["soil_moisture"][:] != -9999
        for ours, theirs in (
            ("retrieval_quality", "retrieval_qual_flag"),
            ("surface_flag", "surface_flag"),
            ("tb_quality_h", "tb_qual_flag_h"),
            ("tb_quality_v", "tb_qual_flag_v"),
        ):
            masks = [int(m.strip().rstrip("s")) for m in group[theirs].attrs["flag_masks"].decode().split(",")]
            values = group[theirs][:][has_value].astype(np.int64)
            expected = [int(((values & mask) != 0).sum()) for mask in masks]
            assert list(counts[ours].values())[2:] == expected
            assert (counts[ours]["retrieved"], counts[ours]["missing"]) == (1333, 0)
    assert counts["retrieval_quality"]["not_recommended"] == 1333 - 592
    assert counts["surface_flag"]["mountains"] > 0


@pytest.mark.parametrize("policy", ["strict", "paper", "weighted"])
@pytest.mark.parametrize(
    ("surface", "reason"),
    [
        (1, "open_water"),
        (2, "open_water"),
        (32, "snow_or_ice"),
        (64, "snow_or_ice"),
        (128, "frozen_ground"),
        (256, "frozen_ground"),
    ],
)
def test_frozen_snow_and_water_always_go(policy: str, surface: int, reason: str) -> None:
    keep, weight, counts = quality(cells([0.2, 0.3], [0, 0], [surface, 0]), policy)  # type: ignore[arg-type]
    assert keep.values[0].tolist() == [False, True]
    assert weight.values[0, 0] == 0
    assert counts[reason] == 1


def test_unsuccessful_impossible_and_disturbed_retrievals_always_go() -> None:
    ds = cells([0.2, 0.2, 0.2, 1.2, 0.2, 0.2, 0.2], [2, 4, FLAG_FILL, 0, 0, 0, 0], tb=[0, 0, 0, 0, 12, 4, 8])
    keep, _, counts = quality(ds, "weighted")
    assert keep.values[0].tolist() == [False, False, False, False, False, True, True]
    assert (
        counts["not_successful"],
        counts["no_quality_flag"],
        counts["impossible_value"],
        counts["radio_interference"],
    ) == (2, 1, 1, 1)


def test_the_water_fraction_decides_only_where_the_flag_is_missing() -> None:
    ds = cells([0.2, 0.2, 0.2], [0, 0, 0], [0, FLAG_FILL, FLAG_FILL], water=[0.5, 0.5, 0.01])
    assert quality(ds, "weighted")[0].values[0].tolist() == [True, False, True]


@pytest.mark.real_data
@pytest.mark.parametrize("policy", ["strict", "paper", "weighted"])
def test_real_half_orbit_is_accounted_for(real: Real, policy: str) -> None:
    path = real("smap/SMAP_L2_SM_P_02801_A_20150811T013002_R18290_001.h5")
    ds = open_smap(path)
    keep, _, counts = quality(ds, policy)  # type: ignore[arg-type]
    with h5py.File(path) as file:
        group = {
            name: file["Soil_Moisture_Retrieval_Data"][name][:].astype(np.int64)
            for name in ("retrieval_qual_flag", "surface_flag", "tb_qual_flag_h", "tb_qual_flag_v")
        }
        has_value = file["Soil_Moisture_Retrieval_Data/soil_moisture"][:] != -9999
    quality_flag, surface = group["retrieval_qual_flag"], group["surface_flag"]
    rfi = ((group["tb_qual_flag_h"] & 12) == 12) | ((group["tb_qual_flag_v"] & 12) == 12)
    good = has_value & ((quality_flag & 6) == 0) & ((surface & (1 | 2 | 32 | 64 | 128 | 256)) == 0) & ~rfi
    if policy == "strict":
        good &= (quality_flag & 1) == 0
    if policy == "paper":
        good &= (surface & 16) == 0
    assert int(keep.sum()) == counts["kept"] == int(good.sum())
    reasons = set(counts) - {"cells", "retrieved", "kept"}
    assert counts["retrieved"] == counts["kept"] + sum(counts[r] for r in reasons) == 1333
    assert int(np.sum(recommended(ds) & ds.soil_moisture.notnull().values)) == 592


@pytest.mark.real_data
def test_a_product_without_flags_keeps_every_value(real: Real) -> None:
    ds = open_smap(real("smap/SMAP_L4_SM_aup_input.h5"))
    assert quality(ds, "strict")[2]["kept"] == 246473


def test_names_of_bits_and_policies_are_checked() -> None:
    ds = cells([0.2], [0])
    with pytest.raises(InputError, match="has no bit 'snow'"):
        flag_set(ds.surface_flag, "surface_flag", "snow")
    with pytest.raises(InputError, match="policy must be one of strict, paper, weighted"):
        quality(ds, "best")  # type: ignore[arg-type]
