"""The bytes of XGBoost models: what it writes is taken, what would crash, hang or mislead it is not."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from smscale.errors import InputError
from smscale.models.booster import check

rng = np.random.default_rng(0)
X = rng.normal(size=(300, 4)).astype(np.float32)
Y = X[:, 0] + X[:, 1] ** 2


def ubj(**settings: Any) -> bytes:
    model = xgboost.XGBRegressor(**{"n_estimators": 4, "max_depth": 3, "n_jobs": 1, **settings}).fit(X, Y)
    return bytes(model.get_booster().save_raw("ubj"))


WHOLE = ubj()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tree_method": "exact", "gamma": 5.0},
        {"tree_method": "approx", "grow_policy": "lossguide", "max_leaves": 9},
        {"num_parallel_tree": 3, "subsample": 0.5},
        {"monotone_constraints": (1, 0, 0, 0)},
        {"objective": "reg:absoluteerror"},
        {"objective": "reg:pseudohubererror"},
        {"n_estimators": 60, "max_depth": 8, "reg_lambda": 0.0},
        {"base_score": 0.25, "max_depth": 1},
    ],
)
def test_what_xgboost_writes_is_taken(settings: dict[str, Any]) -> None:
    check(ubj(**settings), 4)


def test_names_of_columns_are_taken() -> None:
    import pandas as pd

    model = xgboost.XGBRegressor(n_estimators=2, n_jobs=1).fit(pd.DataFrame(X, columns=list("abcd")), Y)
    check(bytes(model.get_booster().save_raw("ubj")), 4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (ubj(booster="dart"), "only gbtree"),
        (ubj(booster="gblinear"), "only gbtree"),
        (WHOLE + b"}", "bytes follow"),
        (WHOLE[:-1], "end early"),
        (b"", "end early"),
        (b"{" * 100_000, "."),
        (b"[#L" + (1 << 60).to_bytes(8, "big"), "longer than the data"),
        (b"[$d#L" + (1 << 60).to_bytes(8, "big"), "end early"),
        (b"[#l\xff\xff\xff\xff", "count"),
        (b"\xff", "."),
        (b"[" + b"#i\x01[" * 1000, "too deep"),
        (b"{i\x01aZi\x01aZ}", "stands twice"),
    ],
)
def test_other_bytes_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        check(data, 4)
    assert "\n" not in str(error.value)


def test_another_number_of_features_is_refused() -> None:
    with pytest.raises(InputError, match="num_feature '4', expected 5"):
        check(WHOLE, 5)


def changed(name: bytes, kind: str, change: Callable[[NDArray[Any]], object]) -> bytes:
    """The first tree's array of this name, changed."""
    start = WHOLE.index(b"L" + len(name).to_bytes(8, "big") + name + b"[$") + 9 + len(name)
    body = start + 5 + 8
    assert WHOLE[start + 3 : start + 5] == b"#L"
    count = int.from_bytes(WHOLE[start + 5 : body], "big")
    values = np.frombuffer(WHOLE, kind, count, body).copy()
    change(values)
    return WHOLE[:body] + values.tobytes() + WHOLE[body + values.nbytes :]


@pytest.mark.parametrize(
    ("name", "kind", "at", "value", "message"),
    [
        ("left_children", ">i4", 0, 0, "a child is no node"),
        ("left_children", ">i4", 1, 1, "two parents|a parent differs"),
        ("left_children", ">i4", 0, 10**6, "a child is no node"),
        ("right_children", ">i4", 0, -7, "a child is no node"),
        ("right_children", ">i4", 0, 3, "two parents"),
        ("right_children", ">i4", -1, 1, "one child"),
        ("parents", ">i4", 1, 5, "a parent differs"),
        ("split_indices", ">i4", 0, 4, "no feature"),
        ("split_indices", ">i4", 0, -1, "no feature"),
        ("split_conditions", ">f4", -1, np.nan, "NaN or infinite"),
        ("split_conditions", ">f4", 0, np.inf, "NaN or infinite"),
        ("split_type", ">u1", 0, 1, "by category"),
    ],
)
def test_forged_trees_are_refused(name: str, kind: str, at: int, value: float, message: str) -> None:
    def change(values: NDArray[Any]) -> None:
        values[at] = value

    with pytest.raises(InputError, match=message):
        check(changed(name.encode(), kind, change), 4)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"num_class\x53L" + (1).to_bytes(8, "big") + b"0", b"num_class\x53L" + (1).to_bytes(8, "big") + b"3"),
        (b"num_treesSL" + (1).to_bytes(8, "big") + b"4", b"num_treesSL" + (1).to_bytes(8, "big") + b"3"),
        (b"num_targetSL" + (1).to_bytes(8, "big") + b"1", b"num_targetSL" + (1).to_bytes(8, "big") + b"2"),
    ],
)
def test_forged_counts_are_refused(old: bytes, new: bytes) -> None:
    assert WHOLE.count(old) == 1
    with pytest.raises(InputError):
        check(WHOLE.replace(old, new), 4)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=300, deadline=None)
def test_what_passes_the_check_predicts_finite_values(seed: int) -> None:
    """Without the check about one such change in four ends XGBoost's process."""
    draws = np.random.default_rng(seed)
    data = bytearray(WHOLE)
    for _ in range(draws.integers(1, 4)):
        data[draws.integers(len(data))] ^= 1 << int(draws.integers(8))
    try:
        check(bytes(data), 4)
        booster = xgboost.Booster({"nthread": 1}, model_file=data)
    except (InputError, xgboost.core.XGBoostError):
        return
    assert np.isfinite(booster.inplace_predict(X)).all()
