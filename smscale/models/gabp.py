"""The paper's GABP network: a genetic algorithm finds where to start, Levenberg-Marquardt finishes.

The paper trains one network. By default many are trained, several on each of some inner folds; each stops on one half of
the fold that it has not seen and is judged on the other half. Their mean is again one network of one hidden layer. It is
taken only as far over a ridge regression as it does better where it is judged; where nothing can be learned beyond a
line, the model is that line.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from smscale.errors import InputError
from smscale.kernels import ga, lm, lm_network
from smscale.models.blend import Blend, blend
from smscale.models.network import UNBOUNDED, fold
from smscale.models.record import versions
from smscale.models.restarts import Restarts
from smscale.models.ridge import held_out_lines, ridge_coefficients, ridge_penalty
from smscale.models.samples import (
    Floats,
    Labels,
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
ACCELERATORS = ("auto", "cpu", "gpu", "cuda")
VALIDATIONS = ("blocks", "rows")
#: Rows a thread.
SMALL = 500
#: Between these a standard deviation and what is multiplied by its inverse have room in float32.
SMALLEST, LARGEST = 1e-30, 1e30


class Entry(NamedTuple):
    """A step in a training trace; mse in target units squared."""

    step: int
    mse: float
    validation_mse: float
    damping: float


class Member(NamedTuple):
    """A network to train: rows that train it, rows that stop it, rows that judge it; `seat` counts the judges of a row."""

    train: Rows
    stop: Rows
    judge: Rows
    seat: int
    chromosome: NDArray[np.floating[Any]]


class Evolved(NamedTuple):
    """What is kept of a genetic algorithm: the individuals to go on from (restarts, g), and how it went."""

    starts: NDArray[np.floating[Any]]
    trace: ga.Trace


class Chosen(NamedTuple):
    """A decay, its networks (numbers among all trained) and what is made of them."""

    decay: float
    networks: Rows
    blend: Blend


class GABPRegressor(RegressorMixin, BaseEstimator):
    """One hidden tanh layer, started by a genetic algorithm and finished by Levenberg-Marquardt.

    Predictors are held within what training has seen, then they and the target are standardised. Inner folds (whole groups, where `fit` gets groups; else the places that
    the predictors show) choose the step at which training stops, the decay and how much of the networks is taken over a
    ridge regression; they never score. Rows that repeat are merged and their weights added, rows of weight 0 left out;
    constant predictors are left out, a constant target gives a constant. Deterministic for a seed, whatever the number of
    threads or processes.

    Parameters
    ----------
    population, generations : of the genetic algorithm, for each inner fold
    max_hidden : the most neurons of a member
    mse_goal : training ends when the mean squared error falls to this, units of y squared
    random_state : None, int or RandomState
    min_hidden : the fewest neurons of a member
    members : inner folds of a partition, fewer where a fold would hold out a single group; 1 holds out `validation_fraction` of the rows once
    repeats : partitions into inner folds
    restarts : networks of each inner fold: individuals of its last population, from the best down to the median, that
        Levenberg-Marquardt goes on from. The model holds the mean of all
    decays : ridges on the weights, per sample and in standardised units; the inner folds choose among them
    ridge : blend the networks with a ridge regression, as the inner folds approve; False is the networks alone
    clip : predictors are held within so many standard deviations of their mean, and within their range, over the
        training rows, in `predict` too; None holds them nowhere
    damping : of the first step
    max_steps : at most so many steps of Levenberg-Marquardt
    patience : steps without a better inner fold after which training ends
    validation : inner folds when `fit` gets no groups: "blocks" (places, or clusters in predictor space, so that a fold
        asks for more than its neighbours) or "rows" (at random)
    validation_fraction : with one member, share of the rows that is held out
    plateau : generations without a fall of the best error by 0.1 % after which the genetic algorithm ends
    genetics : other settings of `kernels.ga.Settings` (crossover, mutation, shrink, elite, bound, spread)
    engine : "lightning" (its trainer drives each step) or "numpy" (a plain loop on the CPU; the same numbers)
    accelerator : "auto" (a CUDA device where there is one), "cpu" or "gpu"
    devices : Lightning's; the networks are spread over them, one process each
    trainer_options : further arguments of Lightning's Trainer (logger, enable_progress_bar, enable_checkpointing,
        callbacks, strategy ...), off by default; enable_progress_bar shows the genetic algorithm too
    dtype : "float32" or "float64", of the work per sample; sums, linear systems and weights are float64
    checkpoint : folder in which a training that was stopped goes on when `fit` is called again with the same samples,
        settings and integer `random_state`; the result has the same bytes. None keeps nothing
    n_jobs : threads; None takes the CPUs that the process may use

    Attributes
    ----------
    network_ : dict of arrays, see `models.network.ARRAYS`
    n_hidden_ : neurons of the network; members_hidden_ : of each member
    decay_ : the chosen one
    shrinkage_ : share of the networks in the model, 0 to 1; the rest is the ridge regression
    ga_trace_ : per inner fold a `kernels.ga.Trace` (fitness 1/SSE, y in standardised units)
    lm_trace_ : per member a list of `Entry` (mse in units of y squared)
    stopped_ : why each member's training ended
    inner_score_ : RMSE that the inner folds promise, units of y
    training_range_ : (k, 2) least and greatest value of each predictor
    n_features_in_ : int
    """

    #: Settings of `paper()` that the paper does not publish.
    PAPER_ASSUMED = ("max_hidden", "min_hidden", "max_steps", "patience", "plateau", "genetics", "dtype")

    def __init__(
        self,
        population: int = 100,
        generations: int = 60,
        max_hidden: int = 12,
        mse_goal: float = 0.0,
        random_state: int | np.random.RandomState | None = None,
        min_hidden: int = 2,
        members: int = 5,
        repeats: int = 2,
        restarts: int = 2,
        decays: Sequence[float] = (0.002, 0.007, 0.02, 0.06),
        ridge: bool = True,
        clip: float | None = 2.5,
        damping: float = 1.0,
        max_steps: int = 40,
        patience: int = 6,
        validation: str = "blocks",
        validation_fraction: float = 0.2,
        plateau: int = 100,
        genetics: Mapping[str, float] | None = None,
        engine: str = "lightning",
        accelerator: str = "auto",
        devices: int | str = 1,
        trainer_options: Mapping[str, Any] | None = None,
        dtype: str = "float32",
        checkpoint: str | os.PathLike[str] | None = None,
        n_jobs: int | None = None,
    ):
        self.population = population
        self.generations = generations
        self.max_hidden = max_hidden
        self.mse_goal = mse_goal
        self.random_state = random_state
        self.min_hidden = min_hidden
        self.members = members
        self.repeats = repeats
        self.restarts = restarts
        self.decays = decays
        self.ridge = ridge
        self.clip = clip
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
        self.dtype = dtype
        self.checkpoint = checkpoint
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
            repeats=1,
            restarts=1,
            decays=(0.0,),
            ridge=False,
            clip=None,
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
        InputError : a setting out of range, fewer than two distinct rows, groups of another length, values too large or
            too small for float32
        """
        self._check_settings()
        table, values = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        weight = _check_sample_weight(sample_weight, table, dtype=np.float64, ensure_non_negative=True)
        samples = merge_rows(table, values, weight, group_labels(groups, len(table)))
        range_ = np.column_stack([samples.X.min(axis=0), samples.X.max(axis=0)])
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with threadpool_limits(1):
            samples = self._grouped(samples, groups is not None, seed)
            samples, bounds = _held_within(samples, self.clip)
            scaling = scaling_of(samples)
            _check_float32(samples, scaling)
            self._learn(standardised(samples, scaling), scaling, seed)
        self.network_ |= bounds
        self.training_range_ = range_
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float32]:
        """(n,) float32, units of y, for X (n, k)."""
        check_is_fitted(self)
        table = validate_data(self, X, reset=False, dtype=[np.float32, np.float64])
        return fold(self.network_).predict(table)

    def _grouped(self, samples: Samples, grouped: bool, seed: int) -> Samples:
        """With the groups that inner folds keep whole, numbered by their first rows."""
        group = samples.group
        if not grouped and self.validation == "blocks":
            names = getattr(self, "feature_names_in_", None)
            group = implied_groups(standardised(samples, scaling_of(samples)), seed, names)
        return samples._replace(group=_by_appearance(group))

    def _learn(self, samples: Samples, scaling: Scaling, seed: int) -> None:
        variance = scaling.target_scale**2
        samples, folds = _fold_by_fold(samples, self._folds(samples.group, seed))
        kept = self._kept(samples, folds, seed, variance)
        evolved = self._evolved(samples, folds, seed, kept)
        members = self._members(samples.group, folds, evolved, seed)
        trained = self._trained(self._restarts(samples, members, variance), variance, kept)
        penalty, coefficients = self._ridge(samples, seed)
        line = _held_out_line(samples, folds, penalty)
        chosen = self._choice(samples, members, trained, line)
        used = [number % len(members) for number in chosen.networks]
        share = 0.0 if _constant(samples.y) else chosen.blend.share
        network = _mean_network(trained.best[chosen.networks], samples.X.shape[1], share, coefficients)
        network["w1"][_constant(samples.X)] = 0.0
        _check_finite(network)
        self.network_ = network | _arrays(scaling)
        self.decay_, self.shrinkage_ = chosen.decay, share
        self.inner_score_ = float(np.sqrt(chosen.blend.mse * variance))
        self.members_hidden_ = [len(ga.network(members[i].chromosome, samples.X.shape[1])[1]) for i in used]
        self.n_hidden_ = len(network["b1"])
        self.ga_trace_ = [result.trace for result in evolved]
        self.lm_trace_ = [_entries(trained.trace[i], variance) for i in chosen.networks]
        reasons = lm_network.reasons(trained)
        self.stopped_ = [reasons[i] for i in chosen.networks]

    def _folds(self, group: Labels, seed: int) -> list[tuple[Rows, Rows]]:
        """Training and held-out rows, one partition after the other."""
        found = []
        members, groups = self.members, np.unique(group).size
        if self._chooses and members > 1 and groups > 1:
            # A fold of two groups at least: one stops training, the other judges.
            members = min(members, max(2, groups // 2))
        for repeat in range(self.repeats):
            rng = np.random.default_rng([seed, repeat])
            if self.members == 1:
                found.append(inner_split(group, self.validation_fraction, rng))
            else:
                found += inner_folds(group, members, rng)
        return found

    def _evolved(
        self, samples: Samples, folds: Sequence[tuple[Rows, Rows]], seed: int, kept: Path | None
    ) -> list[Evolved]:
        path = kept.with_suffix(".npz") if kept else None
        found = _load(path, len(folds)) if path else None
        if found is None:
            with _progress(self.trainer_options, len(folds) * self.generations) as report:
                found = [
                    self._evolve(
                        samples, train, np.random.default_rng([seed, number]), report(number * self.generations)
                    )
                    for number, (train, _) in enumerate(folds)
                ]
            if path:
                _save(path, found)
        return found

    def _evolve(
        self, samples: Samples, rows: Rows, rng: np.random.Generator, progress: Callable[[int, float], None] | None
    ) -> Evolved:
        settings = ga.Settings(
            population=self.population,
            generations=self.generations,
            max_hidden=self.max_hidden,
            min_hidden=self.min_hidden,
            plateau=self.plateau,
            **(self.genetics or {}),  # type: ignore[arg-type]
        )
        device = self._device()
        found = ga.evolve(
            samples.X[rows],
            samples.y[rows],
            settings,
            rng,
            samples.weight[rows],
            self._threads(len(rows)),
            progress,
            engine="numba" if device == "cpu" else "torch",
            device=device,
            dtype=self.dtype,
        )
        # The best individual, and others down to the median.
        starts = np.linspace(0, len(found.population) // 2, self.restarts, endpoint=False).astype(np.intp)
        return Evolved(found.population[starts], found.trace)

    @property
    def _chooses(self) -> bool:
        """Whether rows must be set aside that judge."""
        return bool(self.ridge) or len(self.decays) > 1

    def _members(
        self, group: Labels, folds: Sequence[tuple[Rows, Rows]], evolved: Sequence[Evolved], seed: int
    ) -> list[Member]:
        """The networks of one decay."""
        found = []
        for number, ((train, held), result) in enumerate(zip(folds, evolved, strict=True)):
            halves = [held, held]
            if self._chooses and held.size > 1:
                rng = np.random.default_rng([seed, number, 1])
                halves = [held[half] for _, half in inner_folds(group[held], 2, rng)]
            repeat = number * self.repeats // len(folds)
            for restart, chromosome in enumerate(result.starts):
                side = (number + restart) % 2
                seat = repeat * self.restarts + restart
                found.append(Member(train, halves[side], halves[1 - side], seat, chromosome))
        return _judged_apart(found, group) if self._chooses else found

    def _restarts(self, samples: Samples, members: Sequence[Member], variance: float) -> Restarts:
        """All networks: those of the first decay, then those of the next."""
        parts = [ga.network(member.chromosome, samples.X.shape[1]) for member in members]
        hidden = np.array([len(b1) for _, b1, _, _ in parts])
        start = np.array([lm_network.join(*part, width=int(hidden.max())) for part in parts])
        weight, validation = np.zeros((2, len(members), len(samples.y)))
        for i, member in enumerate(members):
            weight[i, member.train] = samples.weight[member.train]
            validation[i, member.stop] = samples.weight[member.stop]
        times = len(self.decays)
        return Restarts(
            samples.X,
            samples.y,
            weight,
            validation,
            np.tile(np.arange(len(members)), times),
            np.tile(hidden, times),
            np.repeat(np.asarray(self.decays, float), len(members)),
            np.tile(start, (times, 1)),
            lm.Settings(damping=self.damping, max_steps=self.max_steps),
            lm_network.Stop(self.mse_goal / variance, self.patience),
            self.dtype,
        )

    def _trained(self, restarts: Restarts, variance: float, kept: Path | None) -> lm_network.Training:
        if self.engine == "numpy":
            return restarts.trained(self._threads(len(restarts.y)))
        from smscale.models import gabp_lightning

        options = dict(self.trainer_options or {})
        accelerator = "cpu" if self._device() == "cpu" else "gpu"
        path = kept.with_suffix(".ckpt") if kept else None
        return gabp_lightning.train(
            restarts, variance, self._threads(len(restarts.y)), accelerator, self.devices, options, path
        )

    def _ridge(self, samples: Samples, seed: int) -> tuple[float, Floats]:
        """The penalty and the coefficients (k,) of the ridge regression, which are 0 without one."""
        X, y, weight, group = samples
        penalty = ridge_penalty(X, y, weight, group, seed) if self.ridge else np.inf
        return penalty, ridge_coefficients(X, y, weight, penalty)

    def _choice(
        self, samples: Samples, members: Sequence[Member], trained: lm_network.Training, line: Floats
    ) -> Chosen:
        """The decay whose networks and ridge together do best where they are judged; the larger of equals."""
        found = []
        for number in np.argsort(self.decays)[::-1]:
            networks = number * len(members) + np.arange(len(members))
            networks = networks[np.isfinite(trained.best_mse[networks])]
            if any(members[i % len(members)].judge.size for i in networks):
                judged = self._judged(samples, members, trained, networks, line)
                found.append(Chosen(float(self.decays[number]), networks, judged))
        if not found:
            raise InputError(
                "no network reached a finite error on the inner folds; look for extreme values in the predictors"
            )
        return min(found, key=lambda chosen: chosen.blend.mse)

    def _judged(
        self, samples: Samples, members: Sequence[Member], trained: lm_network.Training, networks: Rows, line: Floats
    ) -> Blend:
        if not self._chooses:
            return Blend(1.0, float(np.mean(trained.best_mse[networks])))
        X, y, weight, group = samples
        estimates = np.full((self.repeats * self.restarts, len(y)), np.nan)
        for i in networks:
            member = members[i % len(members)]
            judge = member.judge
            estimates[member.seat, judge] = lm_network.forward(trained.best[i], X[judge])
        rows = np.isfinite(estimates).any(axis=0)
        share = None if self.ridge else 1.0
        return blend(estimates[:, rows], line[rows], y[rows], weight[rows], group[rows], len(networks), share)

    def _threads(self, rows: int) -> int:
        """At most one for each `SMALL` rows: with fewer they wait for one another."""
        wanted = self.n_jobs if self.n_jobs is not None and self.n_jobs > 0 else ga.cpus()
        return max(1, min(wanted, rows // SMALL))

    def _device(self) -> str:
        """Where this process trains: "cpu", or its CUDA device."""
        if self.engine == "numpy" or self.accelerator == "cpu":
            return "cpu"
        import torch

        if not torch.cuda.is_available():
            if self.accelerator != "auto":
                raise InputError(
                    f"accelerator={self.accelerator!r} needs a CUDA device, and there is none; take 'auto' or 'cpu'"
                )
            return "cpu"
        rank = int(os.environ.get("LOCAL_RANK", 0))
        listed = self.devices if isinstance(self.devices, list | tuple) else None
        return f"cuda:{listed[rank] if listed else rank}"

    def _device_told(self) -> str:
        device = self._device()
        if device == "cpu":
            return device
        import torch

        return torch.cuda.get_device_name(device)

    def _kept(self, samples: Samples, folds: Sequence[tuple[Rows, Rows]], seed: int, variance: float) -> Path | None:
        """Files of this training, named by all that its result depends on; None where none are kept."""
        if self.checkpoint is None:
            return None
        own = ("checkpoint", "trainer_options", "n_jobs", "devices", "accelerator", "random_state", "engine")
        settings = {name: value for name, value in sorted(self.get_params(deep=False).items()) if name not in own}
        # `mse_goal` is in units of the target, and the samples are not.
        goal = self.mse_goal / variance
        told = hashlib.sha256(repr((settings, seed, goal, self._device_told(), sorted(versions().items()))).encode())
        for array in (*samples, *(held for _, held in folds)):
            told.update(np.ascontiguousarray(array).tobytes())
        folder = Path(self.checkpoint)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"gabp-{told.hexdigest()[:16]}"

    def _check_settings(self) -> None:
        """A line for each setting that cannot be."""
        wrong = [
            f"{name} must be at least {least}, got {getattr(self, name)!r}"
            for name, least in (
                ("population", 4), ("generations", 1), ("min_hidden", 1), ("members", 1), ("repeats", 1), ("restarts", 1), ("max_steps", 1),
                ("patience", 1), ("plateau", 1), ("mse_goal", 0), ("max_hidden", self.min_hidden),
            )
            if getattr(self, name) < least
        ]  # fmt: skip
        if self.restarts > self.population:
            wrong.append(f"restarts must not exceed population, got {self.restarts} of {self.population}")
        choices = {"engine": ENGINES, "accelerator": ACCELERATORS, "validation": VALIDATIONS, "dtype": tuple(ga.DTYPES)}
        wrong += [
            f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
            for name, known in choices.items()
            if getattr(self, name) not in known
        ]
        if not len(self.decays) or min(self.decays) < 0:
            wrong.append(f"decays must be one or more numbers >= 0, got {self.decays!r}")
        if self.clip is not None and not self.clip > 0:
            wrong.append(f"clip must be above 0 or None, got {self.clip!r}")
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


def _constant(standard: Floats) -> Any:
    """Whether standardised values do not vary: those that do have a standard deviation of 1."""
    return np.ptp(standard, axis=0) < 1e-6


def _by_appearance(group: Labels) -> Labels:
    """The same groups numbered in the order of the rows, so that it does not matter what they are called."""
    _, first, index = np.unique(group, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[index].astype(np.int64)


def _fold_by_fold(samples: Samples, folds: list[tuple[Rows, Rows]]) -> tuple[Samples, list[tuple[Rows, Rows]]]:
    """Rows put in the order of the folds that hold them out: they cost a network least where they stand together."""
    place = np.concatenate([held for _, held in folds])
    place = place[np.sort(np.unique(place, return_index=True)[1])]
    place = np.append(place, np.setdiff1d(np.arange(len(samples.y)), place))
    where = np.argsort(place)
    return Samples(*(array[place] for array in samples)), [(np.sort(where[a]), np.sort(where[b])) for a, b in folds]


def _judged_apart(members: Sequence[Member], group: Labels) -> list[Member]:
    """Without the judges that share a group with the rows that stop: they judge too kindly. All stay where all do."""
    apart = [not np.isin(group[member.judge], group[member.stop]).any() for member in members]
    none = np.empty(0, np.intp)
    return [
        member if alone or not any(apart) else member._replace(judge=none)
        for member, alone in zip(members, apart, strict=True)
    ]


def _held_out_line(samples: Samples, folds: Sequence[tuple[Rows, Rows]], penalty: float) -> Floats:
    """What the ridge regressions of the folds' training rows say of the rows held out; NaN for rows always trained on."""
    total, times = np.zeros((2, len(samples.y)))
    lines = held_out_lines(samples.X, samples.y, samples.weight, folds, penalty)
    for (_, held), line in zip(folds, lines, strict=True):
        total[held] += line.at(samples.X[held])
        times[held] += 1
    return np.where(times > 0, total / np.maximum(times, 1), np.nan)


def _mean_network(parameters: Floats, k: int, share: float, coefficients: Floats) -> dict[str, Floats]:
    """`share` of the mean of several networks, one whose hidden layer holds all their neurons, beside the rest of a line."""
    parts = [lm_network.split(p, k) for p in parameters]
    return {
        "w1": np.ascontiguousarray(np.hstack([part[0] for part in parts])),
        "b1": np.concatenate([part[1] for part in parts]),
        "w2": np.concatenate([part[2] for part in parts]) * (share / len(parts)),
        "b2": np.asarray(share * np.mean([part[3] for part in parts])),
        "linear": (1.0 - share) * coefficients,
    }


def _held_within(samples: Samples, deviations: float | None) -> tuple[Samples, dict[str, Floats]]:
    """The table with predictors within so many standard deviations and their range; and these bounds (k,).

    A rare extreme (rain, a place far away) would lead a line, and a model beyond its range, where no sample says anything.
    """
    X, k = samples.X, samples.X.shape[1]
    if deviations is None:
        return samples, {"lower": np.full(k, -UNBOUNDED), "upper": np.full(k, UNBOUNDED)}
    scaling = scaling_of(samples)
    reach = deviations * scaling.scale
    lower = np.maximum(X.min(axis=0), scaling.mean - reach)
    upper = np.minimum(X.max(axis=0), scaling.mean + reach)
    return samples._replace(X=np.clip(X, lower, upper)), {"lower": lower, "upper": upper}


def _check_float32(samples: Samples, scaling: Scaling) -> None:
    """Predictions are computed in float32; what does not fit there would come out as NaN."""
    with np.errstate(over="ignore"):
        farthest = max(float(np.abs(samples.X).max()), float(np.abs(samples.y).max()))
    spread = np.append(scaling.scale, scaling.target_scale)
    if farthest > LARGEST or spread.min() < SMALLEST:
        raise InputError(
            f"predictors and target must stay below {LARGEST:g} and vary by more than {SMALLEST:g}; they reach "
            f"{farthest:.3g}, the least standard deviation is {spread.min():.3g}; rescale them"
        )


def _check_finite(network: Mapping[str, Floats]) -> None:
    if not all(np.isfinite(values).all() and np.abs(values).max(initial=0) < LARGEST for values in network.values()):
        raise InputError("training ended in a network that is not finite; take a larger decay or fewer neurons")


def _entries(trace: Floats, variance: float) -> list[Entry]:
    """The steps of one network from its part of the batch's trace (max_steps + 1, 3)."""
    steps = trace[~np.isnan(trace[:, 2])]
    return [Entry(i, float(m) * variance, float(v) * variance, float(d)) for i, (m, v, d) in enumerate(steps)]


@contextmanager
def _progress(
    options: Mapping[str, Any] | None, generations: int
) -> Iterator[Callable[[int], Callable[[int, float], None] | None]]:
    """Makes a reporter for each inner fold, from the generations before it: a bar, or nothing."""
    if not (options or {}).get("enable_progress_bar") or os.environ.get("LOCAL_RANK", "0") != "0":
        yield lambda before: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=generations, desc="Genetic algorithm", unit="generation") as bar:

        def reporter(before: int) -> Callable[[int, float], None]:
            def report(generation: int, sse: float) -> None:
                bar.set_postfix(sse=f"{sse:.4g}", refresh=False)
                bar.update(before + generation - bar.n)

            return report

        yield reporter
        bar.update(generations - bar.n)


def _save(path: Path, evolved: Sequence[Evolved]) -> None:
    arrays = {
        f"{number}-{name}": value
        for number, result in enumerate(evolved)
        for name, value in {"starts": result.starts, **result.trace._asdict()}.items()
    }
    partial = path.with_name(f"{path.stem}-{os.getpid()}.partial.npz")
    np.savez(partial, **arrays)  # type: ignore[arg-type]
    os.replace(partial, path)


def _load(path: Path, folds: int) -> list[Evolved] | None:
    """What `_save` has left; None where there is nothing that can be read, so that it is made again."""
    try:
        with np.load(path, allow_pickle=False) as found:
            return [
                Evolved(found[f"{i}-starts"], ga.Trace(*(found[f"{i}-{name}"] for name in ga.Trace._fields)))
                for i in range(folds)
            ]
    except (OSError, KeyError, ValueError, EOFError, BadZipFile):
        return None
