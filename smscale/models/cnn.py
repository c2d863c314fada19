"""The paper's convolutional network along the predictors, as a scikit-learn estimator; prediction with NumPy alone.

Chen et al. 2023 (section 3.2) publish: four groups of two one-dimensional convolutions, max pooling, dropout, Adam, MSE.
Our reading where they are silent: kernels of 3 with zero padding ("same"), ReLU, max pooling by 2 that keeps an odd last
element (ceil mode), so that any number of predictors works (12 -> 6 -> 3 -> 2 -> 1), then one dense linear output.

Training (torch, Lightning) lies in `cnn_lightning` and is imported by `fit` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from smscale.errors import InputError
from smscale.models.cnn_layers import CONVOLUTIONS, GROUPS, KERNEL
from smscale.models.ridge import ridge_coefficients, ridge_penalty
from smscale.models.samples import Floats, Rows, group_labels, inner_split, merge_rows, scaling_of, standardised

Singles = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]

#: Rows that `CNNPredictor.predict` holds at once: the widest layer of the default network is then 0.5 MB, inside L2.
ROWS = 512
#: Batches per epoch that `batch_size=None` aims at, and the sizes between which it stays.
BATCHES, SMALLEST_BATCH, LARGEST_BATCH = 12, 32, 256


class CNNRegressor(RegressorMixin, BaseEstimator):
    """The paper's 1-D convolutional network; defaults are ours for blocked splits, `CNNRegressor.paper()` its settings.

    Predictors and target are standardised inside. An inner validation fold (whole groups, where `fit` gets groups)
    chooses the best epoch. Fitting is deterministic for a seed, on one kind of CPU, and leaves the global random
    generators alone; rows that repeat are merged and their weights added.

    Parameters
    ----------
    epochs : at most so many passes over the training rows
    random_state : None, int or RandomState
    filters : output channels of the four groups of two convolutions
    dropout : share of activations dropped after each group, 0 <= dropout < 1
    learning_rate : Adam's
    batch_size : rows a step; None takes about a 12th of the rows, between 32 and 256
    weight_decay : decoupled decay (AdamW); 0 is plain Adam
    averaging : decay per step of the running mean of the weights, which is what is validated and kept; 0 keeps the
        weights themselves
    ridge : the network learns what a ridge regression leaves (its penalty chosen on five inner folds), starting from nothing:
        it departs from the ridge only as far as the inner fold approves. False is the network alone, as the paper's
    refit : train again on all rows for as many epochs as were best; False keeps the weights of the best epoch
    patience : epochs without a better inner validation after which training ends; None runs all epochs
    validation_fraction : share of rows in the inner validation fold
    accelerator, devices : Lightning's

    Attributes
    ----------
    arrays_ : dict of arrays that `cnn_from_arrays` reads
    best_epoch_ : int, from 1
    inner_score_ : RMSE on the inner validation fold at the best epoch, units of y
    history_ : dict of lists: epoch, training_mse, validation_mse (units of y squared)
    n_features_in_ : int
    """

    #: Settings of `paper()` that the paper does not publish.
    PAPER_ASSUMED = ("filters", "dropout", "learning_rate", "batch_size")

    def __init__(
        self,
        epochs: int = 300,
        random_state: int | np.random.RandomState | None = None,
        filters: tuple[int, ...] = (16, 16, 32, 32),
        dropout: float = 0.1,
        learning_rate: float = 0.002,
        batch_size: int | None = None,
        weight_decay: float = 0.01,
        averaging: float = 0.98,
        ridge: bool = True,
        refit: bool = True,
        patience: int | None = 30,
        validation_fraction: float = 0.2,
        accelerator: str = "cpu",
        devices: int = 1,
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
        self.refit = refit
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.accelerator = accelerator
        self.devices = devices

    @classmethod
    def paper(cls, random_state: int | np.random.RandomState | None = None) -> CNNRegressor:
        """The paper's settings (1 500 epochs, Adam, 30 % validation); those in `PAPER_ASSUMED` it does not publish."""
        return cls(
            epochs=1500,
            random_state=random_state,
            filters=(32, 32, 64, 64),
            dropout=0.2,
            learning_rate=0.001,
            batch_size=64,
            weight_decay=0.0,
            averaging=0.0,
            ridge=False,
            refit=False,
            patience=None,
            validation_fraction=0.3,
        )

    def fit(
        self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> CNNRegressor:
        """Train on X (n, k), y (n,); `groups` (n,) are labels that the inner fold keeps whole.

        Raises
        ------
        InputError : fewer than two distinct rows, a setting out of range, groups of another length, or a training
            that diverged.
        """
        from smscale.models import cnn_lightning

        self._check_settings()
        table, values = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        weight = _check_sample_weight(sample_weight, table, dtype=np.float64, ensure_non_negative=True)
        samples = merge_rows(table, values, weight, group_labels(groups, len(table)))
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        scaling = scaling_of(samples)
        training, validation = inner_split(samples.group, self.validation_fraction, np.random.default_rng(seed))
        standard, values, weight, group = standardised(samples, scaling)
        penalty = ridge_penalty(standard, values, weight, group, seed) if self.ridge else np.inf
        everything = np.arange(values.size)

        def train(rows: Rows, **changed: Any) -> tuple[cnn_lightning.Trained, Floats]:
            linear = ridge_coefficients(standard[rows], values[rows], weight[rows], penalty)
            left = (values - standard @ linear).astype(np.float32)
            table = (standard.astype(np.float32), left, weight.astype(np.float32))
            settings = self._training_settings(rows.size) | changed
            return cnn_lightning.train(*table, rows, validation, settings=settings, seed=seed), linear

        result, linear = train(training)
        arrays = result.arrays
        if self.refit:
            again, linear = train(everything, epochs=result.best_epoch, patience=None, keep_last=True)
            arrays = again.arrays
        variance = scaling.target_scale**2
        target = np.array([scaling.target_mean, scaling.target_scale])
        self.arrays_ = {"mean": scaling.mean, "scale": scaling.scale, "target": target, "linear": linear} | arrays
        self.best_epoch_ = result.best_epoch
        self.inner_score_ = float(np.sqrt(result.best_mse * variance))
        self.history_ = {
            "epoch": list(range(1, len(result.validation_mse) + 1)),
            "training_mse": [mse * variance for mse in result.training_mse],
            "validation_mse": [mse * variance for mse in result.validation_mse],
        }
        self._predictor = cnn_from_arrays(self.arrays_)
        return self

    def predict(self, X: ArrayLike) -> Singles:
        """(n,) float32, units of y, for X (n, k)."""
        check_is_fitted(self)
        return self._predictor.predict(validate_data(self, X, dtype=(np.float64, np.float32), reset=False))

    def _check_settings(self) -> None:
        wrong = [
            f"{name}={getattr(self, name)!r} (expected {expected})"
            for name, valid, expected in (
                ("epochs", self.epochs >= 1, "at least 1"),
                ("filters", len(self.filters) == GROUPS and min(self.filters) >= 1, f"{GROUPS} positive integers"),
                ("dropout", 0 <= self.dropout < 1, "0 <= dropout < 1"),
                ("learning_rate", self.learning_rate > 0, "above 0"),
                ("batch_size", self.batch_size is None or self.batch_size >= 1, "None or at least 1"),
                ("weight_decay", self.weight_decay >= 0, "at least 0"),
                ("averaging", 0 <= self.averaging < 1, "0 <= averaging < 1"),
                ("patience", self.patience is None or self.patience >= 1, "None or at least 1"),
                ("validation_fraction", 0 < self.validation_fraction < 1, "between 0 and 1"),
            )
            if not valid
        ]
        if wrong:
            raise InputError(f"CNNRegressor: {'; '.join(wrong)}")

    def _training_settings(self, rows: int) -> dict[str, Any]:
        batch = self.batch_size or int(np.clip(rows // BATCHES, SMALLEST_BATCH, LARGEST_BATCH))
        names = ("epochs", "filters", "dropout", "learning_rate", "weight_decay", "averaging", "patience")
        return {name: getattr(self, name) for name in (*names, "accelerator", "devices")} | {
            "batch_size": batch,
            "keep_last": False,
        }


@dataclass(frozen=True, eq=False)
class CNNPredictor:
    """A trained network as arrays; predicts with NumPy and its BLAS only.

    linear : (k,) coefficients of the ridge that the network adds to, zero where there is none
    convolutions : weights (3 * channels in, channels out) float32 and bias (channels out,), in order
    """

    mean: Floats
    scale: Floats
    target: Floats
    linear: Floats
    convolutions: tuple[tuple[Singles, Singles], ...]
    dense: tuple[Singles, float]

    def predict(self, X: NDArray[np.floating[Any]]) -> Singles:
        """(n,) float32 for X (n, k) finite, float32 or float64; memory is that of `ROWS` rows."""
        out = np.empty(len(X), dtype=np.float32)
        for start in range(0, len(X), ROWS):
            block = X[start : start + ROWS]
            standard = (block - self.mean) / self.scale
            values = self._forward(standard.astype(np.float32)) + standard @ self.linear
            out[start : start + ROWS] = values * self.target[1] + self.target[0]
        return out

    def _forward(self, X: Singles) -> Floats:
        padded = _padded(X[:, :, None])
        for group in range(GROUPS):
            for number in range(CONVOLUTIONS):
                weight, bias = self.convolutions[CONVOLUTIONS * group + number]
                pool = number == CONVOLUTIONS - 1
                padded = _convolve(padded, weight, bias, pool=pool)
        dense, constant = self.dense
        return (padded[:, 1:-1].reshape(len(X), -1) @ dense).astype(np.float64) + constant


def _padded(values: Singles) -> Singles:
    """(n, length, channels) with a zero before and after, (n, length + 2, channels)."""
    rows, length, channels = values.shape
    out = np.zeros((rows, length + 2, channels), dtype=np.float32)
    out[:, 1:-1] = values
    return out


def _convolve(padded: Singles, weight: Singles, bias: Singles, *, pool: bool) -> Singles:
    """max(0, convolution + bias), pooled by 2 in ceil mode where asked; padded in, padded out.

    A window of three positions is contiguous in a row, so each position is one matrix product on a strided view: im2col
    without the copy. Pooling comes before the bias and the ReLU, which change no order.
    """
    rows, length, channels = padded.shape[0], padded.shape[1] - 2, padded.shape[2]
    out = np.zeros((rows, length + 2, weight.shape[1]), dtype=np.float32)
    for position in range(length):
        window = padded[:, position : position + KERNEL].reshape(rows, KERNEL * channels)
        np.matmul(window, weight, out=out[:, position + 1])
    inside = out[:, 1:-1]
    if pool and length > 1:
        even = length // 2 * 2
        np.maximum(inside[:, 0:even:2], inside[:, 1:even:2], out=inside[:, 0:even:2])
        out = _padded(inside[:, ::2])
        inside = out[:, 1:-1]
    inside += bias
    np.maximum(inside, 0, out=inside)
    return out


def cnn_from_arrays(arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any] | None = None) -> CNNPredictor:
    """The predictor of the arrays of `cnn_to_arrays`; `meta` is not needed.

    Raises
    ------
    InputError : an array is missing or its shape does not fit the others.
    """
    try:
        convolutions = tuple(
            (
                np.ascontiguousarray(
                    np.moveaxis(arrays[f"weight_{number}"], 0, 2).transpose(1, 0, 2), dtype=np.float32
                ),
                np.asarray(arrays[f"bias_{number}"], np.float32),
            )
            for number in range(GROUPS * CONVOLUTIONS)
        )
        predictors = arrays["mean"].size
        dense = np.asarray(arrays["dense_weight"], np.float32)
        bias = float(arrays["dense_bias"][0])
        names = ("mean", "scale", "target", "linear")
        mean, scale, target, linear = (np.asarray(arrays[name], np.float64) for name in names)
    except KeyError as error:
        raise InputError(f"a cnn artefact lacks the array {error}; train and save it again") from None
    channels = [1, *(weight.shape[2] for weight, _ in convolutions)]
    fits = all(
        weight.shape[:2] == (KERNEL, before) for (weight, _), before in zip(convolutions, channels, strict=False)
    )
    if (
        not fits
        or {scale.size, linear.size} != {predictors}
        or dense.shape != (-(-predictors // 2**GROUPS) * channels[-1],)
    ):
        raise InputError("the arrays of a cnn artefact do not fit one another; train and save it again")
    flat = tuple((weight.reshape(-1, weight.shape[2]), b) for weight, b in convolutions)
    return CNNPredictor(mean, scale, target, linear, flat, (dense, bias))


def cnn_to_arrays(estimator: CNNRegressor) -> tuple[Arrays, dict[str, Any]]:
    """The arrays and settings of a fitted CNNRegressor, for an artefact."""
    check_is_fitted(estimator)
    settings = estimator.get_params()
    settings["random_state"] = settings["random_state"] if isinstance(settings["random_state"], int) else None
    settings["filters"] = list(settings["filters"])
    meta = {"settings": settings, "best_epoch": estimator.best_epoch_, "inner_rmse": estimator.inner_score_}
    return dict(estimator.arrays_), meta
