"""What CNNRegressor refuses, in one line, or holds within bounds: settings, tables, predictors, checkpoints."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smscale.errors import InputError
from smscale.models.cnn import CNNRegressor
from smscale.models.ridge import PENALTIES, held_out_lines, penalty_shares
from smscale.models.samples import held_within, merge_rows

FAST: dict[str, Any] = {"epochs": 2, "filters": (4, 4, 4, 4), "members": 2, "random_state": 0}


def made(rows: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(rows, 5))
    return X, 0.2 + 0.05 * X[:, 0] + 0.01 * rng.normal(size=rows)


def refusal(settings: dict[str, Any], X: Any = None, y: Any = None) -> str:
    """The one line with which `fit` refuses."""
    table, target = made()
    with pytest.raises(InputError) as refused:
        CNNRegressor(**(FAST | settings)).fit(table if X is None else X, target if y is None else y)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", "x"),
        ("epochs", True),
        ("filters", 5),
        ("filters", "abcd"),
        ("filters", (4, 4, 4, 0.5)),
        ("dropout", None),
        ("learning_rate", float("nan")),
        ("weight_decay", -1),
        ("batch_size", 2.5),
        ("patience", "a"),
        ("patch", 2.5),
        ("members", 0),
        ("clip", 0),
        ("ridge", "yes"),
        ("validation", ["rows"]),
        ("validation_fraction", 1),
        ("devices", 0),
        ("devices", "x"),
        ("accelerator", "abacus"),
        ("accelerator", 1),
        ("checkpoint", 3),
        ("trainer_options", 5),
        ("random_state", "x"),
    ],
)
def test_setting_of_a_wrong_kind_is_one_line_that_names_it(name: str, value: Any) -> None:
    line = refusal({name: value})
    assert name in line
    assert repr(value) in line


def test_numpy_numbers_are_numbers() -> None:
    X, y = made()
    settings = FAST | {"epochs": np.int64(2), "dropout": np.float32(0.1), "filters": np.array([4, 4, 4, 4])}
    assert np.isfinite(CNNRegressor(**settings).fit(X, y).predict(X)).all()


def test_more_devices_than_there_are_is_refused() -> None:
    assert "CPUs" in refusal({"accelerator": "cpu", "devices": (os.cpu_count() or 1) + 97})


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="needs a machine without CUDA")
@pytest.mark.parametrize("accelerator", ["gpu", "cuda"])
def test_accelerator_that_is_not_there_is_refused(accelerator: str) -> None:
    assert "CUDA" in refusal({"accelerator": accelerator})


@pytest.mark.parametrize(
    ("options", "said"),
    [({"foo": 1}, "has no foo"), ({"max_epochs": 3}, "leave max_epochs"), ({"precision": "soft"}, "soft")],
)
def test_trainer_options_that_lightning_does_not_take_are_named(options: dict[str, Any], said: str) -> None:
    assert said in refusal({"trainer_options": options})


@pytest.mark.parametrize("kind", [str, object])
def test_words_are_no_target(kind: Any) -> None:
    assert "dry" in refusal({}, y=np.array(["dry"] * 40, dtype=kind))


def test_dates_are_no_target() -> None:
    assert "y must hold numbers" in refusal({}, y=np.arange(40).astype("datetime64[D]"))


def test_target_beyond_float32_is_refused() -> None:
    assert "rescale" in refusal({}, y=made()[1] * 1e40)


def test_predictors_are_held_within_deviations_and_range_of_training() -> None:
    X, y = made()
    X[0, 1] = 50.0
    network = CNNRegressor(**FAST).fit(X, y)
    samples, lower, upper = held_within(merge_rows(X, y, np.ones(40), None), 2.5)
    np.testing.assert_allclose(upper[1], X[:, 1].mean() + 2.5 * X[:, 1].std())
    np.testing.assert_allclose(lower, np.maximum(X.min(axis=0), X.mean(axis=0) - 2.5 * X.std(axis=0)))
    assert samples.X[:, 1].max() == upper[1]
    far = X[:4].copy()
    far[0, 0], far[1, 1], far[2, 2] = 1e300, -1e39, 1e9
    # Bounds are kept standardised: a rounding of float64.
    np.testing.assert_allclose(network.predict(far), network.predict(np.clip(far, lower, upper)), rtol=1e-6)


@pytest.mark.parametrize("value", [1e300, -1e300, 1e39, -1e39])
def test_estimate_that_float32_cannot_hold_is_an_error_without_bounds(value: float) -> None:
    X, y = made()
    network = CNNRegressor(**(FAST | {"clip": None})).fit(X, y)
    far = X[:3].copy()
    far[1, 1] = value
    with pytest.raises(InputError, match="row 1"):
        network.predict(far)


def test_infinity_of_standardised_float32_is_an_error_without_bounds() -> None:
    X, y = made()
    network = CNNRegressor(**(FAST | {"clip": None})).fit(X * 1e-3, y)
    far = (X[:3] * 1e-3).astype(np.float32)
    far[2, 4] = -3e38
    with pytest.raises(InputError, match="row 2"):
        network.predict(far)


# Checkpoints


def only(folder: Path) -> Path:
    (path,) = folder.glob("*.ckpt")
    return path


def test_checkpoint_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "within"):
        assert str(folder) in refusal({"checkpoint": folder})


def test_checkpoint_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    CNNRegressor(**FAST, checkpoint=first).fit(*made())
    name = only(first).name
    (second / f"{name}.part").mkdir(parents=True)
    line = refusal({"checkpoint": second})
    assert name in line
    assert "cannot be written" in line


@pytest.mark.parametrize("content", [b"", b"something else", None])
def test_foreign_or_truncated_checkpoint_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    CNNRegressor(**FAST, checkpoint=tmp_path).fit(*made())
    path = only(tmp_path)
    path.write_bytes(path.read_bytes()[:-500] if content is None else content)
    assert str(path) in refusal({"checkpoint": tmp_path})


def test_checkpoint_of_another_training_under_this_ones_name_is_refused(tmp_path: Path) -> None:
    X, y = made()
    CNNRegressor(**FAST, checkpoint=tmp_path / "own").fit(X, y)
    CNNRegressor(**FAST, checkpoint=tmp_path / "other").fit(X, y + 0.01 * X[:, 1])
    own, other = only(tmp_path / "own"), only(tmp_path / "other")
    assert own.name != other.name
    own.write_bytes(other.read_bytes())
    assert other.stem in refusal({"checkpoint": tmp_path / "own"})


# The line beneath the networks


def test_penalties_share_as_their_errors_on_whole_groups_tell() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3))
    group, weight = np.repeat(np.arange(4), 50), np.ones(200)
    y = X @ [1.0, -0.5, 0.2] + 0.1 * rng.normal(size=200)
    folds = [(np.flatnonzero(group != g), np.flatnonzero(group == g)) for g in range(4)]
    errors = np.zeros(PENALTIES.size)
    for (_, held), lines in zip(folds, held_out_lines(X, y, weight, folds, PENALTIES), strict=True):
        errors += ((lines.at(X[held]) - y[held, None]) ** 2).sum(axis=0)
    wanted = np.exp(-4 / 2 * np.log(errors))
    # Sums in another order.
    np.testing.assert_allclose(penalty_shares(X, y, weight, group, 0), wanted / wanted.sum(), rtol=1e-9)


def test_line_that_fits_wholly_has_all_of_the_share() -> None:
    X = np.zeros((20, 2))
    shares = penalty_shares(X, np.zeros(20), np.ones(20), np.repeat(np.arange(5), 4), 0)
    np.testing.assert_allclose(shares.sum(), 1.0)
    assert np.isfinite(shares).all()
