"""Artefacts on disk, and the predictor that they become."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from smscale.errors import InputError
from smscale.models import artefact, load_model, make_predictor, save_model
from smscale.models.gabp import GABPRegressor
from smscale.models.table import Predictor

FEATURES = ("longitude", "lst", "ndvi", "wetness")


@pytest.fixture(scope="module")
def sample_table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(200, 4)) * [3, 10, 0.1, 1] + [100, 290, 0.5, 8]
    table = pd.DataFrame(values, columns=list(FEATURES))
    return table.assign(soil_moisture=0.2 + 0.01 * (table.lst - 290) * table.ndvi, cell=np.arange(200))


@pytest.fixture(scope="module")
def fitted(sample_table: pd.DataFrame) -> GABPRegressor:
    model = GABPRegressor(population=10, generations=3, members=2, max_steps=5, engine="numpy", random_state=0)
    return model.fit(sample_table[list(FEATURES)].to_numpy(), sample_table["soil_moisture"])


@pytest.fixture
def folder(tmp_path: Path, fitted: GABPRegressor, sample_table: pd.DataFrame) -> Path:
    return save_model(tmp_path / "gabp", fitted, FEATURES, sample_table, {"scores": {"rmse": 0.04, "kge": np.nan}})


@given(
    values=hnp.arrays(
        st.sampled_from([np.float64, np.float32, np.int64, np.int32, np.uint8, np.bool_]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    )
)
@settings(max_examples=40, deadline=None)
def test_arrays_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, values: NDArray[Any]) -> None:
    folder = artefact.save(tmp_path_factory.mktemp("a") / "m", "gabp", {"b": values, "a": values.T}, {"n": 1})
    kind, arrays, meta = artefact.load(folder)
    assert (kind, meta) == ("gabp", {"n": 1})
    assert arrays["b"].dtype == values.dtype
    np.testing.assert_array_equal(arrays["b"], values)
    np.testing.assert_array_equal(arrays["a"], values.T)


def test_same_model_gives_the_same_bytes_and_replaces_the_old(tmp_path: Path) -> None:
    arrays = {"b": np.arange(3.0), "a": np.ones((2, 2), np.float32)}
    one = artefact.save(tmp_path / "one", "rf", arrays, {"x": 1, "y": (1, 2)})
    two = artefact.save(tmp_path / "two", "rf", dict(reversed(arrays.items())), {"y": [1, 2], "x": np.int64(1)})
    for name in ("weights.safetensors", "model.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    artefact.save(one, "rf", {"a": np.zeros(1)}, {})
    assert artefact.load(one)[1].keys() == {"a"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_meta_holds_only_json_and_nan_becomes_null(tmp_path: Path) -> None:
    meta: Any = {
        "nan": np.nan,
        "inf": float("inf"),
        "array": np.arange(2),
        "path": Path("a"),
        "flag": np.bool_(True),
        3: None,
    }
    found = artefact.load(artefact.save(tmp_path / "m", "gabp", {}, meta))[2]
    assert found == {"nan": None, "inf": None, "array": [0, 1], "path": "a", "flag": True, "3": None}


def test_a_failed_save_leaves_the_old_artefact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = artefact.save(tmp_path / "m", "gabp", {"a": np.ones(1)}, {})

    def fail(path: Path, data: bytes) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(artefact, "_write", fail)
    with pytest.raises(OSError, match="disk full"):
        artefact.save(folder, "gabp", {"a": np.zeros(1)}, {})
    assert artefact.load(folder)[1]["a"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def edit_record(folder: Path, **changes: Any) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


SPOILERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights flipped": (lambda f: flip(f / "weights.safetensors", -3), "weights.safetensors: altered or truncated"),
    "weights cut": (
        lambda f: (f / "weights.safetensors").write_bytes((f / "weights.safetensors").read_bytes()[:-5]),
        "altered or truncated",
    ),
    "weights gone": (lambda f: (f / "weights.safetensors").unlink(), "cannot be read"),
    "record cut": (lambda f: (f / "model.json").write_text((f / "model.json").read_text()[:-30]), "truncated"),
    "record edited": (lambda f: edit_record(f, meta={"name": "better"}), "its own SHA-256 differs"),
    "kind edited": (lambda f: edit_record(f, kind="rf"), "its own SHA-256 differs"),
    "foreign": (lambda f: (f / "model.json").write_text('{"format": "onnx"}'), "not a model of smscale"),
    "a list": (lambda f: (f / "model.json").write_text("[1]"), "not a model of smscale"),
    "later version": (lambda f: edit_record(f, version=99), "version 99, this smscale reads 1"),
    "binary": (lambda f: (f / "model.json").write_bytes(b"\x80\x04\x95\xff"), "unreadable or truncated"),
    "record gone": (lambda f: (f / "model.json").unlink(), "not a model"),
}


@pytest.mark.parametrize("name", SPOILERS)
def test_spoiled_artefacts_are_refused_in_one_line(folder: Path, name: str) -> None:
    spoil, message = SPOILERS[name]
    spoil(folder)
    with pytest.raises(InputError, match=message) as error:
        load_model(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def test_unknown_kinds_and_incomplete_records_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="of kind 'svm'; known kinds: gabp, cnn, rf, xgb"):
        load_model(artefact.save(tmp_path / "a", "svm", {}, {}))
    with pytest.raises(InputError, match="incomplete model record"):
        load_model(artefact.save(tmp_path / "b", "gabp", {}, {"features": []}))


def test_a_folder_that_is_no_model_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(InputError, match="exists and is not a model"):
        artefact.save(tmp_path / "thesis", "gabp", {}, {})


def test_loaded_model_predicts_as_the_estimator(
    folder: Path, fitted: GABPRegressor, sample_table: pd.DataFrame
) -> None:
    x = sample_table[list(FEATURES)].to_numpy()
    found = load_model(folder)
    for predictor in (found, pickle.loads(pickle.dumps(found)), make_predictor(fitted, FEATURES, sample_table)):
        np.testing.assert_array_equal(predictor.predict(x), fitted.predict(x))
        np.testing.assert_array_equal(predictor.predict_table(sample_table), fitted.predict(x))
        np.testing.assert_array_equal(predictor.predict_planes(list(x.T)), fitted.predict(x))
    assert found.predict(x).dtype == np.float32
    assert (found.kind, found.name, found.features) == ("gabp", "gabp", FEATURES)
    assert found.units == ("degrees_east", "K", "1", "1")
    assert (found.target, found.target_units) == ("soil_moisture", "m3 m-3")
    np.testing.assert_array_equal(found.training_range, np.column_stack([x.min(axis=0), x.max(axis=0)]))
    assert found.meta["extra"] == {"scores": {"rmse": 0.04, "kge": None}}
    assert found.meta["versions"]["numpy"] == np.__version__
    assert found.meta["model"]["parameters"]["population"] == 10


def test_nothing_pickled_is_saved(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "weights.safetensors"]
    assert not (folder / "weights.safetensors").read_bytes().startswith(b"\x80")


def test_missing_features_give_nan_rows(folder: Path, sample_table: pd.DataFrame) -> None:
    x = sample_table[list(FEATURES)].to_numpy(copy=True)
    x[4, 1], x[9, 0] = np.nan, np.inf
    found = load_model(folder).predict(x)
    assert np.flatnonzero(np.isnan(found)).tolist() == [4, 9]
    assert load_model(folder).predict(x[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.drop(columns="lst"), "the table lacks lst; it needs longitude, lst, ndvi, wetness"),
        (lambda t: t[["lst", "longitude", "ndvi", "wetness"]], "stand as lst, longitude"),
        (lambda t: units(t, lst="degC"), "lst is in 'degC'; the model was trained on 'K'"),
    ],
)
def test_tables_of_other_features_order_or_units_are_refused(
    folder: Path, sample_table: pd.DataFrame, spoil: Callable[[pd.DataFrame], pd.DataFrame], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_model(folder).predict_table(spoil(sample_table))


def units(table: pd.DataFrame, **stated: str) -> pd.DataFrame:
    copy = table.copy()
    copy.attrs["units"] = stated
    return copy


def test_tables_that_state_the_right_units_are_taken(folder: Path, sample_table: pd.DataFrame) -> None:
    assert np.isfinite(load_model(folder).predict_table(units(sample_table, lst="K"))).all()


def test_arrays_of_another_width_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"needs \(n, 4\) values of longitude, lst, ndvi, wetness; got \(3, 5\)"):
        load_model(folder).predict(np.zeros((3, 5)))
    with pytest.raises(InputError, match="needs 4 planes"):
        load_model(folder).predict_planes([1.0])


class Doubling:
    """A model without planes of its own."""

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        assert x.dtype == np.float32
        assert x.flags.c_contiguous
        assert np.isfinite(x).all()
        return x[:, 0] * 2 + x[:, 1]


def test_models_without_planes_get_stacked_finite_cells() -> None:
    limits = np.array([[0.0, 9.0], [0.0, 9.0]])
    predictor = Predictor("rf", "double", ("a", "b"), ("1", "1"), "t", "1", limits, {}, Doubling())
    cube = np.arange(24.0).reshape(2, 3, 4)
    cube[1, 2, 3] = np.nan
    found = predictor.predict_planes([cube, np.array([10.0, 20, 30])[:, None]])
    expected = cube * 2 + np.array([10.0, 20, 30])[:, None]
    np.testing.assert_array_equal(found, expected)


def test_outside_range_marks_extrapolation_and_not_what_is_missing(folder: Path) -> None:
    found = load_model(folder)
    middle = found.training_range.mean(axis=1)
    rows = np.stack([middle, middle, middle, middle])
    rows[1, 2], rows[2, 1] = 9.0, -9.0
    rows[3, 0] = np.nan
    assert found.outside_range(rows).tolist() == [False, True, True, False]
    edges = found.training_range.T.astype(np.float32)
    assert not found.outside_range(edges).any()


def test_models_that_predict_nan_are_never_saved(
    tmp_path: Path, fitted: GABPRegressor, sample_table: pd.DataFrame
) -> None:
    spoiled = pickle.loads(pickle.dumps(fitted))
    spoiled.network_["b2"] = np.asarray(np.nan)
    with pytest.raises(InputError, match="NaN or infinity"):
        save_model(tmp_path / "m", spoiled, FEATURES, sample_table)
    assert not (tmp_path / "m").exists()


def test_estimators_of_no_known_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="object: no artefact is known"):
        save_model(tmp_path / "m", object(), ["a"], np.zeros((2, 1)))


def test_what_a_killed_writer_left_is_removed(tmp_path):
    (tmp_path / ".rf-abc").mkdir()
    artefact.save(tmp_path / "rf", "rf", {"a": np.zeros(3)}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["rf"]
