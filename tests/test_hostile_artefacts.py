"""Artefacts of all four kinds under a hostile hand: refused in one line, fast and small, or what they were."""

import hashlib
import json
import os
import re
import shutil
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from smscale.errors import InputError
from smscale.models import artefact, load_model, save_model
from smscale.models.boosting import TunedXGB
from smscale.models.cnn import CNNRegressor
from smscale.models.forests import TunedForest
from smscale.models.gabp import GABPRegressor

KINDS = ("gabp", "cnn", "rf", "xgb")
FEATURES = ("longitude", "lst", "ndvi", "land_cover")
#: Of one load: bytes that Python and NumPy may allocate (an artefact here has 30 kB), and seconds.
MOST_BYTES, MOST_SECONDS = 8 << 20, 2.0
#: Edits of each kind.
EDITS = 60

Hand = Callable[[Path], object]


@pytest.fixture(scope="module")
def X() -> NDArray[np.float64]:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(90, 4)) * [3, 10, 0.1, 1] + [100, 290, 0.5, 0]
    values[:, 3] = rng.choice([1, 4, 5], 90)
    return values


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, X: NDArray[np.float64]) -> Path:
    """A folder with a small model of each kind, as `train` makes them."""
    root = tmp_path_factory.mktemp("saved")
    y = 0.2 + 0.01 * (X[:, 1] - 290) * X[:, 2]
    estimators = {
        "gabp": GABPRegressor(population=8, generations=2, members=2, max_steps=3, engine="numpy", random_state=0),
        "cnn": CNNRegressor(epochs=1, members=2, filters=(2, 2, 2, 2), random_state=0),
        "rf": TunedForest({"columns": ("all",)}, folds=2, trees=4),
        "xgb": TunedXGB({"columns": ("all",)}, folds=2, rounds=4),
    }
    for kind, estimator in estimators.items():
        scores = {"validation": {"rmse": 0.04}}
        save_model(root / kind, estimator.fit(X, y), FEATURES, X, {"recipe": "ab12"}, scores)
    return root


@pytest.fixture
def spoiled(saved: Path, tmp_path: Path) -> Callable[[str, Hand], str | None]:
    """Spoil a copy and load it: the refusal, which must be one line that names the folder; None where it is taken."""

    def attempt(kind: str, hand: Hand) -> str | None:
        folder = tmp_path / kind
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(saved / kind, folder)
        hand(folder)
        tracemalloc.start()
        start = time.process_time()
        try:
            load_model(folder)
        except InputError as error:
            message = str(error)
        else:
            message = None
        finally:
            most, seconds = tracemalloc.get_traced_memory()[1], time.process_time() - start
            tracemalloc.stop()
        assert message is None or ("\n" not in message and str(folder) in message)
        assert most < MOST_BYTES
        assert seconds < MOST_SECONDS
        return message

    return attempt


def weights_of(folder: Path) -> Path:
    (path,) = folder.glob("weights-*.safetensors")
    return path


def seal(folder: Path, weights: bytes | None = None, change: Callable[[dict[str, Any]], object] | None = None) -> None:
    """Other weights, or a changed record, under checksums that are right."""
    record = json.loads((folder / "model.json").read_text())
    del record["record_sha256"]
    if weights is not None:
        weights_of(folder).unlink()
        record |= {"weights_sha256": hashlib.sha256(weights).hexdigest(), "weights_bytes": len(weights)}
        (folder / f"weights-{record['weights_sha256'][:16]}.safetensors").write_bytes(weights)
    if change is not None:
        change(record)
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
    (folder / "model.json").write_text(json.dumps({**record, "record_sha256": hashlib.sha256(canonical).hexdigest()}))


def meta(change: Callable[[dict[str, Any]], object]) -> Hand:
    return lambda folder: seal(folder, change=lambda record: change(record["meta"]))


def random_edit(rng: np.random.Generator) -> Hand:
    """A bit flipped, a stretch cut out, bytes put in, or a stretch turned round, in one of the two files."""

    def hand(folder: Path) -> None:
        path = (folder / "model.json", weights_of(folder))[rng.integers(2)]
        data = bytearray(path.read_bytes())
        start, stop = sorted(rng.integers(0, len(data), 2))
        edit = rng.integers(4)
        if edit == 0:
            data[start] ^= 1 << int(rng.integers(8))
        elif edit == 1:
            del data[start : stop + 1]
        elif edit == 2:
            data[start:start] = rng.integers(0, 256, 9, np.uint8).tobytes()
        else:
            data[start:stop] = data[start:stop][::-1]
        path.write_bytes(data)

    return hand


@pytest.mark.parametrize("kind", KINDS)
def test_no_edit_of_the_files_loads_to_another_model(
    saved: Path, tmp_path: Path, spoiled: Callable[..., str | None], X: NDArray[np.float64], kind: str
) -> None:
    rng = np.random.default_rng(1)
    before = load_model(saved / kind)
    refused = 0
    for _ in range(EDITS):
        if spoiled(kind, random_edit(rng)) is None:  # white space alone, or a stretch turned to itself
            found = load_model(tmp_path / kind)
            assert found == before
            np.testing.assert_array_equal(found.predict(X), before.predict(X))
        else:
            refused += 1
    assert refused > 0.9 * EDITS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["header", "anywhere"])
def test_bytes_forged_under_right_checksums_are_refused_or_predict_finite_values(
    tmp_path: Path, spoiled: Callable[..., str | None], X: NDArray[np.float64], kind: str, where: str
) -> None:
    rng = np.random.default_rng(2)
    refused = 0

    def hand(folder: Path) -> None:
        data = bytearray(weights_of(folder).read_bytes())
        end = 8 + int.from_bytes(data[:8], "little") if where == "header" else len(data)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(end)] = rng.integers(256)
        seal(folder, bytes(data))

    for _ in range(EDITS):
        if spoiled(kind, hand) is None:
            assert np.isfinite(load_model(tmp_path / kind).predict(X)).all()
        else:
            refused += 1
    assert refused > (0.9 if where == "header" else 0.2) * EDITS


def of_header(change: Callable[[dict[str, Any], str], object], name: str) -> Hand:
    """The safetensors header, changed for one array."""

    def hand(folder: Path) -> None:
        data = weights_of(folder).read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:end])
        change(header, name)
        text = json.dumps(header).encode()
        seal(folder, len(text).to_bytes(8, "little") + text + data[end:])

    return hand


HEADERS: dict[str, Callable[[dict[str, Any], str], object]] = {
    "a side of 2^62": lambda h, name: h[name].update(shape=[0, 2**62]),
    "forty sides": lambda h, name: h[name].update(shape=[*h[name]["shape"], *[1] * 40]),
    "two sides more": lambda h, name: h[name].update(shape=[*h[name]["shape"], 1, 1]),
    "a negative side": lambda h, name: h[name].update(shape=[-1]),
    "half a side": lambda h, name: h[name].update(shape=[1.5]),
    "offsets turned round": lambda h, name: h[name].update(data_offsets=h[name]["data_offsets"][::-1]),
    "negative offsets": lambda h, name: h[name].update(data_offsets=[-8, 0]),
    "one over another": lambda h, name: h.update(other=h[name]),
    "gone": lambda h, name: h.pop(name),
    "whole numbers": lambda h, name: h[name].update(
        dtype={"F64": "I64", "F32": "I32", "U8": "I8"}.get(h[name]["dtype"], "F32")
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HEADERS)
def test_a_forged_header_is_refused_for_every_array(
    saved: Path, spoiled: Callable[..., str | None], kind: str, name: str
) -> None:
    """A forest's arrays of more dimensions would be compiled for, for minutes."""
    for array in artefact.load(saved / kind).arrays:
        message = spoiled(kind, of_header(HEADERS[name], array))
        assert message is not None, array


def as_long_as_a_disk(folder: Path) -> None:
    seal(folder, change=lambda record: record.update(weights_bytes=1 << 42))
    os.truncate(weights_of(folder), 1 << 42)


CARDS: dict[str, tuple[Hand, str]] = {
    "a version in quotes": (lambda f: seal(f, change=lambda r: r.update(version="2")), "version '2', this smscale"),
    "a version with a point": (lambda f: seal(f, change=lambda r: r.update(version=2.0)), r"version 2\.0, this"),
    "fewer bytes than none": (lambda f: seal(f, change=lambda r: r.update(weights_bytes=-1)), "altered or truncated"),
    "more bytes than there are": (lambda f: seal(f, change=lambda r: r.update(weights_bytes=10**30)), "altered or"),
    "a kind in a list": (lambda f: seal(f, change=lambda r: r.update(kind=["rf"])), "lacks kind"),
    "versions gone": (meta(lambda m: m.pop("versions")), "versions"),
    "versions a list": (meta(lambda m: m.update(versions=["1"])), "versions must be values by name"),
    "a version of numbers": (meta(lambda m: m["versions"].update(numpy=[1, 2])), "version of numpy must be one line"),
    "scores in words": (meta(lambda m: m.update(scores={"validation": {"rmse": "good"}})), "scores must be numbers"),
    "scores in lists": (meta(lambda m: m.update(scores={"validation": {"rmse": [0.1]}})), "scores must be numbers"),
    "a range in quotes": (meta(lambda m: m["features"][1].update(min="1")), "must be ascending numbers"),
    "a range turned round": (
        meta(lambda m: m["features"][1].update(min=m["features"][1]["max"], max=m["features"][1]["min"])),
        "must be ascending numbers",
    ),
    "a quantile gone": (meta(lambda m: m["features"][1].pop("q01")), "q01"),
    "features as text": (meta(lambda m: m.update(features="abcd")), "do not fit"),
    "half a character": (meta(lambda m: m.update(name="\ud800")), "name must be one line of text"),
    "a mark before the text": (
        lambda f: (f / "model.json").write_bytes(b"\xef\xbb\xbf" + (f / "model.json").read_bytes()),
        "unreadable or truncated",
    ),
    "weights as long as a disk": (as_long_as_a_disk, "do not fit this machine's memory"),
    "both files empty": (
        lambda f: [path.write_bytes(b"") for path in f.iterdir()],  # type: ignore[dict-item]
        "unreadable or truncated",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CARDS)
def test_forged_cards_are_refused(spoiled: Callable[..., str | None], kind: str, name: str) -> None:
    hand, expected = CARDS[name]
    message = spoiled(kind, hand)
    assert message is not None
    assert re.search(expected, message), message


@pytest.mark.parametrize("value", [10**13, 10**400, -1, 0, 4.0, "4", None, True, 5])
def test_a_forest_of_another_number_of_predictors_is_refused(spoiled: Callable[..., str | None], value: object) -> None:
    """Without its linear part too, which would otherwise be made as long as the record says."""

    def without_line(folder: Path) -> None:
        found = artefact.load(folder)
        line = ("intercept", "coefficients", "low", "high", "share")
        arrays = {name: values for name, values in found.arrays.items() if name not in line}
        artefact.save(folder, "rf", arrays, found.meta)
        meta(lambda m: m["model"].update(predictors=value))(folder)

    for hand in (meta(lambda m: m["model"].update(predictors=value)), without_line):
        assert spoiled("rf", hand) is not None


@pytest.mark.parametrize("kind", KINDS)
def test_files_swapped_with_another_model_of_the_kind_are_refused(
    saved: Path, tmp_path: Path, spoiled: Callable[..., str | None], kind: str
) -> None:
    other = tmp_path / "other"
    shutil.copytree(saved / kind, other)
    found = artefact.load(other)
    artefact.save(other, kind, {**found.arrays, "spare": np.zeros(1)}, found.meta)

    def record(folder: Path) -> None:
        shutil.copy(other / "model.json", folder)

    def weights(folder: Path) -> None:
        weights_of(folder).write_bytes(weights_of(other).read_bytes())

    def link(folder: Path) -> None:
        (folder / "model.json").unlink()
        (folder / "model.json").symlink_to(other / "model.json")

    assert "is missing" in str(spoiled(kind, record))
    assert "altered or truncated" in str(spoiled(kind, weights))
    assert "is missing" in str(spoiled(kind, link))
