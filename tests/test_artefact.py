"""Artefacts on disk, and the predictor that they become: what is kept, what is refused, what survives."""

import errno
import json
import os
import pickle
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
import xgboost
from dask.base import tokenize
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from safetensors.numpy import save as safetensors_bytes
from sklearn.ensemble import RandomForestRegressor

from smscale.errors import InputError
from smscale.models import artefact, load_model, make_predictor, save_model
from smscale.models.cnn import CNNRegressor
from smscale.models.gabp import GABPRegressor
from smscale.models.record import Feature
from smscale.models.table import Predictor

FEATURES = ("longitude", "lst", "ndvi", "land_cover")
CLASSES = (1, 4, 5, 10, 12)
KINDS = ("gabp", "cnn", "rf", "xgb")
PROVENANCE = {"recipe": "ab12", "data": "cd34", "fine_grid": "0.01 degrees", "period": "2017-06-10 to 2017-11-30"}
SCORES = {"validation": {"rmse": 0.04, "kge": np.nan}, "training": {"rmse": 0.03}}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(200, 4)) * [3, 10, 0.1, 1] + [100, 290, 0.5, 0]
    values[:, 3] = rng.choice(CLASSES, 200)
    found = pd.DataFrame(values.astype(np.float32), columns=list(FEATURES))
    return found.assign(soil_moisture=0.2 + 0.01 * (found.lst - 290) * found.ndvi, cell=np.arange(200))


@pytest.fixture(scope="module")
def X(table: pd.DataFrame) -> NDArray[np.float32]:
    return table[list(FEATURES)].to_numpy()


class Fitted(dict[str, Any]):
    """Estimators by kind, each fitted when first asked for."""

    def __init__(self, table: pd.DataFrame):
        super().__init__()
        self.table = table

    def __missing__(self, kind: str) -> Any:
        made = {
            "gabp": lambda: GABPRegressor(
                population=10, generations=3, members=2, max_steps=5, engine="numpy", random_state=0
            ),
            "cnn": lambda: CNNRegressor(epochs=2, filters=(4, 4, 4, 4), random_state=0),
            "rf": lambda: RandomForestRegressor(8, max_depth=5, random_state=0),
            "xgb": lambda: xgboost.XGBRegressor(n_estimators=8, max_depth=3, n_jobs=1),
        }
        self[kind] = made[kind]().fit(self.table[list(FEATURES)].to_numpy(), self.table["soil_moisture"])
        return self[kind]


@pytest.fixture(scope="module")
def estimators(table: pd.DataFrame) -> Fitted:
    return Fitted(table)


@pytest.fixture
def saved(tmp_path: Path, estimators: Fitted, table: pd.DataFrame) -> Callable[[str], Path]:
    def save(kind: str) -> Path:
        return save_model(tmp_path / kind, estimators[kind], FEATURES, table, PROVENANCE, SCORES)

    return save


@pytest.fixture
def folder(saved: Callable[[str], Path]) -> Path:
    return saved("gabp")


def weights_of(folder: Path) -> Path:
    (path,) = folder.glob("weights-*.safetensors")
    return path


# -- what is kept -------------------------------------------------------------------------------


@given(
    values=hnp.arrays(
        st.sampled_from([np.float64, np.float32, np.int64, np.int32, np.uint8, np.bool_]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    )
)
@settings(max_examples=40, deadline=None)
def test_arrays_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, values: NDArray[Any]) -> None:
    folder = artefact.save(tmp_path_factory.mktemp("a") / "m", "gabp", {"b": values, "a": values.T}, {"n": 1})
    found = artefact.load(folder)
    assert (found.kind, found.meta) == ("gabp", {"n": 1})
    assert found.arrays["b"].dtype == values.dtype
    np.testing.assert_array_equal(found.arrays["b"], values)
    np.testing.assert_array_equal(found.arrays["a"], values.T)


def test_same_arrays_give_the_same_bytes_and_replace_the_old(tmp_path: Path) -> None:
    arrays = {"b": np.arange(3.0), "a": np.ones((2, 2), np.float32)}
    one = artefact.save(tmp_path / "one", "rf", arrays, {"x": 1, "y": (1, 2)})
    two = artefact.save(tmp_path / "two", "rf", dict(reversed(arrays.items())), {"y": [1, 2], "x": np.int64(1)})
    assert bytes_of(one) == bytes_of(two)
    artefact.save(one, "rf", {"a": np.zeros(1)}, {})
    assert artefact.load(one).arrays.keys() == {"a"}
    assert len(bytes_of(one)) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_meta_holds_only_json_and_nan_becomes_null(tmp_path: Path) -> None:
    meta: Any = {
        "nan": np.nan,
        "inf": float("inf"),
        "array": np.arange(2),
        "path": Path("a"),
        "flag": np.bool_(True),
        "day": np.datetime64("2017-06-10", "ns"),
        "days": np.array(["2017-06-10"], "datetime64[ns]"),
        "type": np.dtype("f4"),
        "object": object(),
        3: None,
    }
    found = artefact.load(artefact.save(tmp_path / "m", "gabp", {}, meta)).meta
    assert found == {
        "nan": None,
        "inf": None,
        "array": [0, 1],
        "path": "a",
        "flag": True,
        "day": "2017-06-10T00:00:00.000000000",
        "days": ["2017-06-10T00:00:00.000000000"],
        "type": "float32",
        "object": "object",
        "3": None,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_saving_twice_gives_the_same_bytes_and_loading_the_same_predictions(
    tmp_path: Path, estimators: Fitted, table: pd.DataFrame, X: NDArray[np.float32], kind: str
) -> None:
    one = save_model(tmp_path / "one", estimators[kind], FEATURES, table, PROVENANCE, SCORES)
    two = save_model(
        tmp_path / "two", pickle.loads(pickle.dumps(estimators[kind])), FEATURES, table, PROVENANCE, SCORES
    )
    assert bytes_of(one) == bytes_of(two)
    expected = estimators[kind].predict(X).astype(np.float32)
    found = load_model(one)
    in_memory = make_predictor(estimators[kind], FEATURES, table, PROVENANCE, SCORES)
    assert in_memory.fingerprint == found.fingerprint
    for predictor in (found, pickle.loads(pickle.dumps(found)), in_memory):
        assert predictor == found
        for values in (predictor.predict(X), predictor.predict_table(table), predictor.predict_planes(list(X.T))):
            assert values.dtype == np.float32
            np.testing.assert_array_equal(values, expected)


def test_another_process_predicts_the_same(
    tmp_path: Path, saved: Callable[[str], Path], X: NDArray[np.float32]
) -> None:
    for kind in KINDS:
        saved(kind)
    np.save(tmp_path / "x.npy", X)
    code = """
        import sys
        import numpy as np
        from pathlib import Path
        from smscale.models import load_model
        root = Path(sys.argv[1])
        for kind in sys.argv[2:]:
            model = load_model(root / kind)
            print(hash(model))
            np.save(root / f"{kind}.npy", model.predict(np.load(root / "x.npy")))
    """
    out = run_python(code, str(tmp_path), *KINDS)
    assert out.split() == [str(hash(load_model(tmp_path / kind))) for kind in KINDS]
    for kind in KINDS:
        np.testing.assert_array_equal(np.load(tmp_path / f"{kind}.npy"), load_model(tmp_path / kind).predict(X))


def run_python(code: str, *arguments: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_record_says_what_the_model_is(folder: Path, X: NDArray[np.float32], estimators: Fitted) -> None:
    found = load_model(folder)
    assert (found.kind, found.name, found.features) == ("gabp", "gabp", FEATURES)
    assert found.units == ("degrees_east", "K", "1", "1")
    assert (found.target, found.target_units) == ("soil_moisture", "m3 m-3")
    np.testing.assert_array_equal(found.training_range, np.column_stack([X.min(axis=0), X.max(axis=0)]))
    lst = found.seen[1]
    np.testing.assert_allclose([lst.below, lst.above], np.quantile(X[:, 1].astype(float), [0.01, 0.99]))
    assert [feature.classes for feature in found.seen] == [None, None, None, CLASSES]
    assert found.provenance == {**PROVENANCE, "rows": 200}
    assert found.scores == {"training": {"rmse": 0.03}, "validation": {"rmse": 0.04, "kge": None}}
    assert found.meta["versions"]["numpy"] == np.__version__
    assert found.meta["model"]["parameters"]["population"] == 10
    record = json.loads((folder / "model.json").read_text())["meta"]["standardiser"]
    network = estimators["gabp"].network_
    assert [record["features"][name]["mean"] for name in FEATURES] == network["mean"].tolist()
    assert [record["features"][name]["scale"] for name in FEATURES] == network["scale"].tolist()
    assert record["target"] == {"mean": float(network["target_mean"]), "scale": float(network["target_scale"])}


@pytest.mark.parametrize("kind", KINDS)
def test_the_card_names_every_feature_score_and_origin(saved: Callable[[str], Path], kind: str) -> None:
    found = load_model(saved(kind))
    card = found.describe()
    for text in (
        kind,
        *FEATURES,
        "degrees_east",
        "classes 1, 4, 5, 10, 12",
        "0.04",
        "ab12",
        "0.01 degrees",
        np.__version__,
    ):
        assert text in card
    assert all(line == line.rstrip() for line in card.splitlines())
    assert repr(found) == f"<Predictor {kind} ({kind}): soil_moisture from longitude, lst, ndvi, land_cover>"


def test_the_card_in_a_notebook_escapes_what_a_stranger_wrote(estimators: Fitted, table: pd.DataFrame) -> None:
    found = make_predictor(estimators["rf"], FEATURES, table, {"recipe": "<script>"})
    assert "&lt;script&gt;" in found._repr_html_()
    assert "<script>" not in found._repr_html_()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_pickled_is_saved(saved: Callable[[str], Path], kind: str) -> None:
    folder = saved(kind)
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", weights_of(folder).name]
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(weights_of(folder).read_bytes())


# -- what is not saved --------------------------------------------------------------------------


def test_models_that_predict_nan_are_never_saved(tmp_path: Path, estimators: Fitted, table: pd.DataFrame) -> None:
    spoiled = pickle.loads(pickle.dumps(estimators["gabp"]))
    spoiled.network_["b2"] = np.asarray(np.nan)
    with pytest.raises(InputError, match="NaN or infinity"):
        save_model(tmp_path / "m", spoiled, FEATURES, table)
    assert not (tmp_path / "m").exists()


def test_estimators_of_no_known_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="object: no artefact is known"):
        save_model(tmp_path / "m", object(), ["a"], np.zeros((2, 1)))


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (("lst", "lst", "ndvi", "land_cover"), {}, "each named once"),
        (FEATURES[:3], {}, "3 features|trained on 4"),
        (("elevation", *FEATURES[1:]), {}, "the training table lacks elevation"),
        (FEATURES, {"name": "two\nlines"}, "name must be one line of text"),
        (FEATURES, {"units": {"lst": ""}}, "unit of lst must be one line"),
        (FEATURES, {"scores": {"rmse": 0.04}}, "scores must be numbers by name"),
    ],
)
def test_records_that_could_not_be_read_again_are_not_written(
    tmp_path: Path,
    estimators: Fitted,
    table: pd.DataFrame,
    features: tuple[str, ...],
    options: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(InputError, match=message):
        save_model(tmp_path / "m", estimators["rf"], features, table, **options)
    assert not (tmp_path / "m").exists()


def test_a_feature_without_any_value_is_refused(estimators: Fitted, X: NDArray[np.float32]) -> None:
    empty = X.copy()
    empty[:, 1] = np.nan
    with pytest.raises(InputError, match="feature lst: no training row has a value"):
        make_predictor(estimators["rf"], FEATURES, empty)


# -- what was altered ---------------------------------------------------------------------------


def record_text(folder: Path) -> str:
    return (folder / "model.json").read_text()


def assert_refused(folder: Path, what: str) -> None:
    try:
        load_model(folder)
    except InputError as found:
        message = str(found)
    else:
        pytest.fail(f"{what} was taken")
    assert "\n" not in message, what
    assert str(folder) in message, what


def swap(old: str, new: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        text = re.sub(old, new, record_text(folder), count=1, flags=re.DOTALL)
        assert text != record_text(folder)
        (folder / "model.json").write_text(text)

    return spoil


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        record = json.loads(record_text(folder))
        change(record)
        (folder / "model.json").write_text(json.dumps(record))

    return spoil


def write(data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.json").write_bytes(data)


def weights(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda folder: weights_of(folder).write_bytes(change(weights_of(folder).read_bytes()))


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def folder_in_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe_in_place(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link_in_place(path: Path, target: Path | str) -> None:
    path.unlink()
    path.symlink_to(target)


def torch_file(folder: Path) -> None:
    torch.save({"w1": torch.zeros(3)}, weights_of(folder))


ALTERED = "its own SHA-256 differs"
WEIGHTS = "altered or truncated"
SPOILERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a digit of the weights' hash": (swap('"weights_sha256": "(.)', '"weights_sha256": "g'), ALTERED),
    "a feature renamed": (swap('"name": "lst"', '"name": "evi"'), ALTERED),
    "the order swapped": (edit(lambda r: r["meta"]["features"].reverse()), ALTERED),
    "a unit changed": (swap('"units": "K"', '"units": "C"'), ALTERED),
    "a range changed": (swap('"max": [0-9]', '"max": 9'), ALTERED),
    "a score changed": (swap("0.04", "0.02"), ALTERED),
    "another kind": (edit(lambda r: r.update(kind="rf")), ALTERED),
    "a key added": (edit(lambda r: r.update(note="x")), ALTERED),
    "its own hash gone": (edit(lambda r: r.pop("record_sha256")), ALTERED),
    "no meta": (edit(lambda r: r.pop("meta")), ALTERED),
    "no kind": (edit(lambda r: r.pop("kind")), ALTERED),
    "a repeated key": (swap('"kind":', '"kind": "gabp", "kind":'), "a key stands twice"),
    "a NaN": (swap("0.04", "NaN"), "NaN is no JSON"),
    "an infinity": (swap("0.04", "-Infinity"), "-Infinity is no JSON"),
    "a number beyond floats": (swap("0.04", "1e999"), "unreadable or truncated"),
    "an endless number": (swap("0.04", "9" * 5000), "unreadable or truncated"),
    "a long number": (swap("0.04", "9" * 4000), ALTERED),
    "deep lists": (write(b"[" * 100_000), "unreadable or truncated"),
    "deep objects": (write(b'{"format": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001), "unreadable or truncated"),
    "not UTF-8": (write(b'{"format": "\xff\xfe"}'), "unreadable or truncated"),
    "UTF-16": (lambda f: (f / "model.json").write_text(record_text(f), "utf-16"), "unreadable or truncated"),
    "empty": (write(b""), "unreadable or truncated"),
    "cut": (lambda f: (f / "model.json").write_text(record_text(f)[:-30]), "unreadable or truncated"),
    "a pickle": (write(pickle.dumps({"format": "smscale-model"})), "unreadable or truncated"),
    "foreign": (write(b'{"format": "onnx"}'), "not a model of smscale"),
    "a list": (write(b"[1]"), "not a model of smscale"),
    "null": (write(b"null"), "not a model of smscale"),
    "a later version": (edit(lambda r: r.update(version=99)), "version 99, this smscale reads 2"),
    "version 1": (edit(lambda r: r.update(version=1)), "version 1, this smscale reads 2"),
    "version in words": (edit(lambda r: r.update(version="x" * 10_000)), "version 'xxx"),
    "version true": (edit(lambda r: r.update(version=True)), "version True"),
    "gone": (lambda f: (f / "model.json").unlink(), "not a model"),
    "a folder in its place": (lambda f: folder_in_place(f / "model.json"), "is not a file"),
    "a pipe in its place": (lambda f: pipe_in_place(f / "model.json"), "is not a file"),
    "a device in its place": (lambda f: link_in_place(f / "model.json", "/dev/zero"), "is not a file"),
    "a link to itself": (lambda f: link_in_place(f / "model.json", "model.json"), "cannot be read"),
    "far too long": (lambda f: os.truncate(f / "model.json", 1 << 40), WEIGHTS),
    **{f"weights cut to {n}/8": (weights(lambda d, n=n: d[: len(d) * n // 8]), WEIGHTS) for n in range(8)},  # type: ignore[misc]
    **{f"weights flipped at {n}/8": (weights(lambda d, n=n: flipped(d, len(d) * n // 8)), WEIGHTS) for n in range(8)},  # type: ignore[misc]
    "weights flipped at the end": (weights(lambda d: flipped(d, len(d) - 1)), WEIGHTS),
    "weights longer": (weights(lambda d: d + b"\0"), WEIGHTS),
    "weights longer than the machine": (lambda f: os.truncate(weights_of(f), 1 << 42), WEIGHTS),
    "an absurd header": (weights(lambda d: (1 << 60).to_bytes(8, "little") + d[8:]), WEIGHTS),
    "weights gone": (lambda f: weights_of(f).unlink(), "is missing"),
    "weights a folder": (lambda f: folder_in_place(weights_of(f)), "is not a file"),
    "weights a pipe": (lambda f: pipe_in_place(weights_of(f)), "is not a file"),
    "weights a link to nothing": (lambda f: link_in_place(weights_of(f), "/nowhere"), "is missing"),
    "weights a link elsewhere": (lambda f: link_in_place(weights_of(f), f / "model.json"), WEIGHTS),
    "weights a pickle": (weights(lambda d: pickle.dumps(d)), WEIGHTS),
    "weights of torch": (torch_file, WEIGHTS),
}


@pytest.mark.parametrize("name", SPOILERS)
def test_spoiled_artefacts_are_refused_in_one_line(folder: Path, name: str) -> None:
    spoil, message = SPOILERS[name]
    spoil(folder)
    with pytest.raises(InputError) as error:
        load_model(folder)
    assert re.search(message, str(error.value)), error.value
    assert_one_line(error, folder)


def assert_one_line(error: pytest.ExceptionInfo[InputError], folder: Path) -> None:
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)
    assert len(str(error.value).replace(str(folder), "")) < 400


def test_weights_of_another_model_are_refused(saved: Callable[[str], Path]) -> None:
    one, other = saved("gabp"), saved("rf")
    weights_of(one).write_bytes(weights_of(other).read_bytes())
    with pytest.raises(InputError, match=WEIGHTS):
        load_model(one)


def test_no_byte_of_a_record_can_be_changed_in_meaning(tmp_path: Path) -> None:
    meta = {"name": "m", "features": [{"name": "lst", "min": -1.5, "max": 2, "flag": True, "none": None}]}
    folder = artefact.save(tmp_path / "m", "gabp", {"a": np.arange(3.0)}, meta)
    text, before = record_text(folder), artefact.load(folder)
    taken = 0
    for at, old in enumerate(text):
        for new in {"digit": "07", "alpha": "aZ"}.get(
            "digit" if old.isdigit() else "alpha" if old.isalpha() else "", '" '
        ):
            if new == old:
                continue
            (folder / "model.json").write_text(text[:at] + new + text[at + 1 :])
            try:
                found = artefact.load(folder)
            except InputError:
                continue
            taken += 1
            assert (found.kind, found.meta, found.fingerprint) == (before.kind, before.meta, before.fingerprint)
    assert taken < text.count("\n") + text.count(" ")  # white space alone means nothing


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "none", tmp_path / "file", tmp_path):
        with pytest.raises(InputError, match="not a model"):
            load_model(path)


# -- forgeries whose checksums are right --------------------------------------------------------


def forge(
    folder: Path,
    arrays: dict[str, Any] | None = None,
    meta: Callable[[dict[str, Any]], object] | None = None,
    **rest: Any,
) -> None:
    found = artefact.load(folder)
    parts = {**found.arrays, **(arrays or {})}
    parts = {name: values for name, values in parts.items() if values is not None}
    if meta is not None:
        meta(found.meta)
    artefact.save(folder, rest.get("kind", found.kind), parts, found.meta)


def feature(number: int, **changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda meta: meta["features"][number].update(changes)


def reseal(folder: Path, weights: bytes) -> None:
    """Any bytes as weights, and a record that vouches for them."""
    import hashlib

    record = json.loads(record_text(folder))
    weights_of(folder).unlink()
    record |= {"weights_sha256": hashlib.sha256(weights).hexdigest(), "weights_bytes": len(weights)}
    del record["record_sha256"]
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
    (folder / "model.json").write_text(json.dumps({**record, "record_sha256": hashlib.sha256(canonical).hexdigest()}))
    (folder / f"weights-{record['weights_sha256'][:16]}.safetensors").write_bytes(weights)


def header(text: bytes, body: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text + body


BYTES = {
    "empty": b"",
    "a header of 2^60 bytes": (1 << 60).to_bytes(8, "little") + b"{}",
    "a pickle": pickle.dumps({"w1": [1.0]}),
    "no JSON": header(b"x" * 16),
    "deep JSON": header(b'{"a":' * 5000),
    "absurd shape": header(b'{"w1":{"dtype":"F64","shape":[4611686018427387904,4],"data_offsets":[0,8]}}', b"\0" * 8),
    "shape beyond the data": header(b'{"w1":{"dtype":"F64","shape":[100],"data_offsets":[0,8]}}', b"\0" * 8),
    "offsets outside": header(b'{"w1":{"dtype":"F64","shape":[1],"data_offsets":[800,808]}}', b"\0" * 8),
    "unknown type": header(b'{"w1":{"dtype":"X9","shape":[1],"data_offsets":[0,8]}}', b"\0" * 8),
    "a type without NumPy": header(b'{"w1":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]}}', b"\0" * 8),
    "bytes after": safetensors_bytes({"w1": np.ones(3)}) + b"\0" * 8,
    "no arrays": safetensors_bytes({}),
}


@pytest.mark.parametrize("name", BYTES)
@pytest.mark.parametrize("kind", KINDS)
def test_foreign_bytes_under_right_checksums_are_refused(saved: Callable[[str], Path], kind: str, name: str) -> None:
    folder = saved(kind)
    reseal(folder, BYTES[name])
    with pytest.raises(InputError) as error:
        load_model(folder)
    assert_one_line(error, folder)


FORGED_RECORDS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no features": (lambda m: m.update(features=[]), "one or more"),
    "features a number": (lambda m: m.update(features=3), "do not fit"),
    "one feature fewer": (lambda m: m["features"].pop(), "4|trained on"),
    "one feature more": (lambda m: m["features"].append({**m["features"][0], "name": "x"}), "5|trained on"),
    "a name twice": (feature(1, name="ndvi"), "each named once"),
    "a name of two lines": (feature(1, name="l\nst"), "one line of text"),
    "a name that is a number": (feature(1, name=3), "one line of text"),
    "no unit": (feature(1, units=None), "one line of text"),
    "a range of NaN": (feature(1, min=None), "ascending numbers"),
    "a range upside down": (feature(1, min=400.0), "ascending numbers"),
    "a range in words": (feature(1, min="cold"), "ascending numbers"),
    "an absurd range": (feature(1, max=10**300), "ascending numbers"),
    "classes out of order": (feature(3, classes=[12, 1]), "must be integers"),
    "classes in words": (feature(3, classes=["forest"]), "must be integers"),
    "classes far apart": (feature(3, classes=[1, 10**12], max=1e12), "must lie in 0..65535"),
    "classes none": (feature(3, classes=[]), "must be integers"),
    "another standardiser": (lambda m: m.update(standardiser={"features": {}}), "not that of the weights"),
    "no name": (lambda m: m.pop("name"), "KeyError"),
    "scores a list": (lambda m: m.update(scores=[1]), "scores must be values by name"),
    "provenance text": (lambda m: m.update(provenance="x"), "provenance must be"),
    "settings gone": (lambda m: m.update(model=None), "model must be"),
}


@pytest.mark.parametrize("name", FORGED_RECORDS)
@pytest.mark.parametrize("kind", KINDS)
def test_forged_records_are_refused(saved: Callable[[str], Path], kind: str, name: str) -> None:
    folder = saved(kind)
    if name == "another standardiser" and kind in ("rf", "xgb"):
        pytest.skip("these have none")
    change, message = FORGED_RECORDS[name]
    forge(folder, meta=change)
    with pytest.raises(InputError) as error:
        load_model(folder)
    if kind == "gabp" or not message.startswith(("4", "5")):
        assert re.search(message, str(error.value)), error.value
    assert_one_line(error, folder)


def test_an_unknown_kind_is_refused(folder: Path) -> None:
    for kind in ("svm", "x" * 9999):
        forge(folder, kind=kind)
        with pytest.raises(InputError, match=r"a model of kind .*known kinds: gabp, cnn, rf, xgb") as error:
            load_model(folder)
        assert_one_line(error, folder)


@pytest.mark.parametrize("kind", KINDS)
def test_one_kind_under_the_name_of_another_is_refused(saved: Callable[[str], Path], kind: str) -> None:
    for other in KINDS:
        if other != kind:
            folder = saved(kind)
            forge(folder, kind=other)
            with pytest.raises(InputError) as error:
                load_model(folder)
            assert_one_line(error, folder)


def test_unknown_versions_of_libraries_are_taken(folder: Path, X: NDArray[np.float32]) -> None:
    before = load_model(folder).predict(X)
    forge(folder, meta=lambda m: m["versions"].update({"numpy": "99.0", "quantum": "1", "torch": None}))
    np.testing.assert_array_equal(load_model(folder).predict(X), before)


@pytest.mark.parametrize("kind", ["gabp", "cnn", "rf"])
def test_arrays_of_nan_another_type_or_shape_are_refused(saved: Callable[[str], Path], kind: str) -> None:
    folder = saved(kind)
    original = artefact.load(folder)
    for name, values in original.arrays.items():
        forged: dict[str, Any] = {
            "gone": None,
            "NaN": np.full(values.shape, np.nan),
            "beyond float32": np.full(values.shape, 1e300),
            "float16": values.astype(np.float16),
            "int8": np.ones(values.shape, np.int8),
            "bool": np.ones(values.shape, np.bool_),
            "complex": values.astype(np.complex64),
            "longer": np.concatenate([np.atleast_1d(values)] * 2),
            "empty": np.zeros(0, values.dtype),
        }
        for how, array in forged.items():
            parts = {**original.arrays, name: array}
            artefact.save(folder, kind, {key: part for key, part in parts.items() if part is not None}, original.meta)
            assert_refused(folder, f"{kind}: {name} {how}")


@pytest.mark.parametrize("kind", ["gabp", "cnn"])
@pytest.mark.parametrize("value", [0.0, -1.0])
def test_scales_that_are_not_positive_are_refused(saved: Callable[[str], Path], kind: str, value: float) -> None:
    folder = saved(kind)
    scale = artefact.load(folder).arrays["scale"].copy()
    scale[1] = value
    forge(folder, {"scale": scale})
    with pytest.raises(InputError, match="scales must be above 0"):
        load_model(folder)


def test_a_scale_that_overflows_is_refused(folder: Path) -> None:
    scale = artefact.load(folder).arrays["scale"].copy()
    scale[1] = 5e-324
    forge(folder, {"scale": scale}, lambda m: m["standardiser"]["features"]["lst"].update(scale=5e-324))
    with pytest.raises(InputError) as error:
        load_model(folder)
    assert_one_line(error, folder)


def spoiled_trees(arrays: dict[str, NDArray[Any]], how: str) -> dict[str, NDArray[Any]]:
    inner = np.flatnonzero(arrays["feature"] != -1)
    found = {name: values.copy() for name, values in arrays.items()}
    root = found["root"]
    if how == "a loop":
        found["left"][inner[1]] = inner[0]
    elif how == "a child of itself":
        found["left"][inner[1]] = inner[1]
    elif how == "a child outside":
        found["right"][inner[0]] = len(found["left"])
    elif how == "a child far outside":
        found["right"][inner[0]] = 2**31 - 1
    elif how == "a negative child":
        found["left"][inner[0]] = -5
    elif how == "a child in another tree":
        found["right"][inner[0]] = root[1]
    elif how == "another feature":
        found["feature"][inner[0]] = 4
    elif how == "a negative feature":
        found["feature"][inner[0]] = -7
    elif how == "roots outside":
        found["root"] = np.concatenate([root[:-1], [root[-1] * 2]])
    elif how == "roots that overflow":
        found["root"] = np.array([0, 2**63 - 1, -2, root[-1]])
    elif how == "no trees":
        found = {name: values[:0] for name, values in arrays.items()} | {"root": root[:1]}
    return found


@pytest.mark.parametrize(
    "how",
    [
        "a loop",
        "a child of itself",
        "a child outside",
        "a child far outside",
        "a negative child",
        "a child in another tree",
        "another feature",
        "a negative feature",
        "roots outside",
        "roots that overflow",
        "no trees",
    ],
)
def test_forests_that_are_none_are_refused(saved: Callable[[str], Path], how: str) -> None:
    folder = saved("rf")
    forge(folder, spoiled_trees(artefact.load(folder).arrays, how))
    with pytest.raises(InputError) as error:
        load_model(folder)
    assert_one_line(error, folder)


@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(["gabp", "cnn", "rf"]))
@settings(max_examples=60, deadline=None)
def test_forged_values_are_refused_or_predict_finite_values(
    tmp_path_factory: pytest.TempPathFactory, estimators: Fitted, table: pd.DataFrame, seed: int, kind: str
) -> None:
    """Any byte of any array: what is taken must not give NaN for what the model has seen."""
    X = table[list(FEATURES)].to_numpy()
    folder = save_model(tmp_path_factory.mktemp("f") / kind, estimators[kind], FEATURES, table)
    arrays = artefact.load(folder).arrays
    rng = np.random.default_rng(seed)
    name = sorted(arrays)[rng.integers(len(arrays))]
    data = bytearray(arrays[name].tobytes())
    data[rng.integers(len(data))] = rng.integers(256)
    forge(folder, {name: np.frombuffer(bytes(data), arrays[name].dtype).reshape(arrays[name].shape)})
    try:
        found = load_model(folder)
    except InputError:
        return
    assert not np.isnan(found.predict(X)).any()


# -- tables and planes --------------------------------------------------------------------------


def units(table: pd.DataFrame, **stated: str) -> pd.DataFrame:
    copy = table.copy()
    copy.attrs["units"] = stated
    return copy


def units_in_words(table: pd.DataFrame) -> pd.DataFrame:
    copy = table.copy()
    copy.attrs["units"] = "K"
    return copy


REFUSED: list[tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = [
    (lambda t: t.drop(columns="lst"), "the table lacks lst; it needs longitude, lst, ndvi, land_cover"),
    (lambda t: t[["lst", "longitude", "ndvi", "land_cover"]], "stand as lst, longitude"),
    (lambda t: pd.concat([t, t[["lst"]]], axis=1), "stand as .* lst; expected"),
    (lambda t: units(t, lst="degC"), "lst is in 'degC'; the model was trained on 'K'"),
    (units_in_words, "must be units by column"),
    (lambda t: t.assign(lst="warm"), "lst .* must be real numbers"),
    (lambda t: t.assign(lst=t.lst.astype(object)), r"lst \(object\) must be real numbers"),
    (lambda t: t.assign(lst=t.lst.astype(complex)), r"lst \(complex128\)"),
    (lambda t: t.assign(lst=pd.Timestamp("2017-06-10")), r"lst \(datetime64"),
    (lambda t: t.assign(lst=t.lst.astype("category")), r"lst \(category\)"),
]


@pytest.mark.parametrize(("spoil", "message"), REFUSED)
def test_tables_of_other_features_order_units_or_types_are_refused(
    folder: Path, table: pd.DataFrame, spoil: Callable[[pd.DataFrame], pd.DataFrame], message: str
) -> None:
    found = load_model(folder)
    for predict in (found.predict_table, found.predict, found.outside_range):
        with pytest.raises(InputError, match=message) as error:
            predict(spoil(table))
        assert "\n" not in str(error.value)


def test_tables_that_state_the_right_units_or_none_are_taken(folder: Path, table: pd.DataFrame) -> None:
    found = load_model(folder)
    expected = found.predict_table(table)
    assert np.isfinite(expected).all()
    for same in (units(table, lst="K"), table.assign(x="y"), table.assign(land_cover=table.land_cover.astype(int))):
        np.testing.assert_array_equal(found.predict_table(same), expected)
    nullable = table.assign(land_cover=table.land_cover.astype("Int64").where(table.index > 0, pd.NA))
    np.testing.assert_array_equal(found.predict_table(nullable), np.where(table.index > 0, expected, np.nan))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_with_missing_or_endless_features_give_nan(
    saved: Callable[[str], Path], X: NDArray[np.float32], kind: str
) -> None:
    found = load_model(saved(kind))
    rows = X.astype(np.float64)
    for row, (column, value) in enumerate([(0, np.nan), (1, np.inf), (2, -np.inf), (3, 1e300), (1, 4e38)]):
        rows[row, column] = value
    expected = found.predict(X)
    expected[:5] = np.nan
    np.testing.assert_array_equal(found.predict(rows), expected)
    np.testing.assert_array_equal(found.predict_planes(list(rows.T)), expected)
    masked = np.ma.masked_array(X, mask=np.broadcast_to(np.arange(200)[:, None] < 5, X.shape))
    np.testing.assert_array_equal(found.predict(masked), expected)
    assert found.predict(X[:0]).shape == found.outside_range(X[:0]).shape == (0,)
    assert found.predict_table(pd.DataFrame(X[:0], columns=list(FEATURES))).shape == (0,)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((3, 5)), r"needs \(n, 4\) values of longitude, lst, ndvi, land_cover; got \(3, 5\)"),
        (np.zeros(4), r"got \(4,\)"),
        (np.full((3, 4), "a"), "must be real numbers; got <U1"),
        (np.zeros((3, 4), complex), "must be real numbers; got complex128"),
        (np.full((3, 4), None), "must be real numbers; got object"),
    ],
)
def test_arrays_of_another_width_or_type_are_refused(folder: Path, values: NDArray[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(folder).predict(values)


def test_planes_that_do_not_fit_are_refused(folder: Path) -> None:
    found = load_model(folder)
    for use in (found.predict_planes, found.outside_planes):
        with pytest.raises(InputError, match="needs 4 planes"):
            use([1.0])
        with pytest.raises(InputError, match=r"do not broadcast to one shape: longitude \(3,\), lst \(2,\)"):
            use([np.zeros(3), np.zeros(2), 1.0, 1.0])


class Doubling:
    """A model without planes of its own."""

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        assert x.dtype == np.float32
        assert x.flags.c_contiguous
        assert np.isfinite(x).all()
        return x[:, 0] * 2 + x[:, 1]


def test_models_without_planes_get_stacked_finite_cells() -> None:
    seen = tuple(Feature(name, "1", 0.0, 0.0, 9.0, 9.0) for name in "ab")
    predictor = Predictor("rf", seen, {"name": "double"}, Doubling(), "0" * 64)
    cube = np.arange(24.0).reshape(2, 3, 4)
    cube[1, 2, 3] = np.nan
    found = predictor.predict_planes([cube, np.array([10.0, 20, 30])[:, None]])
    expected = cube * 2 + np.array([10.0, 20, 30])[:, None]
    np.testing.assert_array_equal(found, expected)


def test_outside_range_marks_extrapolation_and_not_what_is_missing(folder: Path) -> None:
    found = load_model(folder)
    inside = found.training_range.mean(axis=1)
    inside[3] = 5
    rows = np.stack([inside] * 8)
    rows[1, 2], rows[2, 1], rows[3, 0], rows[4, 0] = 9.0, -9.0, np.nan, np.inf
    rows[5, 3], rows[6, 3], rows[7, 3] = 6, 4.5, np.nan  # between classes that were seen
    expected = [False, True, True, False, True, True, True, False]
    assert found.outside_range(rows).tolist() == expected
    assert not found.outside_range(found.training_range.T).any()
    planes = [rows.T[0][:, None], *rows.T[1:3][..., None], rows.T[3][:, None]]
    assert found.outside_planes(planes)[:, 0].tolist() == expected


@given(values=st.lists(st.one_of(st.floats(width=32), st.integers(-3, 20)), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_outside_planes_is_membership(values: list[float]) -> None:
    seen = (Feature("land_cover", "1", 1.0, 1.0, 12.0, 12.0, CLASSES), Feature("x", "1", -1.0, 0.0, 0.0, 1.0))
    predictor = Predictor("rf", seen, {"name": "m"}, Doubling(), "0" * 64)
    found = predictor.outside_planes([np.array(values, np.float32), np.array([[0.0], [2.0]])])
    expected = [not np.isnan(value) and value not in CLASSES for value in values]
    assert found[0].tolist() == expected
    assert found[1].all()


# -- labelled planes ----------------------------------------------------------------------------


@pytest.fixture
def planes() -> xr.Dataset:
    rng = np.random.default_rng(1)
    dims, shape = ("time", "lat", "lon"), (3, 4, 5)
    return xr.Dataset(
        {
            "land_cover": (("lat", "lon"), rng.choice(CLASSES, shape[1:]), {"units": "1"}),
            "lst": (dims, rng.normal(290, 5, shape).astype(np.float32), {"units": "K"}),
            "ndvi": (("lat", "lon"), rng.normal(0.5, 0.1, shape[1:])),
            "cloud": (dims, np.zeros(shape)),
        },
        {
            "lat": np.arange(4.0),
            "lon": np.arange(5.0),
            "longitude": ("lon", np.linspace(95, 105, 5), {"units": "degrees_east"}),
        },
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_dataset_is_predicted_by_name_and_lazily(saved: Callable[[str], Path], planes: xr.Dataset, kind: str) -> None:
    model = load_model(saved(kind))
    found = model.predict_dataset(planes)
    shaped = [planes[name].broadcast_like(planes["lst"]).transpose("time", "lat", "lon").values for name in FEATURES]
    expected = model.predict(np.stack([plane.ravel() for plane in shaped], axis=1)).reshape(3, 4, 5)
    np.testing.assert_allclose(found.transpose("time", "lat", "lon"), expected, rtol=1e-6)
    assert (found.name, found.attrs["units"], found.dtype) == ("soil_moisture", "m3 m-3", np.float32)
    assert set(found.coords) == {"lat", "lon", "longitude"}
    lazy = model.predict_dataset(planes.chunk(time=1, lon=2))
    assert isinstance(lazy.data, da.Array)
    assert lazy.data.npartitions == 9
    xr.testing.assert_allclose(lazy.compute(), found, rtol=1e-6)
    stacked = planes[list(FEATURES)].reset_coords("longitude").to_dataarray("variable")
    unstacked = model.predict_dataset(stacked).transpose(*found.dims)
    xr.testing.assert_allclose(unstacked, found.drop_vars("longitude"), rtol=1e-6)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda ds: ds.drop_vars("lst"), "the Dataset lacks lst"),
        (lambda ds: ds.assign(lst=ds.lst.assign_attrs(units="degC")), "lst is in 'degC'; the model was trained on 'K'"),
        (lambda ds: ds.assign(lst=ds.lst.astype(str)), "lst must be real numbers"),
        (lambda ds: ds.lst, "need the dimension 'variable'"),
    ],
)
def test_datasets_of_other_features_or_units_are_refused(
    folder: Path, planes: xr.Dataset, spoil: Callable[[xr.Dataset], Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_model(folder).predict_dataset(spoil(planes))


def test_a_lazy_prediction_carries_the_model_once(saved: Callable[[str], Path], planes: xr.Dataset) -> None:
    model = load_model(saved("rf"))
    graph = dict(model.predict_dataset(planes.chunk(time=1, lat=1)).__dask_graph__())
    large = [key for key, task in graph.items() if len(cloudpickle.dumps(task)) > 8000]
    assert large == [f"predictor-{model.fingerprint[:16]}"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_predictor_pickles_small_and_hashes_by_content(saved: Callable[[str], Path], kind: str) -> None:
    folder = saved(kind)
    one, two = load_model(folder), load_model(folder)
    assert one == two
    assert len({one, two}) == 1
    assert tokenize(one) == tokenize(two) == tokenize(pickle.loads(pickle.dumps(one)))
    assert len(pickle.dumps(one)) < weights_of(folder).stat().st_size * 1.1 + 8192
    forge(folder, meta=lambda m: m.update(name="other"))
    assert load_model(folder) != one
    assert tokenize(load_model(folder)) != tokenize(one)


@pytest.mark.parametrize("kind", KINDS)
def test_a_predictor_maps_over_blocks_in_other_processes(
    saved: Callable[[str], Path], X: NDArray[np.float32], kind: str
) -> None:
    model = load_model(saved(kind))
    rows = da.from_array(X, chunks=(64, 4))
    found = rows.map_blocks(model.predict, dtype=np.float32, drop_axis=1, meta=np.empty(0, np.float32))
    with dask.config.set(scheduler="threads", num_workers=2):
        np.testing.assert_allclose(found.compute(), model.predict(X), rtol=1e-6)


# -- writers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_failed_save_leaves_the_old_artefact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    folder = artefact.save(tmp_path / "m", "gabp", {"a": np.ones(1)}, {})
    before = bytes_of(folder)

    def fail(path: Path, data: bytes) -> None:
        path.write_bytes(data[:3])
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(artefact, "_write", fail)
    for name in ("m", "new"):
        with pytest.raises(InputError, match=os.strerror(code)) as error:
            artefact.save(tmp_path / name, "gabp", {"a": np.zeros(1)}, {})
        assert_one_line(error, tmp_path / name)
    assert bytes_of(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_disk_that_takes_no_more_gives_one_line(tmp_path: Path) -> None:
    code = """
        import resource, signal, sys
        from pathlib import Path
        import numpy as np
        from smscale.errors import InputError
        from smscale.models import artefact
        folder = artefact.save(Path(sys.argv[1]) / "m", "rf", {"a": np.zeros(10)}, {})
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            artefact.save(folder, "rf", {"a": np.zeros(10_000)}, {})
        except InputError as error:
            print(error)
        print(artefact.load(folder).arrays["a"].size, len(list(folder.iterdir())))
    """
    message, after = run_python(code, str(tmp_path)).splitlines()
    assert "the model cannot be written (File too large)" in message
    assert after == "10 2"


@pytest.mark.parametrize("where", ["file/model", "/proc/model"])
def test_a_place_that_cannot_be_written_gives_one_line(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"cannot be written|exists and is not a model") as error:
        artefact.save(tmp_path / where, "rf", {"a": np.zeros(3)}, {})
    assert "\n" not in str(error.value)


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.json").write_text('{"format": "onnx"}')
    (tmp_path / "file").write_text("x")
    for name in ("thesis", "onnx", "file"):
        with pytest.raises(InputError, match="exists and is not a model"):
            artefact.save(tmp_path / name, "gabp", {}, {})


def test_what_lies_beside_a_model_stays_and_a_spoiled_one_is_replaced(tmp_path: Path) -> None:
    folder = artefact.save(tmp_path / "m", "gabp", {"a": np.ones(1)}, {})
    (folder / "notes.txt").write_text("good one")
    (folder / "model.json").write_text("{")
    (folder / "weights.safetensors").write_text("of version 1")
    artefact.save(folder, "gabp", {"a": np.zeros(1)}, {})
    assert artefact.load(folder).arrays["a"] == 0
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "notes.txt", weights_of(folder).name]
    (tmp_path / "empty").mkdir()
    assert artefact.load(artefact.save(tmp_path / "empty", "rf", {}, {})).kind == "rf"


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    mine, other = tmp_path / f".rf-{'0' * 32}", tmp_path / f".rf-small-{'0' * 32}"
    mine.mkdir()
    other.mkdir()
    artefact.save(tmp_path / "rf", "rf", {"a": np.zeros(3)}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "rf"]


def test_a_writer_killed_at_any_step_leaves_the_old_model_or_the_new(tmp_path: Path) -> None:
    code = """
        import os, sys
        from pathlib import Path
        import numpy as np
        from smscale.errors import InputError
        from smscale.models import artefact

        def killed_at(last):
            count = 0
            def step(function):
                def run(*args, **kwargs):
                    nonlocal count
                    count += 1
                    if count == last:
                        os._exit(9)
                    return function(*args, **kwargs)
                return run
            artefact._write = step(artefact._write)
            os.rename, os.replace = step(os.rename), step(os.replace)
            Path.unlink, Path.mkdir = step(Path.unlink), step(Path.mkdir)
            os.fsync = step(os.fsync)

        for first in (True, False):
            for last in range(1, 99):
                folder = Path(sys.argv[1]) / f"{first}-{last}" / "rf"
                if not first:
                    artefact.save(folder, "rf", {"a": np.zeros(4)}, {"n": 0})
                child = os.fork()
                if child == 0:
                    killed_at(last)
                    artefact.save(folder, "rf", {"a": np.ones(4)}, {"n": 1})
                    os._exit(0)
                _, status = os.waitpid(child, 0)
                found = artefact.load(folder) if folder.exists() else None
                assert found is not None or first
                assert found is None or (found.arrays["a"] == found.meta["n"]).all()
                artefact.save(folder, "rf", {"a": np.full(4, 2.0)}, {"n": 2})
                assert artefact.load(folder).meta == {"n": 2}
                assert len(list(folder.iterdir())) == 2, list(folder.iterdir())
                assert [p.name for p in folder.parent.iterdir()] == ["rf"]
                if os.waitstatus_to_exitcode(status) == 0:
                    break
            print(last)
    """
    created, replaced = (int(line) for line in run_python(code, str(tmp_path)).split())
    assert created > 5
    assert replaced > 6


def test_two_writers_and_a_reader_never_see_half_a_model(tmp_path: Path) -> None:
    code = """
        import sys
        import numpy as np
        from smscale.models import artefact
        start = int(sys.argv[2])
        for n in range(start, start + 120):
            artefact.save(sys.argv[1], "rf", {"a": np.full(5000, n % 7)}, {"n": n % 7})
    """
    folder = tmp_path / "rf"
    writers = [
        subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(folder), str(start)], stderr=subprocess.PIPE)
        for start in (0, 3)
    ]
    reads = 0
    try:
        while any(writer.poll() is None for writer in writers):
            if folder.exists():
                found = artefact.load(folder)
                assert (found.arrays["a"] == found.meta["n"]).all()
                reads += 1
    finally:
        messages = [writer.communicate(timeout=60)[1].decode() for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0], messages
    assert reads > 10
    assert len(list(folder.iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["rf"]
