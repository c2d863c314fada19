"""Why a cell has no value, what a map keeps of a model's, and a map corrected in place: against plain NumPy."""

import numpy as np
import pytest

from smscale.fusion.residuals import Difference, Ratio
from smscale.kernels import correction, marks
from smscale.pipeline.prediction import Held, _runs
from smscale.schema import Status

BOUNDS = (0.0, 0.6)
SHAPE = (3, 7, 21)


def made(rng: np.random.Generator, low: float = -0.1, high: float = 0.8) -> np.ndarray:
    """Values of which some are NaN and some infinite."""
    values = rng.uniform(low, high, SHAPE).astype(np.float32)
    values[rng.random(SHAPE) < 0.2] = np.nan
    values[rng.random(SHAPE) < 0.05] = np.inf
    return values


def test_cells_without_a_number_are_marked_beside_what_they_were() -> None:
    rng = np.random.default_rng(0)
    plane, status = made(rng), np.full(SHAPE, Status.WATER_ICE_URBAN, np.uint32)
    marks.mark_missing(status, plane, np.uint32(Status.NO_LST))
    np.testing.assert_array_equal(status & Status.NO_LST > 0, ~np.isfinite(plane))
    assert (status & Status.WATER_ICE_URBAN > 0).all()


@pytest.mark.parametrize("some_filled", [False, True])
def test_what_a_model_said_is_held_within_bounds_and_marked(some_filled: bool) -> None:
    rng = np.random.default_rng(1)
    raw, outside = made(rng), rng.random(SHAPE[1:]) < 0.3
    filled = rng.random(SHAPE) < 0.3 if some_filled else None
    why = np.where(rng.random(SHAPE) < 0.4, np.uint32(Status.NO_LST), np.uint32(0))
    values, status = np.empty(SHAPE, np.float32), why.copy()
    marks.settle(raw, outside, filled, BOUNDS, values, status)
    shown = np.where(why > 0, np.nan, raw)
    known = np.isfinite(shown)
    np.testing.assert_array_equal(values, np.clip(shown, *np.float32(BOUNDS)))
    expected = why.copy()
    expected[known & outside] |= np.uint32(Status.OUTSIDE_TRAINING_RANGE)
    expected[known & ((raw < 0) | (raw > np.float32(0.6)))] |= np.uint32(Status.CLIPPED)
    if filled is not None:
        expected[known & filled] |= np.uint32(Status.NEIGHBOURS_FILLED)
    np.testing.assert_array_equal(status, expected)


@pytest.mark.parametrize("residual", [Difference(), Ratio(floor=0.05)], ids=lambda r: r.name)
def test_in_place_a_field_becomes_the_map_and_its_variance_the_maps(residual: Difference | Ratio) -> None:
    rng = np.random.default_rng(2)
    background, field = made(rng, 0.0, 0.5), made(rng, residual.nothing - 0.2, residual.nothing + 0.2)
    method = np.array([Status.FUSED_KRIGING, Status.FUSED_IDW, Status.FUSED_MEAN_RESIDUAL], np.uint32)
    why = np.where(rng.random(SHAPE) < 0.4, np.uint32(Status.LST_FILLED), np.uint32(0))
    floor = residual.floor if isinstance(residual, Ratio) else None
    plain, plain_status, plain_counts = correction.correct(background, field, method, floor, BOUNDS)
    known, given = np.isfinite(background), np.isfinite(field)
    with np.errstate(invalid="ignore"):  # of an infinite background
        raw = residual.apply(background, np.where(given, field, np.float32(np.nan)))
    np.testing.assert_allclose(plain, np.where(known, np.clip(raw, *BOUNDS), np.nan), atol=1e-7)

    status, spread = np.empty(SHAPE, np.uint32), field.copy()
    counts = correction.correct_in_place(background, spread, method, floor, BOUNDS, status, why)
    np.testing.assert_array_equal(spread, plain)
    np.testing.assert_array_equal(status, plain_status | why)
    assert counts.tolist() == plain_counts.tolist() == [(known & given).sum(), (known & ~given).sum(), counts[2]]

    variance = rng.uniform(0, 1, SHAPE).astype(np.float32)
    expected = residual.map_variance(background, variance)
    correction.vary_in_place(background, variance, floor)
    np.testing.assert_array_equal(variance, expected)


def test_a_composite_is_one_plane_in_each_run_of_steps() -> None:
    moving = Held(np.arange(6.0)[:, None, None], np.arange(6))
    composite = Held(np.array([5.0, 7.0])[:, None, None], np.array([0, 0, 0, 0, 1, 1]))
    odd = Held(np.array([1.0, 2.0, 3.0])[:, None, None], np.array([0, 2, 2, 1, 1, 1]))
    still = Held(np.ones((1, 1, 1)), np.zeros(6, np.int64))
    held = {"moving": moving, "composite": composite, "odd": odd, "still": still}
    runs = _runs(held, 6)
    assert runs == [slice(0, 1), slice(1, 3), slice(3, 4), slice(4, 6)]
    assert all(len(held[name].at(run)) == 1 for name in ("composite", "odd", "still") for run in runs)
    for planes in held.values():
        for steps in (slice(0, 6), slice(1, 3), slice(2, 6), slice(5, 6)):
            found = np.broadcast_to(planes.at(steps), (steps.stop - steps.start, 1, 1))
            np.testing.assert_array_equal(found, planes.planes[planes.which[steps]])
