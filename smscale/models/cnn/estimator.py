"""The paper's convolutional network along the predictors, as a scikit-learn estimator.

The paper trains one network. By default several are trained, one per inner fold, each stopped on the fold that it has not
seen; they learn what a ridge regression leaves, and the share of them that the inner folds approve is added to it.

Training (torch, Lightning) lies in `lightning` and is imported by `fit` and `partial_fit` alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from smscale.errors import InputError
from smscale.grid import EASE2_GRIDS
from smscale.models.blend import PRICE
from smscale.models.cnn.layers import Arrays, CNNPredictor, Singles, cnn_from_arrays
from smscale.models.cnn.settings import check
from smscale.models.ridge import PENALTIES, Line, held_out_lines, penalty_shares, ridge_coefficients
from smscale.models.samples import (
    Floats,
    Labels,
    Rows,
    Samples,
    check_single,
    checked_table,
    group_labels,
    held_within,
    implied_groups,
    inner_folds,
    inner_split,
    merge_rows,
    scaling_of,
    seed_of,
    standardised,
)

if TYPE_CHECKING:
    from smscale.models.cnn import lightning

__all__ = ["CNNPredictor", "CNNRegressor", "ReceptiveField", "cnn_from_arrays", "cnn_to_arrays"]

#: Batches per epoch that `batch_size=None` aims at, and the sizes between which it stays.
BATCHES, SMALLEST_BATCH, LARGEST_BATCH = 8, 64, 256
#: Pieces of an inner fold whose errors are told apart.
BLOCKS = 50


class ReceptiveField(NamedTuple):
    """What one estimate looks at: `cells` x `cells` coarse cells, `km` wide on the 36 km grid."""

    cells: int
    km: float


class CNNRegressor(RegressorMixin, BaseEstimator):
    """The paper's 1-D convolutional network; defaults are ours for blocked splits, `CNNRegressor.paper()` its settings.

    Predictors and target are standardised inside. Inner folds (whole groups, where `fit` gets groups) choose the best epoch
    and how much of the networks is added to the ridge; they never score. Rows that repeat are merged and their weights
    added. Deterministic for a seed on one kind of processor; the global random generators are left alone.

    Parameters
    ----------
    epochs : at most so many passes over the training rows
    random_state : None, int or RandomState
    filters : output channels of the four groups of two convolutions, of each member
    dropout : share of activations dropped after each group, 0 <= dropout < 1
    learning_rate : Adam's
    batch_size : rows a step; None takes about an 8th of the rows, between 64 and 256
    weight_decay : decoupled decay (AdamW); 0 is plain Adam
    averaging : decay per step of the running mean of the weights, which is what is validated and kept; 0 keeps the
        weights themselves
    ridge : the networks learn what a ridge regression leaves (its penalties weighed on inner folds), starting from nothing,
        and their mean is shrunk by what the inner folds tell, if need be to nothing. False is the network alone, as the paper's
    clip : predictors are held within so many standard deviations of their mean, and within their range, over the
        training rows, in `predict` too; None holds them nowhere
    members : inner folds, one network each, whose outputs are averaged; 1 trains one network, stopped on
        `validation_fraction` of the rows
    patience : epochs without a better inner fold after which training ends; None runs all epochs
    validation : inner folds when `fit` gets no groups: "blocks" (places that the predictors show, else clusters in predictor
        space) or "rows" (at random)
    validation_fraction : with one member, share of the rows that stop it
    patch : 1, or the odd side of the square of coarse cells around a cell that a row describes; the columns are then those of
        `models.cnn.patch.patch_columns`: k of the centre, k of each neighbour
    accelerator : "auto" (CUDA where there is a device, else the CPU) or one of Lightning's
    devices : Lightning's; several share each batch, by default in processes of their own that hand the result back (a
        script then needs `if __name__ == "__main__":`); "auto" is one
    checkpoint : None, or a folder: a checkpoint after each epoch, from which a `fit` with the same data and settings (and an
        integer `random_state`) goes on, to the same bytes
    trainer_options : further arguments of Lightning's Trainer (logger, callbacks, enable_progress_bar ...); it is quiet by
        default

    Attributes
    ----------
    arrays_ : dict of arrays that `cnn_from_arrays` reads
    best_epochs_ : (members,) int, from 1
    shrinkage_ : what the networks' mean is multiplied by
    inner_score_ : RMSE on the inner folds, units of y
    history_ : dict of lists: epoch, training_mse, validation_mse (units of y squared), of all members together
    n_features_in_ : int
    """

    #: Settings of `paper()` that the paper does not publish.
    PAPER_ASSUMED = ("filters", "dropout", "learning_rate", "batch_size")
    _pupil: lightning.Pupil | None = None

    def __init__(
        self,
        epochs: int = 120,
        random_state: int | np.random.RandomState | None = None,
        filters: Sequence[int] = (8, 8, 16, 16),
        dropout: float = 0.1,
        learning_rate: float = 0.004,
        batch_size: int | None = None,
        weight_decay: float = 0.01,
        averaging: float = 0.98,
        ridge: bool = True,
        clip: float | None = 2.5,
        members: int = 5,
        patience: int | None = 12,
        validation: str = "blocks",
        validation_fraction: float = 0.2,
        patch: int = 1,
        accelerator: str = "auto",
        devices: int | str | Sequence[int] = 1,
        checkpoint: str | Path | None = None,
        trainer_options: Mapping[str, Any] | None = None,
    ):
        self.epochs = epochs
        self.random_state = random_state
        self.filters = filters
        self.dropout = dropout
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.averaging = averaging
        self.ridge = ridge
        self.clip = clip
        self.members = members
        self.patience = patience
        self.validation = validation
        self.validation_fraction = validation_fraction
        self.patch = patch
        self.accelerator = accelerator
        self.devices = devices
        self.checkpoint = checkpoint
        self.trainer_options = trainer_options

    @classmethod
    def paper(cls, random_state: int | np.random.RandomState | None = None) -> CNNRegressor:
        """The paper's settings (1 500 epochs, Adam, 30 % random validation); those in `PAPER_ASSUMED` it does not publish."""
        return cls(
            epochs=1500,
            random_state=random_state,
            filters=(16, 16, 32, 32),
            dropout=0.2,
            learning_rate=0.001,
            batch_size=128,
            weight_decay=0.0,
            averaging=0.0,
            ridge=False,
            clip=None,
            members=1,
            patience=None,
            validation="rows",
            validation_fraction=0.3,
        )

    @property
    def receptive_field(self) -> ReceptiveField:
        """The square of coarse cells around the estimated one that its estimate looks at."""
        return ReceptiveField(self.patch, self.patch * EASE2_GRIDS[36][2] / 1000)

    def fit(
        self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> CNNRegressor:
        """Train on X (n, k), y (n,); `groups` (n,) are labels that the inner folds keep whole, `sample_weight` (n,) >= 0.

        Raises
        ------
        InputError : fewer than two distinct rows, a setting out of range, groups of another length, columns that are no
            patches, or a training that diverged.
        """
        from smscale.models.cnn import lightning

        check(self.get_params(deep=False))
        table, values, weight = self._checked(X, y, sample_weight, reset=True)
        seed = seed_of(self.random_state)
        with threadpool_limits(1):
            samples = merge_rows(table, values, weight, group_labels(groups, len(table)))
            standard, start = self._standard(samples, groups is not None, seed)
            folds, lines = self._folds(standard, seed)
            lesson = _lesson(standard, folds, lines)
            settings = self._training_settings(len(standard.y), seed)
            found = lightning.train(lesson, settings, self._machine())
            self._keep(found, lesson, start, lines)
        self._pupil = None
        return self

    def partial_fit(
        self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> CNNRegressor:
        """One pass of all members over the rows given, X (n, k), y (n,); what dask-ml's Hyperband and streams need.

        Bounds, standardiser and ridge (whose penalties `groups` weigh, as in `fit`) are those of the first call's rows, of
        which there must be two distinct ones: give it a fair sample. No fold is held out and nothing is shrunk: the caller
        judges. `epochs`, `patience` and the device settings play no part; after `fit` it begins anew. The same calls give the
        same bytes.

        Raises
        ------
        InputError : as `fit`.
        """
        from smscale.models.cnn import lightning

        check(self.get_params(deep=False))
        pupil = self._pupil
        table, values, weight = self._checked(X, y, sample_weight, reset=pupil is None)
        with threadpool_limits(1):
            if pupil is None:
                seed = seed_of(self.random_state)
                labels = group_labels(groups, len(table))
                self._begin(merge_rows(table, values, weight, labels), groups is not None, seed)
                settings = self._training_settings(len(values), seed)
                self._pupil = pupil = lightning.Pupil(table.shape[1], self.members, settings)
            used = weight > 0
            rows, left = self._left(table[used], values[used])
            share = (weight[used] / weight[used].mean()).astype(np.float32)
            settings = self._training_settings(len(left), pupil.module.settings.seed)
            arrays = pupil.learn(rows, left, share, settings)
            self._finish(self._start, arrays, 1.0)
        return self

    def predict(self, X: ArrayLike) -> Singles:
        """(n,) float32, units of y, for X (n, k).

        Raises
        ------
        InputError : an estimate is not finite: without `clip`, of predictors far beyond those of training.
        """
        check_is_fitted(self)
        estimate = self._predictor.predict(validate_data(self, X, dtype=(np.float64, np.float32), reset=False))
        if wrong := np.flatnonzero(~np.isfinite(estimate)).tolist():
            raise InputError(
                f"CNNRegressor: no finite estimate for {len(wrong)} rows, the first being row {wrong[0]}; its predictors lie too "
                "far beyond those of training: leave it out, or train with clip"
            )
        return estimate

    def _checked(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None, *, reset: bool
    ) -> tuple[Floats, Floats, Floats]:
        table, values, weight = checked_table(self, X, y, sample_weight, least=2 if reset else 1, reset=reset)
        if table.shape[1] % self.patch**2:
            raise InputError(
                f"CNNRegressor: patch={self.patch} needs {self.patch**2} columns for each predictor; "
                f"got {table.shape[1]} columns (models.cnn.patch.neighbourhood builds them)"
            )
        return table, values, weight

    def _standard(self, samples: Samples, grouped: bool, seed: int) -> tuple[Samples, Arrays]:
        """Samples with their groups, within their bounds, standardised; and the arrays that do so when predicting."""
        group = self._groups(standardised(samples, scaling_of(samples)), grouped, seed)
        samples, lower, upper = held_within(samples._replace(group=group), self.clip)
        scaling = scaling_of(samples)
        check_single(samples, scaling)
        start = {
            "mean": scaling.mean,
            "scale": scaling.scale,
            "target": np.array([scaling.target_mean, scaling.target_scale]),
            "low": (lower - scaling.mean) / scaling.scale,
            "high": (upper - scaling.mean) / scaling.scale,
        }
        return standardised(samples, scaling), start

    def _groups(self, standard: Samples, grouped: bool, seed: int) -> Labels:
        if grouped or self.validation == "rows":
            return standard.group
        return implied_groups(standard, seed, getattr(self, "feature_names_in_", None))

    def _folds(self, standard: Samples, seed: int) -> tuple[list[tuple[Rows, Rows]], list[Line]]:
        """(training, held-out) rows of each member, and its ridge regression, zero where there is no ridge."""
        rng = np.random.default_rng(seed)
        X, y, weight, group = standard
        if self.members == 1:
            folds = [inner_split(group, self.validation_fraction, rng)]
        else:
            folds = inner_folds(group, self.members, rng)
        if not self.ridge:
            return folds, [Line(np.zeros(X.shape[1]), np.zeros(()))] * len(folds)
        shares = penalty_shares(X, y, weight, group, seed)
        lines = held_out_lines(X, y, weight, folds, PENALTIES)
        return folds, [Line(line.slopes @ shares, line.level @ shares) for line in lines]

    def _keep(self, found: lightning.Trained, lesson: lightning.Lesson, start: Arrays, lines: list[Line]) -> None:
        variance = float(start["target"][1]) ** 2
        self.shrinkage_ = _shrinkage(found.sums, lesson) if self.ridge else 1.0
        held = lesson.held.astype(np.float64)
        error = (held * (lesson.target - self.shrinkage_ * found.given) ** 2).sum() / held.sum()
        slopes = np.mean([line.slopes for line in lines], axis=0)
        level = float(np.mean([line.level for line in lines]))
        target = start["target"] + [start["target"][1] * level, 0.0]
        self._finish(start | {"linear": slopes, "target": target}, found.arrays, self.shrinkage_)
        self.best_epochs_ = found.best_epochs
        self.inner_score_ = float(np.sqrt(error * variance))
        self.history_ = {
            "epoch": list(range(1, len(found.validation_mse) + 1)),
            "training_mse": [float(mse) * variance for mse in found.training_mse],
            "validation_mse": [float(mse) * variance for mse in found.validation_mse],
        }

    def _begin(self, samples: Samples, grouped: bool, seed: int) -> None:
        (X, y, weight, group), start = self._standard(samples, grouped, seed)
        linear = np.zeros(X.shape[1])
        if self.ridge:
            linear = ridge_coefficients(X, y, weight, PENALTIES) @ penalty_shares(X, y, weight, group, seed)
        self._start = start | {"linear": linear}

    def _left(self, table: Floats, values: Floats) -> tuple[Singles, Singles]:
        """What the networks of `partial_fit` see of rows (n, k), and what the line leaves of their values (n,)."""
        start = self._start
        standard = np.clip((table - start["mean"]) / start["scale"], start["low"], start["high"])
        left = (values - start["target"][0]) / start["target"][1] - standard @ start["linear"]
        return standard.astype(np.float32), left.astype(np.float32)

    def _finish(self, start: Arrays, arrays: Arrays, factor: float) -> None:
        """The model is the ridge and `factor` times the members' mean, which the last layer takes up."""
        share = factor / len(arrays["dense_weight"])
        dense = (arrays["dense_weight"] * share).astype(np.float32)
        bias = np.array([arrays["dense_bias"].sum(dtype=np.float64) * share], np.float32)
        self.arrays_ = start | arrays | {"dense_weight": dense, "dense_bias": bias}
        self._predictor = cnn_from_arrays(self.arrays_)

    def _training_settings(self, rows: int, seed: int) -> lightning.Settings:
        from smscale.models.cnn import lightning

        batch = self.batch_size or int(np.clip(rows // BATCHES, SMALLEST_BATCH, LARGEST_BATCH))
        # NumPy's numbers are none to Lightning, nor the same to a checkpoint's name.
        return lightning.Settings(
            cells=int(self.patch) ** 2,
            filters=tuple(int(width) for width in self.filters),
            dropout=float(self.dropout),
            learning_rate=float(self.learning_rate),
            weight_decay=float(self.weight_decay),
            averaging=float(self.averaging),
            batch_size=min(int(batch), rows),
            epochs=int(self.epochs),
            patience=int(self.patience or 0),
            seed=seed,
        )

    def _machine(self) -> lightning.Machine:
        from smscale.models.cnn import lightning

        folder = None if self.checkpoint is None else Path(self.checkpoint)
        return lightning.Machine(self.accelerator, self.devices, self.trainer_options or {}, folder)


def _lesson(standard: Samples, folds: list[tuple[Rows, Rows]], lines: list[Line]) -> lightning.Lesson:
    from smscale.models.cnn import lightning

    X, y, weight, group = standard
    learnt, held = np.zeros((2, y.size, len(folds)), np.float32)
    for member, (training, validation) in enumerate(folds):
        learnt[training, member] = weight[training]
        held[validation, member] = weight[validation]
    left = np.column_stack([y - line.at(X) for line in lines]).astype(np.float32)
    return lightning.Lesson(X.astype(np.float32), left, learnt, held, _blocks(group, folds))


def _shrinkage(sums: Floats, lesson: lightning.Lesson) -> float:
    """The factor, 0 to 1, on the networks' mean that leaves least of the target on rows unseen.

    Of one network on held-out rows it is s = sum(v r) / sum(v v). A network at the epoch that is best on its fold looks better
    there than it is, so each block's v are of the epoch that the other blocks of its fold would choose (where there are none,
    those of the other folds). The mean of m networks has less noise than one and deserves m s / (1 + (m - 1) s) (Spearman
    1910, Brown 1910), were the networks' noises independent. What blocks do not agree on is taken off as in `blend`: times
    1 - PRICE e^2 / s^2, where e is the standard error of s over blocks; one block says nothing.

    sums (epochs, blocks, 2): v r and v v, weighted, of each block at each epoch
    """
    gain = sums[:, :, 1] - 2 * sums[:, :, 0]
    fold = np.zeros(gain.shape[1], np.int64)
    rows, members = np.nonzero(lesson.held)
    fold[lesson.block[rows]] = members
    together = np.array([gain[:, fold == member].sum(axis=1) for member in range(lesson.held.shape[1])]).T
    others = together[:, fold] - gain
    alone = np.bincount(fold, minlength=together.shape[1])[fold] == 1
    others[:, alone] = together.sum(axis=1)[:, None] - gain[:, alone]
    product, square = sums[others.argmin(axis=0), np.arange(fold.size)].T
    if product.sum() <= 0 or product.size == 1:
        return 0.0
    slope = float(product.sum() / square.sum())
    squared_error = float(((product - slope * square) ** 2).sum()) * product.size / (product.size - 1)
    trust = max(0.0, 1.0 - PRICE * squared_error / float(product.sum()) ** 2)
    one, members = min(slope, 1.0), lesson.held.shape[1]
    return trust * members * one / (1 + (members - 1) * one)


def _blocks(group: Labels, folds: list[tuple[Rows, Rows]]) -> Labels:
    """A number (n,) for the held-out groups of each fold, at most `BLOCKS` a fold; 0 for rows that no fold holds out."""
    block = np.zeros(group.size, np.int64)
    first = 0
    for _, held in folds:
        own = np.unique(group[held], return_inverse=True)[1] % BLOCKS
        block[held] = first + own
        first += int(own.max()) + 1
    return block


def cnn_to_arrays(estimator: CNNRegressor) -> tuple[Arrays, dict[str, Any]]:
    """The arrays and settings of a fitted CNNRegressor, for an artefact."""
    check_is_fitted(estimator)
    settings = estimator.get_params()
    settings["random_state"] = settings["random_state"] if isinstance(settings["random_state"], int) else None
    settings["filters"] = [int(width) for width in settings["filters"]]
    for machine in ("accelerator", "devices", "checkpoint", "trainer_options"):
        del settings[machine]
    meta: dict[str, Any] = {"settings": settings, "receptive_field": estimator.receptive_field._asdict()}
    if hasattr(estimator, "best_epochs_"):
        meta |= {
            "best_epochs": estimator.best_epochs_.tolist(),
            "inner_rmse": estimator.inner_score_,
            "shrinkage": estimator.shrinkage_,
        }
    return dict(estimator.arrays_), meta
