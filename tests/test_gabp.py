"""GABPRegressor: scikit-learn's contract, what its folds and artefacts promise, Lightning against the plain loop."""

import hashlib
import logging
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from smscale.errors import InputError
from smscale.kernels import ga
from smscale.models.gabp import GABPRegressor
from smscale.models.gabp import choice as gabp_choice
from smscale.models.gabp import kept as gabp_kept
from smscale.models.gabp import plan as gabp_plan
from smscale.models.gabp.choice import Bench
from smscale.models.gabp.folds import Member
from smscale.models.gabp.machine import Machine
from smscale.models.gabp.network import ARRAYS, fold, gabp_to_arrays
from smscale.models.samples import Samples, inner_folds

QUICK: dict[str, Any] = {
    "population": 20,
    "generations": 8,
    "members": 2,
    "repeats": 1,
    "restarts": 2,
    "decays": (0.01,),
    "max_hidden": 4,
    "max_steps": 15,
    "random_state": 0,
    "n_jobs": 1,
}
Table = tuple[NDArray[np.float64], NDArray[np.float64]]


def quick(**changes: Any) -> GABPRegressor:
    return GABPRegressor(**{**QUICK, "engine": "numpy", **changes})


def paper(**changes: Any) -> GABPRegressor:
    """The paper's settings, cut short."""
    short: dict[str, Any] = {"generations": 20, "max_steps": 60, "random_state": 0, "engine": "numpy", "n_jobs": 1}
    return GABPRegressor.paper().set_params(**{**short, **changes})


@pytest.fixture(scope="module")
def table() -> Table:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4)) * [1, 100, 0.01, 5] + [0, 3000, 0, -20]
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    return x, 0.25 + 0.05 * np.tanh(2 * z[:, 0]) + 0.03 * z[:, 1] * (z[:, 2] > 0) + 0.01 * rng.normal(size=300)


def digest(model: GABPRegressor) -> str:
    return hashlib.md5(b"".join(model.network_[name].tobytes() for name in ARRAYS)).hexdigest()


@pytest.mark.parametrize(
    "model",
    [
        GABPRegressor(population=20, generations=8, max_steps=8, repeats=1),
        paper(engine="lightning", generations=5, max_steps=8),
        quick(engine="numpy"),
    ],
)
def test_scikit_learns_own_checks_all_pass(model: GABPRegressor) -> None:
    """The defaults and the paper's, with fewer individuals, generations, steps and repeats, which are what takes long."""
    results = check_estimator(model, on_fail=None, on_skip=None)
    assert [r["check_name"] for r in results if r["status"] == "failed"] == []


def test_lightning_drives_the_same_steps_as_the_plain_loop(table: Table) -> None:
    plain, driven = quick().fit(*table), quick(engine="lightning", n_jobs=2).fit(*table)
    np.testing.assert_array_equal(plain.predict(table[0]), driven.predict(table[0]))
    assert plain.lm_trace_ == driven.lm_trace_
    assert plain.stopped_ == driven.stopped_


def test_lightning_logs_checkpoints_and_calls_back(table: Table, tmp_path: Path) -> None:
    from pytorch_lightning import Callback, LightningModule, Trainer

    class Watcher(Callback):
        def __init__(self) -> None:
            self.seen: list[dict[str, float]] = []

        def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *rest: Any) -> None:
            self.seen.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    watcher = Watcher()
    options = {"callbacks": [watcher], "enable_checkpointing": True, "default_root_dir": tmp_path}
    model = quick(engine="lightning", trainer_options=options).fit(*table)
    assert watcher.seen[0].keys() == {"mse", "validation_mse", "damping", "active"}
    errors = [step["validation_mse"] for step in watcher.seen]
    assert errors == sorted(errors, reverse=True)
    assert watcher.seen[-1]["active"] == 0
    # A trial step that raises the error is no step of the trace.
    assert len(watcher.seen) >= max(len(trace) for trace in model.lm_trace_) - 1
    assert list(tmp_path.rglob("*.ckpt"))


def test_training_that_was_stopped_goes_on_to_the_same_bytes(table: Table, tmp_path: Path) -> None:
    from pytorch_lightning import Callback

    class Count(Callback):
        def __init__(self, last: int) -> None:
            self.steps, self.last = 0, last

        def on_train_batch_end(self, *given: Any) -> None:
            self.steps += 1
            if self.steps == self.last:
                raise TimeoutError("stopped by the test")

    def counted(watcher: Count, **changes: Any) -> GABPRegressor:
        return kept(tmp_path, trainer_options={"callbacks": watcher}, max_steps=25, **changes)

    undisturbed = quick(max_steps=25).fit(*table)
    first, second, third, other = Count(13), Count(0), Count(0), Count(0)
    with pytest.raises(TimeoutError):
        counted(first).fit(*table)
    evolved = {path: path.read_bytes() for path in tmp_path.glob("*.npz")}
    resumed = counted(second).fit(*table)
    assert digest(resumed) == digest(undisturbed)
    assert resumed.lm_trace_ == undisturbed.lm_trace_
    for found, expected in zip(resumed.ga_trace_, undisturbed.ga_trace_, strict=True):
        np.testing.assert_array_equal(found.best, expected.best)
    assert {path: path.read_bytes() for path in tmp_path.glob("*.npz")} == evolved
    assert digest(counted(third).fit(*table)) == digest(undisturbed)
    assert third.steps <= 1 < second.steps
    assert digest(counted(other, random_state=1).fit(*table)) != digest(undisturbed)
    assert other.steps > 1


def kept(folder: Path, **changes: Any) -> GABPRegressor:
    return quick(engine="lightning", checkpoint=folder, **changes)


def files_of(folder: Path) -> tuple[Path, Path]:
    """The populations and the checkpoint of the one training that a folder keeps."""
    (population,), (state,) = folder.glob("*.npz"), folder.glob("*.ckpt")
    return population, state


def altered(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a checkpoint holds."""
    import torch

    found = torch.load(path, weights_only=True)
    change(found)
    torch.save(found, path)


def set_nan(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda found: found["state_dict"][name].fill_(np.nan)


SPOILED: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "cut in the middle": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no checkpoint"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "another model's": lambda path: altered(path, lambda found: found["state_dict"].clear()),
    "a list": lambda path: __import__("torch").save([1.0], path),
    "NaN errors": lambda path: altered(path, set_nan("best_mse")),
    "NaN costs": lambda path: altered(path, set_nan("cost")),
    "NaN weights": lambda path: altered(path, set_nan("best")),
    "impossible steps": lambda path: altered(path, lambda found: found["state_dict"]["steps"].fill_(99)),
    "other shapes": lambda path: altered(
        path, lambda found: found["state_dict"].update(x=found["state_dict"]["x"][:1])
    ),
}


@pytest.fixture(scope="module")
def finished(table: Table, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder that keeps a finished training, and the model's digest; nobody writes to it."""
    folder = tmp_path_factory.mktemp("kept")
    return folder, digest(kept(folder).fit(*table))


@pytest.mark.parametrize("how", SPOILED)
def test_a_spoiled_checkpoint_is_refused_in_one_line(
    table: Table, tmp_path: Path, finished: tuple[Path, str], how: str
) -> None:
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    SPOILED[how](files_of(tmp_path)[1])
    with pytest.raises(InputError, match=r"is no checkpoint of this training .* remove it") as error:
        kept(tmp_path).fit(*table)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("how", ["truncated", "empty", "text", "NaN", "another's"])
def test_spoiled_populations_are_made_again(table: Table, tmp_path: Path, finished: tuple[Path, str], how: str) -> None:
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    population, state = files_of(tmp_path)
    state.unlink()
    arrays = dict(np.load(population))
    if how == "NaN":
        np.savez(population, **{**arrays, "0-starts": arrays["0-starts"] * np.nan})
    elif how == "another's":
        np.savez(population, **{**arrays, "0-starts": arrays["1-starts"], "key": np.array("another")})
    else:
        SPOILED[how](population)
    assert digest(kept(tmp_path).fit(*table)) == finished[1]


@pytest.mark.parametrize("change", ["data", "weights", "groups", "settings", "seed"])
def test_a_checkpoint_of_another_training_is_never_taken(
    table: Table, tmp_path: Path, finished: tuple[Path, str], change: str
) -> None:
    """Under its own name it is not looked at; under the name that ours would have it is refused."""
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    others = files_of(tmp_path)
    x, y = table
    given: dict[str, Any] = {"X": x, "y": y + 0.01 * (np.arange(300) == 5)} if change == "data" else {"X": x, "y": y}
    if change in ("weights", "groups"):
        given |= {"sample_weight": 1.0 + np.arange(300)} if change == "weights" else {"groups": np.arange(300) % 7}
    settings = {"settings": {"damping": 2.0}, "seed": {"random_state": 1}}.get(change, {})
    model = kept(tmp_path, **settings).fit(**given)
    assert digest(model) == digest(quick(**settings).fit(**given)) != finished[1]
    ours = next(path for path in tmp_path.glob("*.ckpt") if path != others[1])
    shutil.copy(others[1], ours)
    with pytest.raises(
        InputError, match=r"is no checkpoint of this training \(it is of other data, settings or versions\)"
    ):
        kept(tmp_path, **settings).fit(**given)


def test_a_folder_for_checkpoints_that_is_a_file_is_refused(table: Table, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    for folder in (path, path / "below"):
        with pytest.raises(InputError, match="is no folder that can be used") as error:
            kept(folder).fit(*table)
        assert "\n" not in str(error.value)


def test_a_training_cut_short_says_so_and_goes_on_where_it_was(table: Table, tmp_path: Path) -> None:
    """As by Lightning's `max_time`: what is returned is the best so far, what is kept is no end."""
    from pytorch_lightning import Callback

    class Enough(Callback):
        def on_train_batch_end(self, trainer: Any, *given: Any) -> None:
            trainer.should_stop = trainer.global_step == 12

    short = kept(tmp_path, max_steps=25, trainer_options={"callbacks": Enough()}).fit(*table)
    assert set(short.stopped_) & {"trainer"}
    assert np.isfinite(short.predict(table[0])).all()
    assert digest(kept(tmp_path, max_steps=25).fit(*table)) == digest(quick(max_steps=25).fit(*table)) != digest(short)


def test_a_checkpoint_of_another_goal_or_other_libraries_is_not_taken(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice the target is the same standardised table, but the same goal is then a quarter as far."""
    X, y = table
    goal = 2e-4
    quick(engine="lightning", checkpoint=tmp_path, mse_goal=goal).fit(X, y)
    again = quick(engine="lightning", checkpoint=tmp_path, mse_goal=goal).fit(X, 2 * y)
    assert digest(again) == digest(quick(mse_goal=goal).fit(X, 2 * y))
    assert len(list(tmp_path.glob("*.ckpt"))) == 2
    monkeypatch.setattr(gabp_kept, "versions", lambda: {"numpy": "0.0"})
    quick(engine="lightning", checkpoint=tmp_path, mse_goal=goal).fit(X, y)
    assert len(list(tmp_path.glob("*.ckpt"))) == 3


def test_ctrl_c_ends_a_fit_as_a_keyboard_interrupt(table: Table) -> None:
    from pytorch_lightning import Callback

    class Interrupting(Callback):
        def on_train_batch_end(self, *given: Any) -> None:
            raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        quick(engine="lightning", trainer_options={"callbacks": [Interrupting()]}).fit(*table)
    assert signal.getsignal(signal.SIGINT) is handler


def test_what_is_the_processs_is_put_back_when_the_last_thread_leaves() -> None:
    from smscale.models.lightning_run import LOGGERS, silence

    levels = [logging.getLogger(name).level for name in LOGGERS]
    filters = list(warnings.filters)
    first, second = silence.held(), silence.held()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert all(logging.getLogger(name).level == logging.ERROR for name in LOGGERS)
    second.__exit__(None, None, None)
    assert [logging.getLogger(name).level for name in LOGGERS] == levels
    assert warnings.filters == filters


def test_an_artefact_does_not_tell_where_it_was_trained(table: Table, tmp_path: Path) -> None:
    here = gabp_to_arrays(quick().fit(*table))
    there = gabp_to_arrays(quick(engine="lightning", n_jobs=2, accelerator="cpu", checkpoint=tmp_path).fit(*table))
    assert here[1] == there[1]
    assert all(here[0][name].tobytes() == there[0][name].tobytes() for name in ARRAYS)


def test_a_scale_too_small_to_divide_by_is_refused(table: Table) -> None:
    network = dict(quick().fit(*table).network_)
    network["scale"] = np.array([5e-324, 1, 1, 1])
    with pytest.raises(InputError, match=r"least scale is 4\.94e-324"):
        fold(network)


#: As a script: the networks of one fit, and with arguments of one for each strategy, spread over two processes.
PROCESSES = """
import hashlib, os, sys
import numpy as np
from smscale.models.gabp import GABPRegressor
from smscale.models.gabp.network import ARRAYS

def digest(devices, **options):
    x = np.random.default_rng(0).normal(size=(120, 3))
    y = np.tanh(2 * x[:, 0]) + x[:, 1]
    model = GABPRegressor(
        population=10, generations=4, members=3, repeats=1, restarts=1, decays=(0.01,), max_hidden=4, max_steps=10, random_state=0,
        accelerator="cpu", devices=devices, trainer_options=options,
    ).fit(x, y)
    return hashlib.md5(b"".join(model.network_[name].tobytes() for name in ARRAYS)).hexdigest()

if __name__ == "__main__":
    for options in [{"strategy": strategy} for strategy in sys.argv[1:]] or [{}]:
        found = f"{os.environ.get('LOCAL_RANK', '0')} {digest(2, **options)}"
        os.write(1, f"{found} {options.get('strategy', '')}\\n".encode())  # in one piece: processes print at once
"""


def printed(folder: Path, *strategies: str) -> list[list[str]]:
    """Words of the lines of `PROCESSES`, run as a script, that tell a process and its network."""
    script = folder / "fit.py"
    script.write_text(PROCESSES)
    run = subprocess.run(
        [sys.executable, script, *strategies], capture_output=True, text=True, check=True, timeout=300, cwd=folder
    )
    return sorted(line.split() for line in run.stdout.split("\n") if re.match(r"\d [0-9a-f]{32} ", line))


@pytest.mark.slow
def test_two_processes_end_with_the_network_of_one(tmp_path: Path) -> None:
    """The networks are spread over processes; as a script, each of them runs it all and prints."""
    here: dict[str, Any] = {"__name__": "here"}
    exec(PROCESSES, here)
    alone = here["digest"](1)
    assert printed(tmp_path) == [["0", alone], ["1", alone]]
    assert printed(tmp_path, "ddp_fork", "ddp_spawn") == [["0", alone, "ddp_fork"], ["0", alone, "ddp_spawn"]]


def test_progress_bars_show_both_parts_where_asked_for(table: Table, capfd: pytest.CaptureFixture[str]) -> None:
    quick(engine="lightning").fit(*table)
    assert not any(capfd.readouterr())
    quick(engine="lightning", trainer_options={"enable_progress_bar": True}).fit(*table)
    shown = "".join(capfd.readouterr())
    assert "Genetic algorithm: 100%" in shown
    assert "validation_mse" in shown


def test_a_gpu_that_is_not_there_is_refused_before_any_work(table: Table) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(InputError, match="accelerator='gpu' needs a CUDA device, and there is none"):
        quick(engine="lightning", accelerator="gpu").fit(*table)


def test_torchs_engine_is_driven_and_resumed_alike(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a CUDA device runs, here on the CPU: the same steps, to rounding, and the same bytes after a stop."""
    from pytorch_lightning import Callback

    from smscale.kernels import lm_network

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, *given: Any) -> None:
            if trainer.global_step == 12:
                raise TimeoutError("stopped by the test")

    def torchs(*given: Any, threads: int | None = None, **settings: Any) -> Any:
        return original(*given, engine="torch", device="cpu", **settings)

    compiled = quick(dtype="float64").fit(*table)
    original = lm_network.networks
    monkeypatch.setattr(lm_network, "networks", torchs)
    model = quick(dtype="float64", engine="lightning").fit(*table)
    np.testing.assert_allclose(model.predict(table[0]), compiled.predict(table[0]), atol=1e-4)
    kept = quick(dtype="float64", engine="lightning", checkpoint=tmp_path)
    with pytest.raises(TimeoutError):
        clone(kept).set_params(trainer_options={"callbacks": Stop()}).fit(*table)
    assert digest(kept.fit(*table)) == digest(model)


def test_single_and_double_precision_agree(table: Table) -> None:
    """The genetic algorithm may select otherwise after an ulp: the models do the same, not bit for bit."""
    single, double = quick().fit(*table), quick(dtype="float64").fit(*table)
    assert single.network_["w1"].dtype == np.float64
    assert double.inner_score_ == pytest.approx(single.inner_score_, rel=0.2)


def test_import_needs_no_torch() -> None:
    code = "import sys, smscale.models.gabp, smscale.models.table; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_fit_is_reproducible_whatever_the_threads(table: Table) -> None:
    first, second, other = quick().fit(*table), quick(n_jobs=2).fit(*table), quick(random_state=1).fit(*table)
    np.testing.assert_array_equal(first.predict(table[0]), second.predict(table[0]))
    assert not np.array_equal(first.predict(table[0]), other.predict(table[0]))


def test_fit_leaves_the_global_generators_alone(table: Table) -> None:
    import random

    import torch

    before = np.random.get_state()[1].copy(), random.getstate(), torch.get_rng_state()  # noqa: NPY002
    quick(engine="lightning").fit(*table)
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert random.getstate() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_neither_names_of_groups_nor_the_order_of_rows_matter(table: Table) -> None:
    x, y = table
    groups = np.repeat(np.arange(10), 30)
    order = np.random.default_rng(3).permutation(300)
    names = np.array(["j", "c", "x", "a", "q", "b", "z", "k", "n", "d"])
    model = quick().fit(x, y, groups)
    assert digest(quick().fit(x, y, names[groups])) == digest(model)
    assert digest(quick().fit(x[order], y[order], groups[order])) == digest(model)


def test_fit_recovers_a_surface_that_a_line_cannot(table: Table) -> None:
    x, y = table
    model = GABPRegressor(random_state=0, engine="numpy", generations=20, members=3).fit(x[:200], y[:200])
    error = np.sqrt(np.mean((model.predict(x[200:]) - y[200:]) ** 2))
    line = make_pipeline(StandardScaler(), Ridge()).fit(x[:200], y[:200])
    assert error < 0.75 * np.sqrt(np.mean((line.predict(x[200:]) - y[200:]) ** 2))
    assert model.inner_score_ == pytest.approx(error, rel=0.4)
    assert model.n_hidden_ == sum(model.members_hidden_) == len(model.network_["b1"])


def test_scale_of_predictors_and_target_does_not_matter(table: Table) -> None:
    """Powers of two, so that standardised values are the same to the last bit."""
    x, y = table
    plain, scaled = quick().fit(x, y), quick().fit(x * 1024, y * 64)
    np.testing.assert_allclose(scaled.predict(x * 1024) / 64, plain.predict(x), rtol=1e-6)


def test_members_mean_and_the_line_are_one_network(table: Table) -> None:
    model = quick(members=3).fit(*table)
    assert 0 < model.shrinkage_ <= 1
    w = model.network_
    z = (np.clip(table[0], w["lower"], w["upper"]) - w["mean"]) / w["scale"]
    standard = np.tanh(z @ w["w1"] + w["b1"]) @ w["w2"] + w["b2"] + z @ w["linear"]
    np.testing.assert_allclose(fold(w).predict(table[0]), w["target_mean"] + w["target_scale"] * standard, atol=1e-6)
    np.testing.assert_array_equal(fold(w).predict(table[0]), model.predict(table[0]))


def test_where_only_a_line_can_be_learned_the_model_is_a_ridge_regression() -> None:
    """Offsets of places that no predictor tells: a network learns them and fails at the next place."""
    rng = np.random.default_rng(0)
    place = np.repeat(np.arange(40), 25)
    x = np.column_stack([rng.normal(size=(40, 3))[place], rng.normal(size=(1000, 2))])
    y = 0.3 + 0.05 * x[:, 3] - 0.03 * x[:, 0] + 0.06 * rng.normal(size=40)[place] + 0.02 * rng.normal(size=1000)
    inside = place < 30
    model = quick(members=5, max_hidden=8, max_steps=30, generations=30).fit(x[inside], y[inside], place[inside])
    line = RidgeCV(np.logspace(-2, 4, 25)).fit(x[inside], y[inside])
    ours, theirs = (np.sqrt(np.mean((m.predict(x[~inside]) - y[~inside]) ** 2)) for m in (model, line))
    assert model.shrinkage_ < 0.35
    assert ours < 1.01 * theirs
    alone = quick(members=5, max_hidden=8, max_steps=30, generations=30, ridge=False).fit(x[inside], y[inside])
    assert alone.shrinkage_ == 1
    assert not alone.network_["linear"].any()


def test_predictors_are_held_within_what_training_has_seen(table: Table) -> None:
    x, y = table
    model, free = quick().fit(x, y), quick(clip=None).fit(x, y)
    far = x[:1] + np.array([1e6, 0, 0, 0])
    assert np.isfinite(far).all()
    edge = x[:1].copy()
    edge[0, 0] = model.network_["upper"][0]
    np.testing.assert_array_equal(model.predict(far), model.predict(edge))
    assert free.predict(far)[0] != free.predict(edge)[0]
    z = (model.network_["upper"] - x.mean(axis=0)) / x.std(axis=0)
    assert (z <= 2.5 + 1e-9).all()
    np.testing.assert_array_equal(model.training_range_, np.column_stack([x.min(axis=0), x.max(axis=0)]))


def test_inner_folds_keep_groups_whole_and_cover_every_row() -> None:
    rng = np.random.default_rng(0)
    group = rng.integers(0, 17, 400)
    folds = inner_folds(group, 5, rng)
    assert sorted(np.concatenate([held for _, held in folds])) == list(range(400))
    for train, held in folds:
        assert not set(group[train]) & set(group[held])
        assert 40 < len(held) < 120
    assert len(inner_folds(group[:40], 50, rng)) == len(set(group[:40]))
    assert len(inner_folds(np.zeros(9, np.int64), 3, rng)) == 3


def test_memory_does_not_grow_with_the_networks_that_share_rows() -> None:
    """Four decays on the same folds: one set of weights."""
    rng = np.random.default_rng(0)
    X, rows = rng.normal(size=(8000, 10)), 8000
    y = np.tanh(X[:, 0]) + rng.normal(size=rows)
    peaks = []
    for decays in ((0.01,), (0.005, 0.01, 0.02, 0.04, 0.08, 0.16)):
        model = quick(members=5, repeats=2, decays=decays, max_steps=2, population=4, generations=1)
        tracemalloc.start()
        model.fit(X, y, groups=np.arange(rows) % 40)
        peaks.append(tracemalloc.get_traced_memory()[1] / rows)
        tracemalloc.stop()
    # Fifty networks more: a matrix each, 200 bytes a row of this table; weights of their own would take 2 000.
    assert peaks[1] < peaks[0] + 400


@pytest.mark.parametrize("stations", [3, 4, 6, 9])
def test_few_groups_judge_networks_that_they_have_not_stopped(
    table: Table, stations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Member] = []
    judged = gabp_choice.judged

    def watch(samples: Samples, bench: Bench, *rest: Any) -> Any:
        for member in bench.members:
            group = [set(samples.group[rows]) for rows in (member.train, member.stop, member.judge)]
            assert len(set.union(*group)) == sum(map(len, group))
        seen.extend(bench.members)
        return judged(samples, bench, *rest)

    monkeypatch.setattr(gabp_choice, "judged", watch)
    quick(members=5).fit(*table, groups=np.arange(300) % stations)
    # Of three stations one fold holds two, the other one: it judges nothing.
    assert sum(member.judge.size > 0 for member in seen) >= len(seen) // 2
    assert max(len(member.judge) for member in seen) >= 300 // stations


@pytest.mark.parametrize("stations", [1, 2])
def test_where_no_fold_holds_two_groups_rows_judge(table: Table, stations: int) -> None:
    model = quick(members=5).fit(*table, groups=np.arange(300) % stations)
    assert np.isfinite(model.inner_score_)
    assert 0 <= model.shrinkage_ <= 1


def test_groups_change_the_inner_folds_and_their_length_is_checked(table: Table) -> None:
    x, y = table
    groups = np.repeat([f"station {i}" for i in range(10)], 30)
    assert quick().fit(x, y, groups=groups).inner_score_ != quick().fit(x, y).inner_score_
    with pytest.raises(InputError, match=r"one label a row, shape \(300,\); got shape \(10,\)"):
        quick().fit(x, y, groups=groups[:10])


def test_without_groups_rows_of_one_place_stay_together(table: Table) -> None:
    """Places show in their coordinates: what fit learns without groups is what it learns with them."""
    rng = np.random.default_rng(0)
    place = np.repeat(np.arange(15), 20)
    x = np.column_stack([rng.uniform(97, 108, 15)[place], rng.uniform(26, 34, 15)[place], table[0]])
    assert digest(quick().fit(x, table[1])) == digest(quick().fit(x, table[1], groups=place))
    assert digest(quick(validation="rows").fit(x, table[1])) != digest(quick().fit(x, table[1]))


def test_weights_count_as_repetitions(table: Table) -> None:
    x, y = table[0][:60], table[1][:60]
    weight = np.random.default_rng(1).integers(0, 4, 60)
    weighted = quick().fit(x, y, sample_weight=weight)
    repeated = quick().fit(np.repeat(x, weight, axis=0), np.repeat(y, weight))
    np.testing.assert_array_equal(weighted.predict(x), repeated.predict(x))


def test_traces_tell_the_training(table: Table) -> None:
    model = quick(members=1, validation="rows", restarts=1, ridge=False).fit(*table)
    (trace,), (steps,) = model.ga_trace_, model.lm_trace_
    assert np.all(np.diff(trace.best) >= 0)
    assert np.all(trace.mean <= trace.best)
    assert [entry.step for entry in steps] == list(range(len(steps)))
    assert steps[-1].mse < steps[0].mse < 2 * table[1].var()
    assert min(entry.validation_mse for entry in steps) == pytest.approx(model.inner_score_**2)


def test_goal_is_in_units_of_the_target(table: Table) -> None:
    goal = 0.5 * float(table[1].var())
    model = quick(members=1, validation="rows", mse_goal=goal, max_steps=60, restarts=1).fit(*table)
    assert model.stopped_ == ["goal"]
    assert model.lm_trace_[0][-1].mse <= goal
    assert all(entry.mse > goal for entry in model.lm_trace_[0][:-1])


@pytest.mark.parametrize("rows", [2, 3, 5, 9])
@pytest.mark.parametrize("make", [quick, paper])
@pytest.mark.parametrize("engine", ["numpy", "lightning"])
def test_few_rows_give_a_finite_model(table: Table, rows: int, make: Callable[..., GABPRegressor], engine: str) -> None:
    model = make(members=5 if make is quick else 1, engine=engine).fit(table[0][:rows], table[1][:rows])
    assert np.isfinite(model.predict(table[0])).all()


@pytest.mark.parametrize("make", [quick, paper])
def test_constant_columns_count_for_nothing_and_a_constant_target_gives_a_constant(
    table: Table, make: Callable[..., GABPRegressor]
) -> None:
    x = table[0].copy()
    x[:, 1] = 0.1
    model = make().fit(x, table[1])
    elsewhere = x + np.array([0, 7, 0, 0])
    np.testing.assert_array_equal(model.predict(elsewhere), model.predict(x))
    np.testing.assert_allclose(make().fit(x, np.full(300, 0.3)).predict(x), 0.3, rtol=1e-6)
    nothing = make().fit(np.ones((300, 4)), table[1])
    assert np.ptp(nothing.predict(x)) == 0
    assert np.isfinite(nothing.predict(x)).all()


@pytest.mark.parametrize("make", [quick, paper])
@pytest.mark.parametrize(
    "case", ["duplicate columns", "more parameters than rows", "one group", "few groups", "far apart"]
)
def test_hard_tables_give_a_finite_model(table: Table, make: Callable[..., GABPRegressor], case: str) -> None:
    x, y, groups = *table, None
    if case == "duplicate columns":
        x = np.hstack([x, x, x[:, :1]])
    elif case == "more parameters than rows":
        x, y = np.hstack([x, x**2, np.cos(x)])[:12], y[:12]
    elif case == "one group":
        groups = np.zeros(300)
    elif case == "few groups":
        groups = np.arange(300) // 150
    else:
        y = np.where(np.arange(300) == 7, 1e6, y)
    model = make(decays=(0.0,)).fit(x, y, groups)
    assert np.isfinite(model.predict(x)).all()
    assert all(np.isfinite(values).all() for values in model.network_.values())


def test_two_samples_a_fold_give_a_finite_model(table: Table) -> None:
    model = quick(members=5).fit(table[0][:10], table[1][:10], groups=np.repeat(np.arange(5), 2))
    assert np.isfinite(model.predict(table[0])).all()


def test_only_duplicate_rows_are_refused(table: Table) -> None:
    with pytest.raises(InputError, match="needs two distinct rows with weight; got 1 of 30"):
        quick().fit(np.repeat(table[0][:1], 30, axis=0), np.full(30, 0.3))
    with pytest.raises(InputError, match="two distinct rows with weight; got 1 of 300"):
        quick().fit(*table, sample_weight=(np.arange(300) == 3).astype(float))


def test_a_population_that_collapses_gives_a_finite_model(table: Table) -> None:
    """Without mutation, individuals soon are all alike; all restarts then start at one point."""
    still = {"mutation": 0.0, "mutation_fit": 0.0, "mutation_least": 0.0, "spread": 0.0}
    model = quick(population=6, generations=60, restarts=4, genetics=still).fit(*table)
    assert np.isfinite(model.predict(table[0])).all()
    assert model.inner_score_ < table[1].std()


@pytest.mark.parametrize("engine", ["numpy", "lightning"])
def test_networks_that_start_far_out_give_a_finite_model_or_one_line(table: Table, engine: str) -> None:
    """Weights of 1e14 and steps all but undamped: networks whose errors overflow are left out, and none is ever saved."""
    far = {"bound": 1e15, "spread": 1e14}
    model = quick(engine=engine, genetics=far, damping=1e-12, decays=(0.0, 0.01)).fit(*table)
    assert all(np.isfinite(values).all() for values in model.network_.values())
    assert np.isfinite(model.predict(table[0])).all()
    with pytest.raises(InputError, match="overflows in the networks") as error:
        quick(engine=engine, genetics={"bound": 1e38}).fit(*table)
    assert "\n" not in str(error.value)


def test_a_batch_without_a_finite_network_is_refused(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    join = gabp_plan.lm_network.join
    monkeypatch.setattr(gabp_plan.lm_network, "join", lambda *given, **width: join(*given, **width) + np.inf)
    with pytest.raises(InputError, match="no network reached a finite error on the inner folds"):
        quick().fit(*table)


def test_a_network_that_is_not_finite_is_refused() -> None:
    with pytest.raises(InputError, match="a network that is not finite"):
        gabp_choice.check_finite({"b1": np.array([0.0, np.nan])})


@pytest.mark.parametrize("factor", [1e-20, 1e20])
def test_huge_and_tiny_units_give_the_same_model(table: Table, factor: float) -> None:
    x, y = table
    plain = quick().fit(x, y).predict(x)
    np.testing.assert_allclose(quick().fit(x * factor, y * factor).predict(x * factor) / factor, plain, rtol=1e-3)


@pytest.mark.parametrize("factor", [1e-34, 1e34])
def test_units_beyond_single_precision_are_refused(table: Table, factor: float) -> None:
    with pytest.raises(InputError, match="rescale them"):
        quick().fit(table[0] * factor, table[1])
    with pytest.raises(InputError, match="rescale them"):
        quick().fit(table[0], table[1] * factor)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"population": 2}, "population must be at least 4, got 2"),
        ({"max_hidden": 1}, "max_hidden must be at least 2"),
        ({"engine": "torch"}, "engine must be one of lightning, numpy, got 'torch'"),
        ({"validation": "years"}, "validation must be one of blocks, rows"),
        ({"decays": ()}, "decays must be"),
        ({"dtype": "float16"}, "dtype must be one of float32, float64, got 'float16'"),
        ({"accelerator": "tpu"}, "accelerator must be one of auto, cpu, gpu, cuda, got 'tpu'"),
        ({"clip": 0}, "clip must be above 0 or None, got 0"),
        ({"genetics": {"mutatoin": 1}}, "genetics has no mutatoin; it takes bound"),
        ({"genetics": {"population": 9}}, "genetics has no population; it takes bound"),
        (
            {"genetics": {"elite": 2.5, "shrink": "x"}},
            "shrink must be a number, got .x.; elite must be a whole number, got 2.5",
        ),
        ({"genetics": {"mutation": np.nan}}, "mutation is a probability, 0 to 1; got nan"),
        ({"genetics": 3}, "genetics must be a mapping or None, got 3"),
        (
            {"max_hidden": "x", "population": 20.0},
            "population must be a whole number, got 20.0; max_hidden must be a whole",
        ),
        ({"members": True}, "members must be a whole number, got True"),
        ({"generations": -1}, "generations must be at least 1, got -1"),
        ({"max_steps": 10**9}, "max_steps must be at most 100000, got 1000000000"),
        ({"mse_goal": np.nan}, "mse_goal must be a number of at least 0, got nan"),
        ({"damping": np.inf}, "damping must be a number above 0, got inf"),
        ({"validation_fraction": "x"}, "validation_fraction must lie between 0 and 1, got 'x'"),
        ({"clip": np.nan}, "clip must be above 0 or None, got nan"),
        ({"ridge": "no"}, "ridge must be True or False, got 'no'"),
        ({"decays": 0.1}, "decays must be one or more numbers >= 0, got 0.1"),
        ({"decays": (0.1, np.nan)}, "decays must be one or more numbers >= 0"),
        ({"restarts": 21}, "restarts must not exceed population, got 21 of 20"),
        ({"n_jobs": 0}, "n_jobs must be None, at least 1, or below 0 to count from the last CPU; got 0"),
        ({"devices": 0}, "devices must be a number of at least 1, 'auto' or a list of device numbers, got 0"),
        ({"devices": []}, "devices must be a number of at least 1"),
        (
            {"devices": 2},
            "engine='numpy' trains on one CPU; got accelerator='auto', devices=2; take engine='lightning'",
        ),
        ({"accelerator": "gpu"}, "engine='numpy' trains on one CPU; got accelerator='gpu'"),
        ({"checkpoint": 3}, "checkpoint must be a folder or None, got 3"),
        ({"random_state": "x"}, "random_state must be None, .* got 'x'"),
        ({"trainer_options": 3}, "trainer_options must be a mapping or None, got 3"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(table: Table, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        quick(**changes).fit(*table)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"foo": 1}, "trainer_options has no foo"),
        ({"accelerator": "cpu"}, "trainer_options must leave accelerator to the estimator"),
        ({"max_steps": 3}, "trainer_options must leave max_steps to the estimator"),
        ({"precision": 16}, "trainer_options must leave precision to the estimator"),
        ({"callbacks": "x"}, "callbacks must be one of Lightning's or a list of them, got 'x'"),
        ({"logger": 3}, "logger must be one of Lightning's or a list of them, got 3"),
        ({"strategy": "foo"}, "Lightning refuses .* invalid strategy name: `strategy='foo'`"),
        ({"max_time": "00:00:00:00"}, "Lightning ended before the first step; look at trainer_options"),
    ],
)
def test_options_that_lightning_refuses_are_named_in_one_line(
    table: Table, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        quick(engine="lightning", trainer_options=options).fit(*table)
    assert "\n" not in str(error.value)


def test_jobs_below_zero_count_from_the_last_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ga, "cpus", lambda: 8)
    found = [Machine("numpy", "cpu", 1, jobs, {}).threads(10**6) for jobs in (None, 3, 20, -1, -3, -99)]
    assert found == [8, 3, 20, 8, 6, 1]
    assert Machine("numpy", "cpu", 1, None, {}).threads(1700) == 3
    assert Machine("numpy", "cpu", 1, None, {}).threads(5) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_missing_values_are_refused(table: Table, bad: float) -> None:
    (x, y), hole = table, np.where(np.arange(300) == 3, bad, 1.0)
    for given in ((x * hole[:, None], y), (x, y * hole), (x, y, None, hole)):
        with pytest.raises(InputError, match=r"GABPRegressor: Input .* contains (NaN|infinity)") as error:
            quick().fit(*given)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        quick().fit(x, y).predict(x * hole[:, None])


@pytest.mark.parametrize(
    ("y", "weight", "message"),
    [
        (np.array(["wet", "dry"] * 150), None, "y must hold numbers; got <U3, such as 'wet'"),
        (np.array(["wet", "dry"] * 150, object), None, "could not convert string to float: 'wet'"),
        (np.arange(300).astype("M8[D]"), None, "y must hold numbers; got datetime64"),
        (np.arange(5.0), None, r"inconsistent numbers of samples: \[300, 5\]"),
        (np.arange(600.0).reshape(300, 2), None, r"y should be a 1d array, got an array of shape \(300, 2\)"),
        (np.arange(300.0), np.full(300, -1.0), "Negative values in data passed to `sample_weight`"),
        (np.arange(300.0), np.zeros(300), "eights? "),
        (np.arange(300.0), np.full(300, 1e308), "sample_weight adds up to infinity; its largest is 1e.308"),
    ],
)
def test_targets_and_weights_that_are_none_are_refused_in_one_line(
    table: Table, y: NDArray[Any], weight: NDArray[Any] | None, message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        quick().fit(table[0], y, sample_weight=weight)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("weight", [1e-320, 1e300])
def test_weights_of_any_size_give_a_finite_model(table: Table, weight: float) -> None:
    weights = np.where(np.arange(300) % 2, weight, 1.0)
    assert np.isfinite(quick().fit(*table, sample_weight=weights).predict(table[0])).all()


@pytest.mark.parametrize("settings", [{}, {"clip": None}, {"clip": None, "ridge": False}])
def test_predictors_beyond_single_precision_are_refused_in_predict(table: Table, settings: dict[str, Any]) -> None:
    x, y = table
    model, far = quick(**settings).fit(x, y), x.copy()
    far[7] *= 1e30
    assert np.isfinite(model.predict(far)).all()
    far[7, 2] = 1e39
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            InputError, match=r"1 of 300 predictions are not finite in float32: predictors reach 1e\+39"
        ):
            model.predict(far)


@pytest.mark.parametrize(
    ("factor", "what"), [(1e300, "large"), (1e200, "large"), (1e-300, "little"), (1e-200, "little")]
)
def test_values_that_have_no_variance_in_double_precision_are_refused(table: Table, factor: float, what: str) -> None:
    x, y = table[0][:, [0, 1]], table[1]
    for given in ((x * factor, y), (x, y * factor)):
        with pytest.raises(InputError, match=f"too {what} to be standardised"):
            quick().fit(*given)
    small = np.full_like(y, 1e-300)
    assert quick().fit(x, small).predict(x) == pytest.approx(0.0, abs=1e-37)


def test_papers_network_is_one_trained_by_its_rules(table: Table) -> None:
    x, y = table[0], 10 * table[1]
    model = paper(generations=60, mse_goal=0.02).fit(x, y)
    (trace,), (steps,) = model.ga_trace_, model.lm_trace_
    assert model.shrinkage_ == 1
    assert not model.network_["linear"].any()
    assert 2 <= model.n_hidden_ == model.members_hidden_[0] == trace.hidden[-1] <= 20
    np.testing.assert_allclose(trace.best, 1 / trace.sse, rtol=1e-6)
    assert steps[0].damping == 0.05
    assert model.stopped_ == ["goal"]
    assert steps[-1].mse <= 0.02


def test_paper_settings_are_the_papers() -> None:
    paper = GABPRegressor.paper(random_state=5)
    assert (paper.population, paper.generations, paper.mse_goal, paper.damping) == (100, 4000, 0.001, 0.05)
    assert (paper.members, paper.validation, paper.validation_fraction) == (1, "rows", 0.3)
    assert (paper.ridge, paper.clip, paper.decays, paper.restarts, paper.repeats) == (False, None, (0.0,), 1, 1)
    assert set(paper.PAPER_ASSUMED) <= set(paper.get_params())
    clone(paper)


def test_works_in_a_pipeline_with_cross_validation_and_pickles(table: Table) -> None:
    groups = np.repeat(np.arange(10), 30)
    pipeline = make_pipeline(StandardScaler(), quick())
    scores = cross_val_score(pipeline, *table, groups=groups, cv=GroupKFold(3))
    assert scores.shape == (3,)
    model = quick().fit(*table)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(table[0]), model.predict(table[0]))


def test_grid_search_chooses_among_settings(table: Table) -> None:
    search = GridSearchCV(quick(), {"max_hidden": [3, 4], "ridge": [True, False]}, cv=3).fit(*table)
    assert set(search.best_params_) == {"max_hidden", "ridge"}
    np.testing.assert_array_equal(search.predict(table[0]), clone(search.best_estimator_).fit(*table).predict(table[0]))


def test_dask_predicts_in_parallel(table: Table) -> None:
    wrappers = pytest.importorskip("dask_ml.wrappers")
    import dask.array as da

    model = wrappers.ParallelPostFit(quick()).fit(*table)
    found = model.predict(da.from_array(table[0], chunks=(70, 4)))
    np.testing.assert_array_equal(found.compute(), model.estimator.predict(table[0]))


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.parametrize("grouped", [True, False])
def test_unseen_stations_are_predicted_better_than_by_ridge(real: Callable[[str], Path], grouped: bool) -> None:
    """Defaults, on USCRN 2020, whole stations held out (measured, every 6th row: 0.083 to 0.086; ridge 0.0985)."""
    x, y, station = _uscrn(real("stations/uscrn_daily_2020.parquet"))
    ours, ridge = np.empty_like(y), np.empty_like(y)
    for train, test in GroupKFold(3).split(x, y, station):
        model = GABPRegressor(random_state=0, engine="numpy")
        ours[test] = model.fit(x[train], y[train], station[train] if grouped else None).predict(x[test])
        ridge[test] = make_pipeline(StandardScaler(), Ridge()).fit(x[train], y[train]).predict(x[test])
    assert np.mean((ours - y) ** 2) < 0.9 * np.mean((ridge - y) ** 2)


def _uscrn(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[Any]]:
    """Twelve predictors, 5 cm soil moisture and station of every 18th row."""
    days = pd.read_parquet(path).sort_values(["wban", "lst_date"])
    days["rain_1"] = days["p_daily_calc"].fillna(0)
    for span in (3, 10, 30):
        days[f"rain_{span}"] = days.groupby("wban")["rain_1"].transform(lambda s, n=span: s.rolling(n, 1).sum())
    angle = 2 * np.pi * days["lst_date"].dt.day_of_year / 366
    days = days.assign(sine=np.sin(angle), cosine=np.cos(angle))
    predictors = [
        "longitude", "latitude", "sur_temp_daily_avg", "t_daily_avg", "solarad_daily", "rh_daily_avg",
        "rain_1", "rain_3", "rain_10", "rain_30", "sine", "cosine",
    ]  # fmt: skip
    days = days.dropna(subset=[*predictors, "soil_moisture_5_daily"]).iloc[::18]
    return days[predictors].to_numpy(float), days["soil_moisture_5_daily"].to_numpy(float), days["wban"].to_numpy()
