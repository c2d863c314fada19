"""The paper's GABP network: a genetic algorithm finds where to start, Levenberg-Marquardt finishes.

The paper trains one network. By default several are trained, one per inner fold, each stopped on the fold that it has not
seen; their mean is again one network of one hidden layer, which is what predicts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from smscale.errors import InputError
from smscale.kernels import ga, lm
from smscale.models.network import fold
from smscale.models.samples import (
    Floats,
    Rows,
    Samples,
    Scaling,
    group_labels,
    implied_groups,
    inner_folds,
    inner_split,
    merge_rows,
    scaling_of,
    standardised,
)

ENGINES = ("lightning", "numpy")
VALIDATIONS = ("blocks", "rows")


class Candidate(NamedTuple):
    """A network in training: which inner fold stops it, what decay it has."""

    fold: int
    decay: float
    training: lm.Training


class GABPRegressor(RegressorMixin, BaseEstimator):
    """One hidden tanh layer, started by a genetic algorithm and finished by Levenberg-Marquardt.

    Predictors and target are standardised inside. Inner folds (whole groups, where `fit` gets groups) choose the step at
    which training stops, the restart and the decay; they never score. Rows that repeat are merged and their weights added.
    Deterministic for a seed, whatever the number of threads.

    Parameters
    ----------
    population, generations : of the genetic algorithm, for each member
    max_hidden : the most neurons of a member
    mse_goal : training ends when the mean squared error falls to this, units of y squared
    random_state : None, int or RandomState
    min_hidden : the fewest neurons of a member
    members : inner folds, one network each; 1 trains one network, stopped on `validation_fraction` of the rows
    restarts : individuals of each last population that Levenberg-Marquardt goes on from
    decays : ridges on the weights, per sample and in standardised units; the inner folds choose among them
    damping : of the first step
    max_steps : at most so many steps of Levenberg-Marquardt
    patience : steps without a better inner fold after which training ends
    validation : inner folds when `fit` gets no groups: "blocks" (clusters in predictor space, so that a fold asks for
        more than its neighbours) or "rows" (at random)
    validation_fraction : with one member, share of the rows that stop it
    plateau : generations without a fall of the best error by 0.1 % after which the genetic algorithm ends
    genetics : other settings of `kernels.ga.Settings` (crossover, mutation, shrink, elite, bound, spread)
    engine : "lightning" (its trainer drives each step) or "numpy" (a plain loop; the same numbers)
    accelerator, devices, trainer_options : Lightning's; the options are further arguments of its Trainer (logger,
        enable_progress_bar, enable_checkpointing, callbacks ...), off by default
    n_jobs : threads; None takes the CPUs that the process may use

    Attributes
    ----------
    network_ : dict of arrays, see `models.network.ARRAYS`
    n_hidden_ : neurons of the network; members_hidden_ : of each member
    decay_ : the chosen one
    ga_trace_ : per member a `kernels.ga.Trace` (fitness 1/SSE, y in standardised units)
    lm_trace_ : per member a list of `kernels.lm.Entry` (mse in units of y squared)
    stopped_ : why each member's training ended
    inner_score_ : RMSE on the inner folds, units of y
    training_range_ : (k, 2) least and greatest value of each predictor
    n_features_in_ : int
    """

    #: Settings of `paper()` that the paper does not publish.
    PAPER_ASSUMED = ("max_hidden", "min_hidden", "max_steps", "patience", "plateau", "genetics")

    def __init__(
        self,
        population: int = 100,
        generations: int = 60,
        max_hidden: int = 12,
        mse_goal: float = 0.0,
        random_state: int | np.random.RandomState | None = None,
        min_hidden: int = 2,
        members: int = 5,
        restarts: int = 2,
        decays: Sequence[float] = (0.001, 0.01, 0.1),
        damping: float = 1.0,
        max_steps: int = 60,
        patience: int = 8,
        validation: str = "blocks",
        validation_fraction: float = 0.2,
        plateau: int = 100,
        genetics: Mapping[str, float] | None = None,
        engine: str = "lightning",
        accelerator: str = "auto",
        devices: int | str = 1,
        trainer_options: Mapping[str, Any] | None = None,
        n_jobs: int | None = None,
    ):
        self.population = population
        self.generations = generations
        self.max_hidden = max_hidden
        self.mse_goal = mse_goal
        self.random_state = random_state
        self.min_hidden = min_hidden
        self.members = members
        self.restarts = restarts
        self.decays = decays
        self.damping = damping
        self.max_steps = max_steps
        self.patience = patience
        self.validation = validation
        self.validation_fraction = validation_fraction
        self.plateau = plateau
        self.genetics = genetics
        self.engine = engine
        self.accelerator = accelerator
        self.devices = devices
        self.trainer_options = trainer_options
        self.n_jobs = n_jobs

    @classmethod
    def paper(cls, random_state: int | np.random.RandomState | None = None) -> GABPRegressor:
        """The paper's settings: population 100, up to 4 000 generations, one network, 30 % random validation, MSE 0.001.

        Its "learning rate 0.05" is read as the first damping, as trainlm has no learning rate. Those in `PAPER_ASSUMED` it
        does not publish; steps and patience are trainlm's own defaults.
        """
        return cls(
            population=100,
            generations=4000,
            max_hidden=20,
            mse_goal=0.001,
            random_state=random_state,
            members=1,
            restarts=1,
            decays=(0.0,),
            damping=0.05,
            max_steps=1000,
            patience=6,
            validation="rows",
            validation_fraction=0.3,
        )

    def fit(
        self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> GABPRegressor:
        """Train on X (n, k), y (n,); `groups` (n,) are labels that inner folds keep whole, `sample_weight` (n,) >= 0.

        Raises
        ------
        InputError : a setting out of range, fewer than two distinct rows, groups of another length, values too large
        """
        self._check_settings()
        table, values = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        weight = _check_sample_weight(sample_weight, table, dtype=np.float64, ensure_non_negative=True)
        samples = merge_rows(table, values, weight, group_labels(groups, len(table)))
        scaling = scaling_of(samples)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with threadpool_limits(1), ThreadPoolExecutor(self._threads()) as pool:
            self._learn(standardised(samples, scaling), scaling, groups is not None, seed, pool)
        self.training_range_ = np.column_stack([samples.X.min(axis=0), samples.X.max(axis=0)])
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float32]:
        """(n,) float32, units of y, for X (n, k)."""
        check_is_fitted(self)
        table = validate_data(self, X, reset=False, dtype=[np.float32, np.float64])
        return fold(self.network_).predict(table)

    def _learn(self, samples: Samples, scaling: Scaling, grouped: bool, seed: int, pool: ThreadPoolExecutor) -> None:
        variance = scaling.target_scale**2
        folds = self._folds(samples, grouped, seed)
        evolved = [
            self._evolve(samples, train, np.random.default_rng([seed, number]))
            for number, (train, _) in enumerate(folds)
        ]
        candidates = [
            self._candidate(samples, folds[number], number, chromosome, decay, variance)
            for number, result in enumerate(evolved)
            for chromosome in _starts(result.population, self.restarts)
            for decay in self.decays
        ]
        self._train([candidate.training for candidate in candidates], variance, pool)
        sizes = [float(samples.weight[held].sum()) for _, held in folds]
        self.decay_, score = _choose_decay(candidates, sizes, self.decays)
        chosen = [_best(candidates, number, self.decay_) for number in range(len(folds))]
        self.inner_score_ = float(np.sqrt(score * variance))
        self.network_ = _mean_network(chosen, samples.X.shape[1]) | _arrays(scaling)
        self.members_hidden_ = [run.watch.problem.hidden for run in chosen]
        self.n_hidden_ = sum(self.members_hidden_)
        self.ga_trace_ = [result.trace for result in evolved]
        self.lm_trace_ = [[_in_units(entry, variance) for entry in run.watch.trace] for run in chosen]
        self.stopped_ = [str(run.reason) for run in chosen]

    def _folds(self, samples: Samples, grouped: bool, seed: int) -> list[tuple[Rows, Rows]]:
        rng = np.random.default_rng(seed)
        group = samples.group
        if not grouped and self.validation == "blocks":
            group = implied_groups(samples, seed)
        if self.members == 1:
            return [inner_split(group, self.validation_fraction, rng)]
        return inner_folds(group, self.members, rng)

    def _evolve(self, samples: Samples, rows: Rows, rng: np.random.Generator) -> ga.Result:
        settings = ga.Settings(
            population=self.population,
            generations=self.generations,
            max_hidden=self.max_hidden,
            min_hidden=self.min_hidden,
            plateau=self.plateau,
            **(self.genetics or {}),  # type: ignore[arg-type]
        )
        return ga.evolve(samples.X[rows], samples.y[rows], settings, rng, samples.weight[rows], self._threads())

    def _candidate(
        self,
        samples: Samples,
        rows: tuple[Rows, Rows],
        number: int,
        chromosome: NDArray[np.float32],
        decay: float,
        variance: float,
    ) -> Candidate:
        train, held = rows
        w1, b1, w2, b2 = ga.network(chromosome, samples.X.shape[1])
        weight = samples.weight[train]
        problem = lm.NetworkProblem(samples.X[train], samples.y[train], weight, len(b1), decay * float(weight.sum()))
        validation = lm.Validation(samples.X[held], samples.y[held], samples.weight[held])
        watch = lm.Watch(problem, validation, self.mse_goal / variance, self.patience, self.max_steps)
        return Candidate(number, decay, lm.Training.begin(watch, lm.join(w1, b1, w2, b2), lm.Settings(self.damping)))

    def _train(self, runs: list[lm.Training], variance: float, pool: ThreadPoolExecutor) -> None:
        if self.engine == "numpy":
            list(pool.map(_to_the_end, runs))
            return
        from smscale.models import gabp_lightning

        options = dict(self.trainer_options or {})
        gabp_lightning.train(runs, variance, pool, self.max_steps, self.accelerator, self.devices, options)

    def _threads(self) -> int:
        return self.n_jobs if self.n_jobs is not None and self.n_jobs > 0 else ga.cpus()

    def _check_settings(self) -> None:
        """A line for each setting that cannot be."""
        wrong = [
            f"{name} must be at least {least}, got {getattr(self, name)!r}"
            for name, least in (
                ("population", 4), ("generations", 0), ("min_hidden", 1), ("members", 1), ("restarts", 1), ("max_steps", 0),
                ("patience", 1), ("plateau", 1), ("mse_goal", 0), ("max_hidden", self.min_hidden),
            )
            if getattr(self, name) < least
        ]  # fmt: skip
        if self.restarts > self.population:
            wrong.append(f"restarts must not exceed population, got {self.restarts} of {self.population}")
        if self.engine not in ENGINES:
            wrong.append(f"engine must be one of {', '.join(ENGINES)}, got {self.engine!r}")
        if self.validation not in VALIDATIONS:
            wrong.append(f"validation must be one of {', '.join(VALIDATIONS)}, got {self.validation!r}")
        if not len(self.decays) or min(self.decays) < 0:
            wrong.append(f"decays must be one or more numbers >= 0, got {self.decays!r}")
        if not 0 < self.validation_fraction < 1 or not self.damping > 0:
            wrong.append("validation_fraction must lie between 0 and 1, and damping above 0")
        unknown = sorted(set(self.genetics or {}) - set(ga.Settings.__dataclass_fields__))
        if unknown:
            wrong.append(
                f"genetics has no {', '.join(unknown)}; it takes {', '.join(ga.Settings.__dataclass_fields__)}"
            )
        if wrong:
            raise InputError("GABPRegressor: " + "; ".join(wrong))


def _arrays(scaling: Scaling) -> dict[str, Floats]:
    return {name: np.asarray(value) for name, value in scaling._asdict().items()}


def _starts(population: NDArray[np.float32], restarts: int) -> NDArray[np.float32]:
    """The best individual, and others down to the median of a sorted population."""
    return population[np.linspace(0, len(population) // 2, restarts, endpoint=False).astype(np.intp)]


def _to_the_end(run: lm.Training) -> None:
    while run.reason is None:
        run.advance()


def _best(candidates: list[Candidate], number: int, decay: float) -> lm.Training:
    runs = [c.training for c in candidates if c.fold == number and c.decay == decay]
    return min(runs, key=lambda run: run.watch.best_mse)


def _choose_decay(candidates: list[Candidate], sizes: list[float], decays: Sequence[float]) -> tuple[float, float]:
    """The decay whose restarts do best on the inner folds together (the larger of equals), and that mean squared error."""
    errors = {
        decay: sum(size * _best(candidates, number, decay).watch.best_mse for number, size in enumerate(sizes))
        / sum(sizes)
        for decay in sorted(decays, reverse=True)
    }
    decay = min(errors, key=lambda d: errors[d])
    if not np.isfinite(errors[decay]):
        raise InputError(
            "no network reached a finite error on the inner folds; look for extreme values in the predictors"
        )
    return decay, errors[decay]


def _mean_network(runs: list[lm.Training], k: int) -> dict[str, Floats]:
    """The mean of several networks, which is one network whose hidden layer holds all their neurons."""
    parts = [lm.split(run.watch.best, k) for run in runs if run.watch.best is not None]
    return {
        "w1": np.ascontiguousarray(np.hstack([w1 for w1, _, _, _ in parts])),
        "b1": np.concatenate([b1 for _, b1, _, _ in parts]),
        "w2": np.concatenate([w2 for _, _, w2, _ in parts]) / len(parts),
        "b2": np.asarray(np.mean([b2 for _, _, _, b2 in parts])),
    }


def _in_units(entry: lm.Entry, variance: float) -> lm.Entry:
    return entry._replace(mse=entry.mse * variance, validation_mse=entry.validation_mse * variance)
