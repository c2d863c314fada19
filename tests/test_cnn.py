"""The convolutional network: its estimator contract, its inner folds, Lightning's resume and devices, NumPy prediction against torch."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from smscale.errors import InputError
from smscale.kernels.cnn import TILE
from smscale.models.cnn import CNNRegressor, cnn_from_arrays, cnn_to_arrays
from smscale.models.cnn.estimator import BLOCKS, _blocks, _shrinkage
from smscale.models.cnn.patch import neighbourhood, patch_columns, patch_offsets
from smscale.models.ridge import PENALTIES, ridge_coefficients, ridge_penalty
from smscale.models.samples import inner_split, merge_rows

SMALL: dict[str, Any] = {
    "epochs": 8,
    "filters": (4, 4, 4, 4),
    "dropout": 0.1,
    "learning_rate": 0.01,
    "patience": 8,
    "members": 3,
}
FAST = SMALL | {"epochs": 2}
#: Batches smaller than the table: over all its rows what a ridge leaves sums to rounding, of which Adam's first step would take the sign.
SHARED = FAST | {"dropout": 0.0, "batch_size": 16}


def made(rows: int = 120, predictors: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, predictors))
    second = X[:, 1 % predictors]
    return X, 0.25 + 0.05 * np.tanh(X[:, 0]) * second + 0.002 * rng.normal(size=rows)


def error(model: Any, X: np.ndarray, y: np.ndarray) -> float:
    return float(np.sqrt(np.mean((model.predict(X) - y) ** 2)))


CHECKED = [
    CNNRegressor(random_state=0, **FAST),
    # The paper's network, narrower and over fewer epochs; scikit-learn asks that it learns its 200 rows.
    CNNRegressor.paper(random_state=0).set_params(
        epochs=10, filters=(8, 8, 8, 8), learning_rate=0.02, batch_size=16, dropout=0.0
    ),
]


@parametrize_with_checks(CHECKED)
def test_estimator_passes_scikit_learns_checks(estimator: CNNRegressor, check: Any) -> None:
    check(estimator)


def test_import_of_module_does_not_load_torch() -> None:
    code = "import sys, smscale.models.cnn; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("predictors", "patch", "members"), [(1, 1, 1), (2, 1, 3), (3, 3, 2), (5, 1, 5), (12, 3, 1), (17, 5, 2), (33, 1, 2)]
)
def test_numpy_prediction_equals_torch_for_any_number_of_predictors(predictors: int, patch: int, members: int) -> None:
    import torch

    from smscale.models.cnn.lightning import Network, Settings

    settings = Settings(patch**2, (3, 5, 4, 6), 0.5, 0.01, 0.0, 0.0, 32, 1, 0, seed=1)
    network = Network(predictors, members, settings).eval()
    generator = torch.Generator().manual_seed(predictors)
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.bias.normal_(generator=generator)
        network.dense.weight.normal_(generator=generator)
    rng = np.random.default_rng(predictors)
    columns = predictors * patch**2
    mean, scale, target = rng.normal(size=columns), rng.uniform(0.5, 2, columns), np.array([0.2, 0.05])
    X = rng.normal(size=(TILE + 3, columns)).astype(np.float32)
    arrays = network.to_arrays()
    arrays["dense_bias"] = arrays["dense_bias"].sum(keepdims=True)
    linear = rng.normal(size=columns)
    arrays |= {"mean": mean, "scale": scale, "target": target, "linear": linear}
    arrays |= {"low": np.full(columns, -np.inf), "high": np.full(columns, np.inf)}
    got = cnn_from_arrays(arrays).predict(X)
    with torch.no_grad():
        inside = network(torch.from_numpy(((X - mean) / scale).astype(np.float32))).numpy().sum(axis=1)
    assert got.dtype == np.float32
    inside = inside + (X - mean) / scale @ linear
    # float32 sums of a few products in another order, times the target's scale
    np.testing.assert_allclose(got, inside * 0.05 + 0.2, rtol=1e-4, atol=1e-5)


def test_prediction_in_float64_does_not_depend_on_a_rows_place(fitted: CNNRegressor) -> None:
    X, _ = made(TILE + 30, seed=7)
    order = np.random.default_rng(0).permutation(len(X))
    network = cnn_from_arrays(fitted.arrays_ | {"linear": np.zeros(5)})
    # One float32 rounding of sums that agree to float64's.
    np.testing.assert_allclose(network.predict(X[order]), network.predict(X)[order], rtol=1.2e-7)
    np.testing.assert_allclose(network.predict(X[:1]), network.predict(X)[:1], rtol=1.2e-7)
    # float32: sums of a few hundred products in another order
    np.testing.assert_allclose(network.predict(X.astype(np.float32)), network.predict(X), rtol=1e-5)


def test_masked_cells_of_planes_are_skipped_and_the_others_have_the_bits_of_rows(
    fitted: CNNRegressor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from smscale.kernels import planes, threads
    from smscale.models import make_predictor

    X, _ = made()
    predictor = make_predictor(fitted, list("abcde"), X)
    rng = np.random.default_rng(0)
    shape = (3, 40, 57)
    full = [rng.normal(size=shape).astype(np.float32) for _ in range(3)]
    hidden = rng.random(shape) < 0.7
    full[0][hidden] = np.nan
    full[1][hidden] = np.inf  # would spread, were it calculated with
    given_ = [*full, rng.normal(size=(1, 40, 1)).astype(np.float32), np.float32(0.3)]
    rows = np.stack([plane[~hidden] for plane in np.broadcast_arrays(*given_)], axis=1)
    expected = predictor.model.predict(rows)
    monkeypatch.setattr(planes, "TABLE", 5000)
    for count in (1, 3):
        monkeypatch.setattr(threads, "blas_threads", lambda n=count: n)
        found = predictor.predict_planes(given_)
        np.testing.assert_array_equal(found[~hidden], expected)
        assert np.isnan(found[hidden]).all()
    rows.setflags(write=False)
    np.testing.assert_array_equal(predictor.model.predict(np.asfortranarray(rows)), expected)


def test_predictors_beyond_float32_give_nan_though_no_rectifier_reaches_them(fitted: CNNRegressor) -> None:
    open_ends = {"low": np.full(5, -np.inf), "high": np.full(5, np.inf), "linear": np.zeros(5)}
    network = cnn_from_arrays(fitted.arrays_ | open_ends)
    X = np.zeros((TILE + 2, 5))
    X[TILE, 2] = -1e300
    assert np.flatnonzero(np.isnan(network.predict(X))).tolist() == [TILE]


def test_convolution_groups_keep_the_members_apart() -> None:
    import torch

    from smscale.models.cnn.lightning import Network, Settings

    network = Network(6, 3, Settings(1, (2, 3, 4, 5), 0.0, 0.01, 0.0, 0.0, 32, 1, 0, seed=1)).eval()
    torch.nn.init.ones_(network.dense.weight)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    before = network(x).detach()
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            with torch.no_grad():
                layer.weight.view(3, -1)[1] *= 2
    changed = (network(x) != before).any(dim=0)
    assert changed.tolist() == [False, True, False]


def test_paper_settings_are_the_papers() -> None:
    paper = CNNRegressor.paper(random_state=3)
    assert (paper.epochs, paper.random_state, len(paper.filters), paper.weight_decay) == (1500, 3, 4, 0.0)
    assert (paper.validation_fraction, paper.validation, paper.members, paper.ridge) == (0.3, "rows", 1, False)
    assert set(CNNRegressor.PAPER_ASSUMED) <= set(paper.get_params())


@pytest.fixture(scope="module")
def fitted() -> CNNRegressor:
    X, y = made()
    return CNNRegressor(random_state=1, **SMALL).fit(X, y)


def test_fit_learns_what_ridge_cannot() -> None:
    X, y = made(320)
    network = CNNRegressor(random_state=0, epochs=40, learning_rate=0.01).fit(X[:260], y[:260])
    assert error(network, X[260:], y[260:]) < 0.7 * error(RidgeCV().fit(X[:260], y[:260]), X[260:], y[260:])


def test_fit_stays_at_the_ridge_where_held_out_stations_share_nothing_more() -> None:
    rng = np.random.default_rng(3)
    group = np.repeat(np.arange(30), 12)
    static = rng.normal(size=(30, 4))[group]
    moving = rng.normal(size=(360, 2))
    X = np.column_stack([static, moving])
    y = 0.3 + 0.05 * moving[:, 0] + 0.06 * rng.normal(size=30)[group] + 0.01 * rng.normal(size=360)
    learnt, unseen = group < 20, group >= 20
    network = CNNRegressor(random_state=0, epochs=25, filters=(4, 4, 4, 4)).fit(X[learnt], y[learnt], group[learnt])
    ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 4, 30))).fit(X[learnt], y[learnt])
    assert error(network, X[unseen], y[unseen]) < 1.02 * error(ridge, X[unseen], y[unseen])


def test_blocks_lie_inside_one_fold_and_are_few() -> None:
    group = np.arange(400)
    folds = [(np.arange(200, 400), np.arange(200)), (np.arange(200), np.arange(200, 400))]
    block = _blocks(group, folds)
    assert not set(block[:200]) & set(block[200:])
    assert block.max() + 1 == 2 * BLOCKS


def shrinkage_of(products: np.ndarray, squares: np.ndarray, folds: list[int]) -> float:
    """`_shrinkage` of blocks of one row each, whose fold is given."""
    from smscale.models.cnn.lightning import Lesson

    rows = len(folds)
    held = np.zeros((rows, max(folds) + 1), np.float32)
    held[np.arange(rows), folds] = 1
    nothing = np.zeros((rows, 1), np.float32)
    lesson = Lesson(nothing, nothing, nothing, held, np.arange(rows))
    return _shrinkage(np.stack([products, squares], axis=2), lesson)


def test_shrinkage_of_one_network_is_the_regression_of_target_on_it_less_its_error() -> None:
    products, squares = np.array([[1.0, 0.5, 0.3]]), np.array([[2.0, 1.0, 1.0]])
    # s = 1.8 / 4; of the three blocks e^2 = (0.1^2 + 0.05^2 + 0.15^2) 3 / 2 / 4^2, at twice its price
    assert shrinkage_of(products, squares, [0, 0, 0]) == pytest.approx(0.45 * (1 - 2 * 0.035 * 1.5 / 1.8**2))
    assert shrinkage_of(np.array([[-1.0, 0.5]]), np.array([[1.0, 1.0]]), [0, 1]) == 0
    assert shrinkage_of(np.array([[3.0, 3.0]]), np.array([[1.0, 1.0]]), [0, 1]) == 1
    assert shrinkage_of(np.zeros((1, 2)), np.zeros((1, 2)), [0, 1]) == 0


def test_shrinkage_of_a_single_block_is_nothing() -> None:
    assert shrinkage_of(np.array([[3.0]]), np.array([[3.0]]), [0]) == 0


def test_shrinkage_is_nothing_where_blocks_do_not_agree() -> None:
    assert shrinkage_of(np.array([[3.0, -2.0, -0.5, 0.0]]), np.ones((1, 4)), [0, 0, 1, 1]) == 0


def test_shrinkage_is_that_of_the_mean_of_noisy_networks() -> None:
    rng = np.random.default_rng(0)
    target = rng.normal(size=20_000)
    networks = target + 1.5 * rng.normal(size=(4, 20_000))
    block = np.arange(20_000) % 100
    own = networks[block % 4, np.arange(20_000)]
    products, squares = np.bincount(block, own * target), np.bincount(block, own**2)
    mean = networks.mean(axis=0)
    wanted = mean @ target / (mean @ mean)
    # Sampling: a few percent of standard error.
    assert shrinkage_of(products[None], squares[None], [0, 1, 2, 3] * 25) == pytest.approx(wanted, rel=0.05)


def test_shrinkage_takes_each_block_at_the_epoch_that_the_others_choose() -> None:
    # Block 0 is best at epoch 0, block 1 at epoch 1; each is judged at the other's.
    products, squares = np.array([[1.0, -1.0], [-2.0, 1.0]]), np.array([[1.0, 1.0], [4.0, 1.0]])
    assert shrinkage_of(products, squares, [0, 0]) == 0
    assert shrinkage_of(products, squares, [0, 1]) == 0
    assert shrinkage_of(np.array([[1.0, 1.0], [0.5, 0.5]]), np.array([[1.0, 1.0], [2.0, 2.0]]), [0, 0]) == 1


def test_same_seed_gives_the_same_bytes_and_leaves_what_is_global_alone(fitted: CNNRegressor) -> None:
    import torch

    X, y = made()
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    legacy = np.random.get_state()[1].copy()  # noqa: NPY002
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    again = CNNRegressor(random_state=1, **SMALL).fit(X, y)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    assert torch.are_deterministic_algorithms_enabled() == deterministic
    assert torch.utils.deterministic.fill_uninitialized_memory == filled
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == workspace
    np.testing.assert_array_equal(legacy, np.random.get_state()[1])  # noqa: NPY002
    assert_same(fitted, again)
    other = CNNRegressor(random_state=2, **SMALL).fit(X, y)
    assert not np.array_equal(other.arrays_["weight_0"], fitted.arrays_["weight_0"])


def assert_same(a: CNNRegressor, b: CNNRegressor) -> None:
    assert a.history_ == b.history_
    for name, values in a.arrays_.items():
        np.testing.assert_array_equal(values, b.arrays_[name])


def test_kept_epoch_is_the_best_of_the_inner_fold() -> None:
    X, y = made()
    one = CNNRegressor(random_state=1, **(SMALL | {"members": 1, "ridge": False})).fit(X, y)
    validation = one.history_["validation_mse"]
    assert one.best_epochs_.tolist() == [1 + int(np.argmin(validation))]
    # float32 sums
    assert one.inner_score_ == pytest.approx(np.sqrt(min(validation)), rel=1e-5)
    assert one.shrinkage_ == 1.0
    assert len(one.history_["training_mse"]) == len(validation) <= SMALL["epochs"]


def test_training_ends_after_epochs_without_a_better_fold() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 3)), rng.normal(size=60)
    network = CNNRegressor(random_state=0, **(SMALL | {"epochs": 200, "patience": 2, "members": 1})).fit(X, y)
    assert len(network.history_["epoch"]) == network.best_epochs_[0] + 2 < 200


def test_pickle_and_artefact_predict_the_same(fitted: CNNRegressor) -> None:
    X, _ = made(seed=5)
    expected = fitted.predict(X)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict(X), expected)
    arrays, meta = cnn_to_arrays(fitted)
    np.testing.assert_array_equal(cnn_from_arrays(arrays, meta).predict(X), expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight_3", None),
        ("scale", np.ones(3)),
        ("dense_weight", np.ones((3, 9))),
        ("weight_0", np.ones((3, 4, 2, 3))),
        ("weight_1", np.ones((2, 4, 4, 3))),
        ("bias_2", np.ones((3, 5))),
        ("weight_0", np.ones(3)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(fitted: CNNRegressor, name: str, value: np.ndarray | None) -> None:
    arrays = dict(fitted.arrays_)
    if value is None:
        del arrays[name]
    else:
        arrays[name] = value
    with pytest.raises(InputError, match="cnn artefact"):
        cnn_from_arrays(arrays)


# Lightning: resume, trainer options, devices


def killing(epoch: int) -> Any:
    """A callback that raises at the end of an epoch, counted from 0."""
    from pytorch_lightning import Callback

    class Killing(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == epoch:
                raise RuntimeError("killed")

    return Killing()


def counting(epochs: list[int]) -> Any:
    """A callback that writes down the epochs that it saw."""
    from pytorch_lightning import Callback

    class Counting(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            epochs.append(trainer.current_epoch)

    return Counting()


def test_killed_fit_goes_on_to_the_same_bytes(tmp_path: Path, fitted: CNNRegressor) -> None:
    X, y = made()
    resumable = {"random_state": 1, "checkpoint": tmp_path} | SMALL
    for epoch in (3, 5):
        with pytest.raises(RuntimeError, match="killed"):
            CNNRegressor(**resumable, trainer_options={"callbacks": [killing(epoch)]}).fit(X, y)
    seen: list[int] = []
    again = CNNRegressor(**resumable, trainer_options={"callbacks": counting(seen)}).fit(X, y)
    assert seen == [5, 6, 7]
    assert_same(fitted, again)
    finished = CNNRegressor(**resumable, trainer_options={"callbacks": counting(seen)}).fit(X, y)
    assert seen == [5, 6, 7]
    assert_same(fitted, finished)


def test_checkpoint_of_other_data_or_settings_is_not_taken(tmp_path: Path) -> None:
    X, y = made(60)
    settings = FAST | {"checkpoint": tmp_path, "random_state": 0}
    CNNRegressor(**settings).fit(X, y)
    other = CNNRegressor(**settings).fit(X, y + 0.01 * X[:, 0])
    assert_same(other, CNNRegressor(random_state=0, **FAST).fit(X, y + 0.01 * X[:, 0]))
    CNNRegressor(**(settings | {"dropout": 0.3})).fit(X, y)
    assert len(list(tmp_path.glob("cnn-*.ckpt"))) == 3


def test_checkpoint_of_other_libraries_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from smscale.models.cnn import lightning as cnn_lightning

    X, y = made(60)
    CNNRegressor(random_state=0, checkpoint=tmp_path, **FAST).fit(X, y)
    monkeypatch.setattr(cnn_lightning, "versions", lambda: {"torch": "0.0"})
    CNNRegressor(random_state=0, checkpoint=tmp_path, **FAST).fit(X, y)
    assert len(list(tmp_path.glob("cnn-*.ckpt"))) == 2


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    X, y = made(60)
    network = CNNRegressor(random_state=0, checkpoint=tmp_path, **FAST).fit(X, y)
    (path,) = tmp_path.glob("*.ckpt")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=path.name):
        network.fit(X, y)


def test_trainer_options_log_and_show_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pytorch_lightning.loggers import CSVLogger

    X, y = made(60)
    options = {"logger": CSVLogger(tmp_path), "enable_progress_bar": True}
    network = CNNRegressor(random_state=0, trainer_options=options, **FAST).fit(X, y)
    (log,) = tmp_path.rglob("metrics.csv")
    logged = pd.read_csv(log)
    wanted = np.array(network.history_["validation_mse"]) / y.var()
    # float32 in the log
    np.testing.assert_allclose(logged["validation_mse"].dropna(), wanted, rtol=1e-4)
    assert "validation_mse" in capsys.readouterr().out


def test_ctrl_c_ends_a_fit_as_a_keyboard_interrupt() -> None:
    from pytorch_lightning import Callback

    class Interrupting(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            raise KeyboardInterrupt

    import signal

    handler = signal.getsignal(signal.SIGINT)
    X, y = made(40)
    with pytest.raises(KeyboardInterrupt):
        CNNRegressor(**FAST, trainer_options={"callbacks": [Interrupting()]}).fit(X, y)
    assert signal.getsignal(signal.SIGINT) is handler


DISTRIBUTED = """
import json, sys
import numpy as np
from smscale.models.cnn import CNNRegressor

if __name__ == "__main__":
    given = np.load(sys.argv[1])
    model = CNNRegressor(random_state=0, accelerator="cpu", devices=2, **json.loads(sys.argv[3])).fit(given["X"], given["y"])
    np.savez(sys.argv[2], history=model.history_["validation_mse"], **model.arrays_)
"""


def test_two_processes_take_the_steps_of_one_and_hand_the_result_back(tmp_path: Path) -> None:
    X, y = made(61)
    script, table, model = tmp_path / "distributed.py", tmp_path / "table.npz", tmp_path / "model.npz"
    script.write_text(DISTRIBUTED)
    np.savez(table, X=X, y=y)
    command = [sys.executable, str(script), str(table), str(model), json.dumps(SHARED)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    alone = CNNRegressor(random_state=0, accelerator="cpu", **SHARED).fit(X, y)
    with np.load(model) as found:
        # Without dropout the gradients of a batch are the same but for the order of float32 sums.
        np.testing.assert_allclose(found["history"], alone.history_["validation_mse"], rtol=1e-4)
        np.testing.assert_allclose(found["weight_3"], alone.arrays_["weight_3"], atol=1e-4)


def test_processes_share_every_batch_without_loss() -> None:
    from smscale.models.cnn.lightning import Settings, Shuffled

    settings = Settings(1, (2, 2, 2, 2), 0.0, 0.01, 0.0, 0.0, 8, 1, 0, seed=3)
    parts = [Shuffled(43, settings, rank, 2) for rank in (0, 1)]
    for epoch in (0, 1):
        for part in parts:
            part.set_epoch(epoch)
        pairs = list(zip(*parts, strict=True))
        assert all(a.size and b.size and a.size - b.size in (0, 1) for a, b in pairs)
        np.testing.assert_array_equal(np.sort(np.concatenate([rows for pair in pairs for rows in pair])), np.arange(43))
    with pytest.raises(InputError, match="lower devices"):
        Shuffled(1, settings, 0, 2)


# partial_fit


def test_partial_fit_learns_pass_by_pass_and_resumes_from_a_pickle() -> None:
    X, y = made(240)
    network = CNNRegressor(random_state=0, filters=(4, 4, 4, 4), learning_rate=0.01, members=2, batch_size=32)
    network.partial_fit(X, y)
    first = error(network, X, y)
    for _ in range(8):
        network.partial_fit(X, y)
    assert error(network, X, y) < 0.9 * first
    copy = pickle.loads(pickle.dumps(network))
    expected = network.partial_fit(X[:50], y[:50]).predict(X)
    np.testing.assert_array_equal(copy.partial_fit(X[:50], y[:50]).predict(X), expected)
    arrays, meta = cnn_to_arrays(network)
    np.testing.assert_array_equal(cnn_from_arrays(arrays, meta).predict(X), expected)


def test_partial_fit_keeps_the_first_standardiser_and_begins_anew_after_fit() -> None:
    X, y = made(80)
    network = CNNRegressor(random_state=0, clip=None, **FAST).partial_fit(X[:40], y[:40])
    mean = network.arrays_["mean"].copy()
    np.testing.assert_allclose(mean, X[:40].mean(axis=0))
    network.partial_fit(X[40:41] + 5, y[40:41], sample_weight=[2.0])
    np.testing.assert_array_equal(network.arrays_["mean"], mean)
    with pytest.raises(ValueError, match="non-zero"):
        network.partial_fit(X[:3], y[:3], sample_weight=np.zeros(3))
    with pytest.raises(ValueError, match="features"):
        network.partial_fit(X[:, :2], y)
    network.fit(X, y).partial_fit(X[40:], y[40:])
    np.testing.assert_allclose(network.arrays_["mean"], X[40:].mean(axis=0))


def test_partial_fit_that_diverges_is_an_error() -> None:
    X, y = made(60)
    network = CNNRegressor(**(FAST | {"learning_rate": 1e30, "averaging": 0.0}))
    with pytest.raises(InputError, match="diverged"):
        network.partial_fit(X, y)
    assert not hasattr(network, "arrays_")


def test_hyperband_drives_partial_fit() -> None:
    import dask

    distributed = pytest.importorskip("distributed")
    search = pytest.importorskip("dask_ml.model_selection")
    X, y = made(60)
    network = CNNRegressor(random_state=0, filters=(2, 2, 2, 2), members=1)
    grid = {"learning_rate": [0.001, 0.01, 0.03], "dropout": [0.0, 0.2]}
    # dask-ml 2025.1 calls dask.persist from the client's own event loop, which dask refuses for the client, not for its method.
    client = distributed.Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None)
    with client, dask.config.set(scheduler=client.get):
        band = search.HyperbandSearchCV(network, grid, max_iter=3, random_state=0).fit(X, y)
    assert band.best_params_.keys() == grid.keys()
    assert np.isfinite(band.best_estimator_.predict(X)).all()


# Patches


def test_patch_columns_go_cell_by_cell_the_centre_first() -> None:
    names = patch_columns(["lst", "ndvi"], 3)
    assert len(names) == 18
    assert names[:4] == ["lst", "ndvi", "lst[-1,-1]", "ndvi[-1,-1]"]
    assert names[-2:] == ["lst[+1,+1]", "ndvi[+1,+1]"]
    assert len(set(patch_columns(["lst"], 5))) == 25
    assert patch_columns(["lst"], 1) == ["lst"]
    with pytest.raises(InputError, match="odd"):
        patch_offsets(2)


def grid_table() -> pd.DataFrame:
    """Cells that encode their own place: 100 time + 10 row + col."""
    cells = [(time, row, col) for time in range(2) for row in range(3) for col in range(4)]
    table = pd.DataFrame(cells, columns=["time", "row", "col"])
    table["place"] = 100.0 * table["time"] + 10 * table["row"] + table["col"]
    table["soil_moisture"] = 0.2
    table.attrs["units"] = {"place": "1"}
    return table.sample(frac=1, random_state=0)


def test_neighbourhood_holds_the_cells_around_at_the_same_time() -> None:
    table = grid_table()
    wide, filled = neighbourhood(table, ["place"], 3)
    assert wide.attrs == table.attrs
    assert list(wide.columns) == [*table.columns, *patch_columns(["place"], 3)[1:]]
    inner = ((wide["row"] == 1) & wide["col"].isin([1, 2])).to_numpy()
    for south, east in patch_offsets(3)[1:]:
        got = wide.loc[inner, f"place[{south:+d},{east:+d}]"]
        np.testing.assert_array_equal(got, wide.loc[inner, "place"] + 10 * south + east)
    assert (filled[inner] == 0).all()
    corner = ((wide["row"] == 0) & (wide["col"] == 0)).to_numpy()
    assert (filled[corner] == 5).all()
    np.testing.assert_array_equal(wide.loc[corner, "place[-1,+0]"], wide.loc[corner, "place"])
    np.testing.assert_array_equal(wide.loc[corner, "place[+1,+1]"], wide.loc[corner, "place"] + 11)


def test_neighbourhood_fills_missing_values_and_refuses_what_is_ambiguous() -> None:
    table = grid_table()
    hole = (table["time"] == 0) & (table["row"] == 1) & (table["col"] == 1)
    table.loc[hole, "place"] = np.nan
    wide, filled = neighbourhood(table, ["place"], 3)
    east = ((wide["time"] == 0) & (wide["row"] == 1) & (wide["col"] == 2)).to_numpy()
    assert wide.loc[east, "place[+0,-1]"].item() == wide.loc[east, "place"].item()
    assert filled[east].item() == 1
    with pytest.raises(InputError, match="share time, row and col"):
        neighbourhood(pd.concat([table, table]), ["place"], 3)
    with pytest.raises(InputError, match="lacks ndvi"):
        neighbourhood(table, ["ndvi"], 3)
    assert list(neighbourhood(table, ["place"], 1).table.columns) == list(table.columns)


def test_patch_network_uses_the_neighbours_and_declares_its_field() -> None:
    X, y = made(200, predictors=18)
    y = y + 0.05 * np.tanh(X[:, 10]) * X[:, 13]
    patch = CNNRegressor(random_state=0, patch=3, **SMALL).fit(X, y)
    assert patch.receptive_field.cells == 3
    # three cells of EASE-2's 36 km grid
    assert patch.receptive_field.km == pytest.approx(108.0967, abs=1e-3)
    arrays, meta = cnn_to_arrays(patch)
    assert meta["receptive_field"]["cells"] == 3
    loaded = cnn_from_arrays(arrays, meta)
    assert loaded.cells == 9
    moved = X.copy()
    moved[:, 17] += 1
    assert not np.array_equal(loaded.predict(moved), patch.predict(X))
    with pytest.raises(InputError, match="9 columns for each predictor"):
        CNNRegressor(patch=3, **FAST).fit(X[:, :17], y)


def test_patch_artefact_goes_through_save_and_load(tmp_path: Path) -> None:
    from smscale.models import load_model, save_model

    X, y = made(60, predictors=18)
    patch = CNNRegressor(random_state=0, patch=3, **FAST).fit(X, y)
    names = patch_columns(["lst", "ndvi"], 3)
    save_model(tmp_path / "cnn", patch, names, X)
    loaded = load_model(tmp_path / "cnn")
    assert loaded.meta["model"]["receptive_field"]["cells"] == 3
    np.testing.assert_allclose(
        loaded.predict_table(pd.DataFrame(X, columns=names)), patch.predict(X.astype(np.float32))
    )


# scikit-learn's and dask-ml's company


def test_network_works_in_pipeline_cross_validation_grid_search_and_loky() -> None:
    X, y = made(60)
    network = CNNRegressor(random_state=0, **FAST)
    piped = make_pipeline(StandardScaler(), clone(network)).fit(X, y)
    assert np.isfinite(piped.predict(X)).all()
    groups = np.arange(60) // 6
    scores = cross_val_score(network, X, y, groups=groups, cv=GroupKFold(2), n_jobs=2)
    np.testing.assert_array_equal(scores, cross_val_score(network, X, y, groups=groups, cv=GroupKFold(2)))
    search = GridSearchCV(network, {"dropout": [0.0, 0.2]}, cv=2).fit(X, y)
    assert search.best_estimator_.dropout in (0.0, 0.2)


def test_parallel_post_fit_predicts_blockwise() -> None:
    wrappers = pytest.importorskip("dask_ml.wrappers")
    array = pytest.importorskip("dask.array")
    X, y = made(60)
    wrapped = wrappers.ParallelPostFit(CNNRegressor(random_state=0, **FAST)).fit(X, y)
    blocks = wrapped.predict(array.from_array(X, chunks=(20, -1)))
    # The same rows in blocks of another size: BLAS may sum in another order.
    np.testing.assert_allclose(blocks.compute(), wrapped.estimator.predict(X), rtol=1e-5)


def test_threads_fit_at_once_as_one_after_the_other() -> None:
    from concurrent.futures import ThreadPoolExecutor

    X, y = made(60)

    def fit(seed: int) -> CNNRegressor:
        return CNNRegressor(random_state=seed, **FAST).fit(X, y)

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(fit, range(3)))
    for seed, network in enumerate(together):
        assert_same(network, fit(seed))


# Samples, inner folds, ridge


def test_merge_rows_adds_weights_of_equal_rows_and_drops_those_without() -> None:
    X = np.array([[2.0], [1.0], [2.0], [3.0]])
    merged = merge_rows(X, np.array([5.0, 4.0, 5.0, 6.0]), np.array([1.0, 2.0, 0.5, 0.0]), None)
    np.testing.assert_array_equal(merged.X[:, 0], [1, 2])
    np.testing.assert_array_equal(merged.y, [4, 5])
    np.testing.assert_array_equal(merged.weight, [2, 1.5])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=60), st.floats(0.05, 0.9), st.integers(0, 5))
def test_inner_split_keeps_groups_whole_and_covers_all_rows(labels: list[int], fraction: float, seed: int) -> None:
    group = np.array(labels)
    training, validation = inner_split(group, fraction, np.random.default_rng(seed))
    assert training.size
    assert validation.size
    np.testing.assert_array_equal(np.sort(np.concatenate([training, validation])), np.arange(group.size))
    if np.unique(group).size > 1:
        assert not set(group[training]) & set(group[validation])


def test_ridge_equals_scikit_learns_for_every_penalty() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(90, 3)) @ rng.normal(size=(3, 3))
    y = X @ [0.5, -0.2, 0.1] + rng.normal(size=90)
    weight = rng.uniform(0.5, 2, 90)
    ours = ridge_coefficients(X, y, weight, PENALTIES)
    for number, penalty in enumerate(PENALTIES):
        theirs = Ridge(penalty * weight.sum(), fit_intercept=False).fit(X, y, weight)
        np.testing.assert_allclose(ours[:, number], theirs.coef_, rtol=1e-9)
    np.testing.assert_array_equal(ridge_coefficients(X, y, weight, np.inf), np.zeros(3))


def test_ridge_penalty_grows_when_groups_tell_that_nothing_carries_over() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(12), 30)
    X = rng.normal(size=(12, 6))[group]
    y = rng.normal(size=12)[group]
    blocked = ridge_penalty(X, y, np.ones(360), group, 0)
    assert blocked > 10 * ridge_penalty(X, y, np.ones(360), np.arange(360), 0)


# Bad input


def test_groups_and_weights_change_the_fit_and_bad_ones_are_refused() -> None:
    X, y = made()
    blocked = CNNRegressor(random_state=1, **FAST).fit(X, y, groups=np.repeat(np.arange(6), 20))
    plain = CNNRegressor(random_state=1, **FAST).fit(X, y)
    assert blocked.inner_score_ != plain.inner_score_
    with pytest.raises(InputError, match="one label a row"):
        CNNRegressor(**FAST).fit(X, y, groups=[1, 2])
    with pytest.raises(InputError, match="two distinct rows"):
        CNNRegressor(**FAST).fit(X, y, sample_weight=np.eye(120)[0])


def test_rows_without_weight_are_as_rows_left_out() -> None:
    X, y = made(60)
    weight = np.where(np.arange(60) < 40, 1.0, 0.0)
    weighted = CNNRegressor(random_state=0, **FAST).fit(X, np.where(weight > 0, y, 99.0), sample_weight=weight)
    assert_same(weighted, CNNRegressor(random_state=0, **FAST).fit(X[:40], y[:40]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("filters", (4, 4)),
        ("dropout", 1.0),
        ("averaging", 1.0),
        ("members", 0),
        ("patch", 2),
        ("validation", "time"),
        ("patience", 0),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: Any) -> None:
    X, y = made(20)
    with pytest.raises(InputError, match=name):
        CNNRegressor(**{name: value}).fit(X, y)


@pytest.mark.parametrize("rate", [1e30, 30.0])
@pytest.mark.parametrize("ridge", [True, False])
def test_diverging_network_is_an_error_not_a_nan_model(rate: float, ridge: bool) -> None:
    X, y = made()
    network = CNNRegressor(**(SMALL | {"learning_rate": rate, "averaging": 0.0, "epochs": 5, "ridge": ridge}))
    with pytest.raises(InputError, match="diverged"):
        network.fit(X, y)
    assert not hasattr(network, "arrays_")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_missing_and_infinite_values_are_refused(bad: float) -> None:
    X, y = made(30)
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        CNNRegressor(**FAST).fit(np.where(np.arange(5) == 2, bad, X), y)
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        CNNRegressor(**FAST).fit(X, np.where(np.arange(30) == 2, bad, y))


@pytest.mark.parametrize("rows", [2, 3, 5])
@pytest.mark.parametrize("members", [1, 5])
def test_a_handful_of_rows_gives_finite_predictions(rows: int, members: int) -> None:
    X, y = made(rows)
    assert np.isfinite(CNNRegressor(**(FAST | {"members": members})).fit(X, y).predict(X)).all()


@pytest.mark.parametrize("predictors", [1, 40])
def test_any_number_of_predictors_is_learnt(predictors: int) -> None:
    X, y = made(40, predictors)
    assert np.isfinite(CNNRegressor(random_state=0, **FAST).fit(X, y).predict(X)).all()


def test_two_samples_a_fold_one_group_and_many_groups_are_fitted() -> None:
    X, y = made(10)
    for groups in (np.repeat(np.arange(5), 2), np.zeros(10), np.arange(10)):
        network = CNNRegressor(random_state=0, **(FAST | {"members": 5})).fit(X, y, groups=groups)
        assert np.isfinite(network.predict(X)).all()
        assert np.isfinite(network.inner_score_)


def test_constant_columns_and_a_constant_target_are_harmless() -> None:
    X, y = made(40)
    X[:, 1] = 7.0
    constant = CNNRegressor(random_state=0, **FAST).fit(X, np.full(40, 0.3))
    np.testing.assert_allclose(constant.predict(X), 0.3, rtol=1e-6)
    assert np.isfinite(CNNRegressor(random_state=0, **FAST).fit(X, y).predict(X)).all()
    assert np.isfinite(CNNRegressor(random_state=0, **FAST).fit(np.ones((40, 3)), y).predict(np.ones((1, 3)))).all()


def test_rows_that_are_all_one_row_are_refused() -> None:
    with pytest.raises(InputError, match="two distinct rows"):
        CNNRegressor(**FAST).fit(np.ones((20, 3)), np.full(20, 0.2))


def test_repeated_rows_are_as_weights() -> None:
    X, y = made(40)
    twice = CNNRegressor(random_state=0, **FAST).fit(np.vstack([X, X[:10]]), np.concatenate([y, y[:10]]))
    weight = np.where(np.arange(40) < 10, 2.0, 1.0)
    assert_same(twice, CNNRegressor(random_state=0, **FAST).fit(X, y, sample_weight=weight))
