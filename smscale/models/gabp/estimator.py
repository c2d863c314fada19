"""The paper's GABP network: a genetic algorithm finds where to start, Levenberg-Marquardt finishes.

The paper trains one network. By default many are trained, several on each of some inner folds; each stops on one half of
the fold that it has not seen and is judged on the other half. Their mean is again one network of one hidden layer. It is
taken only as far over a ridge regression as it does better where it is judged; where nothing can be learned beyond a
line, the model is that line.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from smscale.errors import InputError
from smscale.kernels import lm, lm_network
from smscale.models.gabp import settings as gabp_settings
from smscale.models.gabp.folds import Partitions
from smscale.models.gabp.genetics import Search
from smscale.models.gabp.machine import Machine, machine_of
from smscale.models.gabp.network import UNBOUNDED, fold
from smscale.models.gabp.plan import Entry, Plan, learn
from smscale.models.samples import (
    Samples,
    by_appearance,
    check_single,
    checked_table,
    group_labels,
    held_within,
    implied_groups,
    merge_rows,
    scaling_of,
    seed_of,
    standardised,
)

__all__ = ["Entry", "GABPRegressor"]


class GABPRegressor(RegressorMixin, BaseEstimator):
    """One hidden tanh layer, started by a genetic algorithm and finished by Levenberg-Marquardt.

    Predictors are held within what training has seen, then they and the target are standardised. Inner folds (whole groups,
    where `fit` gets groups; else the places that the predictors show) choose the step at which training stops, the decay and
    how much of the networks is taken over a ridge regression; they never score. Rows that repeat are merged and their weights
    added, rows of weight 0 left out; constant predictors are left out, a constant target gives a constant; networks whose
    error is not finite are left out. Deterministic for a seed, whatever the number of threads or processes.

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
        callbacks, strategy, max_time ...), off by default; enable_progress_bar shows the genetic algorithm too, and is all that
        engine "numpy" heeds. Those that would change the number of steps or the precision are refused
    dtype : "float32" or "float64", of the work per sample; sums, linear systems and weights are float64
    checkpoint : folder in which a training that was stopped goes on when `fit` is called again with the same samples,
        settings and integer `random_state`; the result has the same bytes. None keeps nothing
    n_jobs : threads; None takes the CPUs that the process may use, below 0 counts from the last of them

    Attributes
    ----------
    network_ : dict of arrays, see `models.network.ARRAYS`
    n_hidden_ : neurons of the network; members_hidden_ : of each member
    decay_ : the chosen one
    shrinkage_ : share of the networks in the model, 0 to 1; the rest is the ridge regression
    ga_trace_ : per inner fold a `kernels.ga.Trace` (fitness 1/SSE, y in standardised units)
    lm_trace_ : per member a list of `Entry` (mse in units of y squared)
    stopped_ : why each member's training ended (`kernels.lm.REASONS`; "trainer" where Lightning cut it short)
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
        InputError : a setting out of range or that this machine cannot serve; X, y or weights that are no finite numbers;
            fewer than two distinct rows; groups of another length; values too large or too small for float32; a checkpoint
            that cannot be used
        """
        gabp_settings.check(self.get_params(deep=False))
        machine = machine_of(self.engine, self.accelerator, self.devices, self.n_jobs, self.trainer_options)
        table, values, weight = checked_table(self, X, y, sample_weight, least=2)
        samples = merge_rows(table, values, weight, group_labels(groups, len(table)))
        range_ = np.column_stack([samples.X.min(axis=0), samples.X.max(axis=0)])
        seed = seed_of(self.random_state)
        with threadpool_limits(1):
            samples = self._grouped(samples, groups is not None, seed)
            samples, lower, upper = held_within(samples, self.clip)
            scaling = scaling_of(samples)
            check_single(samples, scaling)
            plan = self._plan(machine, scaling.target_scale)
            found = learn(standardised(samples, scaling), scaling.target_scale, plan, seed)
        self.network_ = found.network | {name: np.asarray(value) for name, value in scaling._asdict().items()}
        self.network_ |= {"lower": np.maximum(lower, -UNBOUNDED), "upper": np.minimum(upper, UNBOUNDED)}
        self.training_range_ = range_
        self.n_hidden_, self.members_hidden_ = len(found.network["b1"]), found.members_hidden
        self.decay_, self.shrinkage_, self.inner_score_ = found.decay, found.shrinkage, found.inner_score
        self.ga_trace_, self.lm_trace_, self.stopped_ = found.ga_trace, found.lm_trace, found.stopped
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float32]:
        """(n,) float32, units of y, for X (n, k).

        Raises
        ------
        InputError : predictors beyond float32, or so far beyond those of the training that a prediction is
        """
        check_is_fitted(self)
        table = validate_data(self, X, reset=False, dtype=[np.float32, np.float64])
        found = fold(self.network_).predict(table)
        if lost := found.size - int(np.isfinite(found).sum()):
            raise InputError(
                f"{lost} of {found.size} predictions are not finite in float32: predictors reach {np.abs(table).max():.3g}, "
                f"in training {np.abs(self.training_range_).max():.3g}; leave those rows out, or see to their units"
            )
        return found

    def _plan(self, machine: Machine, deviation: float) -> Plan:
        """What is done, for a target of that standard deviation."""
        judges = bool(self.ridge) or len(self.decays) > 1
        return Plan(
            Partitions(self.members, self.repeats, self.restarts, self.validation_fraction, judges),
            Search(gabp_settings.genetics(self.get_params(deep=False)), self.restarts, self.dtype),
            tuple(map(float, self.decays)),
            bool(self.ridge),
            lm.Settings(damping=self.damping, max_steps=self.max_steps),
            lm_network.Stop(self.mse_goal / deviation**2, self.patience),
            machine,
            None if self.checkpoint is None else Path(self.checkpoint),
        )

    def _grouped(self, samples: Samples, grouped: bool, seed: int) -> Samples:
        """With the groups that inner folds keep whole, numbered by their first rows."""
        group = samples.group
        if not grouped and self.validation == "blocks":
            names = getattr(self, "feature_names_in_", None)
            group = implied_groups(standardised(samples, scaling_of(samples)), seed, names)
        return samples._replace(group=by_appearance(group))
