"""The table that networks of one hidden tanh layer are fitted to, and where J'WJ lies in its products: what the engines share.

Parameters are neuron after neuron (k weights, threshold, output weight), then the k weights of the linear part where there
is one, then the output threshold: p = h (k + 2) + [k] + 1. Narrow networks are padded with neurons of zeros, which have
no gradient and stay zero.

With m = k + 1 inputs (the predictors and 1), a row of J' is an input times d_j = w2_j (1 - g_j^2), or g_j = tanh(a_j), or
an input alone. So J'WJ needs two products of matrices and never more:
    pairs (d_j d_l) x products (x_a x_b), where the m (m + 1) / 2 products of inputs are formed once for all networks;
    J' x [g, 1, error], which also holds the gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smscale.errors import InputError
from smscale.kernels.lm import Floats

#: The narrow sides of the products come in multiples of this, one AVX register of float32: BLAS is slower on other numbers.
LANE = 8


@dataclass(frozen=True)
class Table:
    """What the engines share, checked: planes (m, n) of inputs, the last one 1; y (n,); weights and validations (g, n), of
    which network i has row member[i]; hidden (r,) neurons; decay (r,); linear: whether there is a linear part. Float64."""

    planes: Floats
    y: Floats
    weights: Floats
    validations: Floats
    member: NDArray[np.int64]
    hidden: NDArray[np.int64]
    decay: Floats
    linear: bool

    @property
    def weight(self) -> Floats:
        """(r, n), of each network; a copy."""
        return self.weights[self.member]

    @property
    def validation(self) -> Floats:
        """(r, n), of each network; a copy."""
        return self.validations[self.member]

    @property
    def k(self) -> int:
        """Predictors."""
        return len(self.planes) - 1

    @property
    def width(self) -> int:
        """Neurons of the widest network."""
        return int(self.hidden.max())

    @property
    def parameters(self) -> int:
        """p, of the widest network."""
        return parameter_count(self.k, self.width, self.linear)

    def own(self, hidden: int) -> NDArray[np.int64]:
        """Parameters of a network of so many neurons among those of the widest."""
        alone = np.arange(self.width * (self.k + 2), self.parameters)
        return np.append(np.arange(hidden * (self.k + 2)), alone)


def parameter_count(k: int, hidden: int, linear: bool = False) -> int:
    """Parameters of a network."""
    return hidden * (k + 2) + (k + 1 if linear else 1)


class Layout(NamedTuple):
    """Where J'WJ (p, p) and J'We (p,) lie in the two products, flat, one after the other.

    columns : of J' x [g, 1, error, 0 ...]; pairs (2, q) : the j and l of the rows of the other product.
    """

    matrix: NDArray[np.int64]
    gradient: NDArray[np.int64]
    columns: int
    pairs: NDArray[np.int64]


@lru_cache(64)
def layout(k: int, hidden: int, linear: bool) -> Layout:
    """With a linear part the inputs alone are the rows of one more neuron, whose d is 1."""
    m, p = k + 1, parameter_count(k, hidden, linear)
    neuron, place = np.divmod(np.arange(hidden * (m + 1)), m + 1)
    alone = p - neuron.size
    neuron = np.append(neuron, np.full(alone, hidden))
    place = np.append(place, np.arange(m - alone, m))
    column = np.where(place == m, neuron, -1)
    if not linear:
        column[-1] = hidden
    columns, factors = _padded(hidden + 2), hidden + linear
    by_column = np.arange(p)[:, None] * columns + column
    couple = _couples(factors)[np.ix_(np.minimum(neuron, factors - 1), np.minimum(neuron, factors - 1))]
    product = _couples(m)[np.ix_(np.minimum(place, k), np.minimum(place, k))]
    by_pair = p * columns + couple * _padded(m * (m + 1) // 2) + product
    matrix = np.where(column >= 0, by_column, np.where(column[:, None] >= 0, by_column.T, by_pair))
    return Layout(matrix, np.arange(p) * columns + hidden + 1, columns, np.array(np.triu_indices(factors)))


def _padded(count: int) -> int:
    return -(-count // LANE) * LANE


def _couples(size: int) -> NDArray[np.int64]:
    """(size, size) numbers of the unordered pairs, in the order of `triu_indices`."""
    number = np.zeros((size, size), np.int64)
    number[np.triu_indices(size)] = np.arange(size * (size + 1) // 2)
    return np.maximum(number, number.T)


def input_products(planes: NDArray[Any]) -> NDArray[Any]:
    """x_a x_b for a <= b, (padded m (m + 1) / 2, n), of planes (m, n); rows of padding are 0."""
    m = len(planes)
    found = np.zeros((_padded(m * (m + 1) // 2), planes.shape[1]), planes.dtype)
    first = 0
    for a in range(m):
        np.multiply(planes[a], planes[a:], out=found[first : first + m - a])
        first += m - a
    return found


def checked(
    x: ArrayLike,
    y: ArrayLike,
    weight: ArrayLike,
    hidden: ArrayLike,
    decay: ArrayLike,
    validation: ArrayLike | None,
    member: ArrayLike | None,
    linear: bool,
) -> Table:
    values, target = np.asarray(x, np.float64), np.asarray(y, np.float64)
    widths = np.atleast_1d(np.asarray(hidden, np.int64))
    if values.ndim != 2 or target.shape != values.shape[:1] or widths.ndim != 1 or widths.size == 0:
        raise InputError(
            "networks need x (n, k), y (n,) and one number of neurons each, hidden (r,); "
            f"got x {values.shape}, y {target.shape}, hidden {widths.shape}"
        )
    shared = np.arange(widths.size) if member is None else np.asarray(member, np.int64)
    rows = widths.size if member is None else len(np.atleast_2d(np.asarray(weight)))
    if shared.shape != widths.shape or shared.min() < 0 or shared.max() >= rows:
        raise InputError(
            f"member must be one of the {rows} rows of weight for each network, shape {widths.shape}; got {shared}"
        )
    shape = (rows, len(target))
    weights = _spread("weight", weight, shape)
    held = _spread("validation", np.zeros(len(target)) if validation is None else validation, shape)
    ridges = _spread("decay", np.reshape(np.asarray(decay, np.float64), (-1, 1)), (widths.size, 1))[:, 0]
    if widths.min() < 1 or not (weights.sum(axis=1)[shared] > 0).all():
        raise InputError("each network needs at least one neuron and a training sample of positive weight")
    if not (np.isfinite(values).all() and np.isfinite(target).all()):
        raise InputError("networks cannot train on NaN or infinite predictors or targets; drop those rows first")
    return Table(np.vstack([values.T, np.ones(len(target))]), target, weights, held, shared, widths, ridges, linear)


def _spread(name: str, given: ArrayLike, shape: tuple[int, int]) -> Floats:
    values = np.asarray(given, np.float64)
    try:
        spread = np.broadcast_to(values, shape)
    except ValueError:
        raise InputError(f"{name} must broadcast to (networks, samples) {shape}; got {values.shape}") from None
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise InputError(f"{name} must be finite and not negative")
    return spread
