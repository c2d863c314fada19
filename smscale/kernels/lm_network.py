"""Networks of one hidden tanh layer as least-squares problems in closed form, many at once, and their training.

r networks share one table; each has its own sample weights (its inner fold is its rows of weight zero), width and ridge.
Parameters are neuron after neuron (k weights, threshold, output weight), then the k weights of the linear part where there
is one, then the output threshold: p = h (k + 2) + [k] + 1. Narrow networks are padded with neurons of zeros, which have
no gradient and stay zero.

With m = k + 1 inputs (the predictors and 1), a row of J' is an input times d_j = w2_j (1 - g_j^2), or g_j = tanh(a_j), or
an input alone. So J'WJ needs two products of matrices and never more:
    pairs (d_j d_l) x products (x_a x_b), where the m (m + 1) / 2 products of inputs are formed once for all networks;
    J' x [g, 1, error], which also holds the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import ThreadpoolController

from smscale.errors import InputError
from smscale.kernels import lm
from smscale.kernels.ga import cpus
from smscale.kernels.lm import Array, Floats, Settings, State

ENGINES = ("numpy", "torch")
DTYPES = ("float64", "float32")
#: Samples whose products are formed at once: of 20 neurons and 12 predictors they fill 1 MB in float32, a second-level cache.
CHUNK = 512
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


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _form(planes, y, weight, start, neurons, alone, linear, rows, right, pairs):  # type: ignore[no-untyped-def]
    """From g, left in right[:h]: J' in rows (p, c); [g, 1, error] weighted in right; the weighted pairs of d in pairs.

    No other kernel is called, so that it rounds alike compiled afresh or loaded from numba's cache.
    """
    h, m, size = neurons.shape[0], planes.shape[0], rows.shape[1]
    factors = h + 1 if linear else h
    d = np.ones((h + 1, size), rows.dtype)
    weighted = np.empty(size, rows.dtype)
    for i in range(size):
        right[h + 1, i] = alone[alone.size - 1] - y[start + i]
    for a in range(alone.size - 1):
        for i in range(size):
            right[h + 1, i] += alone[a] * planes[a, start + i]
    for j in range(h):
        v, first = neurons[j, m], j * (m + 1)
        for i in range(size):
            g = right[j, i]
            rows[first + m, i] = g
            d[j, i] = v - v * g * g
            right[h + 1, i] += v * g
            right[j, i] = weight[start + i] * g
        for a in range(m):
            for i in range(size):
                rows[first + a, i] = d[j, i] * planes[a, start + i]
    for a in range(m - alone.size, m):
        for i in range(size):
            rows[rows.shape[0] - m + a, i] = planes[a, start + i]
    for i in range(size):
        right[h, i] = weight[start + i]
        right[h + 1, i] *= weight[start + i]
    q = 0
    for j in range(factors):
        for i in range(size):
            weighted[i] = weight[start + i] * d[j, i]
        for other in range(j, factors):
            for i in range(size):
                pairs[q, i] = weighted[i] * d[other, i]
            q += 1


class Networks:
    """The problem on the CPU: one network is one task, with its own width, so a result depends on no other and no thread.

    `dtype` is that of the work per sample; sums over chunks of samples, the linear systems and the costs are float64.
    """

    xp = np

    def __init__(self, table: Table, dtype: str, threads: int) -> None:
        self.table, self.threads = table, threads
        self.planes, self.y, self.weight = (np.asarray(a, dtype) for a in (table.planes, table.y, table.weights))
        self.products = input_products(self.planes)
        starts = np.arange(0, len(table.y), CHUNK)
        self.starts = [starts[np.add.reduceat(weight, starts) > 0].tolist() for weight in table.weights]
        self.totals = [[weight.sum() for weight in side] for side in (table.weights, table.validations)]
        self.own = [table.own(int(hidden)) for hidden in table.hidden]
        self.matrices: dict[int, Floats] = {}
        self.last: dict[int, tuple[Floats, tuple[float, float]]] = {}
        self.gradient = np.zeros((len(table.hidden), table.parameters))

    def array(self, values: ArrayLike) -> NDArray[Any]:
        return np.asarray(values)

    def cost(self, x: Floats, which: NDArray[np.bool_]) -> Floats:
        found = np.full(len(x), np.nan)

        for i in np.flatnonzero(which).tolist():
            # Without the padding: how a product of zeros is summed depends on the widest network of the batch.
            own = x[i, self.own[i][:-1]]
            found[i] = 0.5 * (self._squares(x[i], i)[0] + self.table.decay[i] * (own @ own))
        return found

    def mse(self, x: Floats, which: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """Weighted mean squared errors (r,) on the training and on the validation samples; NaN where there are none."""
        found = np.full((2, len(x)), np.nan)

        for i in np.flatnonzero(which).tolist():
            for side, squares in enumerate(self._squares(x[i], i)):
                total = self.totals[side][self.table.member[i]]
                if total > 0:
                    found[side, i] = squares / total
        return found[0], found[1]

    def linearise(self, x: Floats, which: NDArray[np.bool_]) -> Floats:
        def one(i: int) -> None:
            self.matrices[i], self.gradient[i, self.own[i]] = self.normal_equations(x[i], i)

        self._each(one, which)
        return self.gradient

    def step(self, damping: Floats, which: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        move, predicted = np.zeros_like(self.gradient), np.full(len(damping), -1.0)

        def one(i: int) -> None:
            matrix, gradient = self.matrices[i].copy(), self.gradient[i, self.own[i]]
            matrix.flat[:: len(matrix) + 1] += damping[i]
            try:
                factor = np.linalg.cholesky(matrix)  # leaves the interpreter to the other threads, as scipy's does not
            except np.linalg.LinAlgError:
                return
            found = -scipy.linalg.cho_solve((factor, True), gradient, check_finite=False)
            move[i, self.own[i]] = found
            predicted[i] = 0.5 * (damping[i] * (found @ found) - found @ gradient)

        self._each(one, which)
        return move, predicted

    def normal_equations(self, parameters: Floats, i: int) -> tuple[Floats, Floats]:
        """J'WJ + decay and the gradient of network i at parameters (p,): (q, q) and (q,) of its own q parameters."""
        table, own = self.table, self.own[i]
        form = layout(table.k, int(table.hidden[i]), table.linear)
        neurons, alone = self._split(parameters, i)
        crossed, slopes = np.zeros((own.size, form.columns)), np.zeros((form.pairs.shape[1], len(self.products)))
        count = own.size + form.columns + len(slopes)
        work = np.empty(count * min(CHUNK, len(self.y)), self.planes.dtype)
        weight = self.weight[table.member[i]]
        for start in self.starts[table.member[i]]:
            part = slice(start, start + CHUNK)
            size = len(self.y[part])
            block = work[: count * size].reshape(count, size)
            rows, right, pairs = block[: own.size], block[own.size : -len(slopes)], block[-len(slopes) :]
            hidden = right[: len(neurons)]
            np.tanh(np.matmul(neurons[:, :-1], self.planes[:, part], out=hidden), out=hidden)
            right[len(neurons) + 2 :] = 0
            _form(self.planes, self.y, weight, start, neurons, alone, table.linear, rows, right, pairs)
            crossed += rows @ right.T
            slopes += pairs @ self.products[:, part].T
        flat = np.concatenate([crossed.ravel(), slopes.ravel()])
        matrix, gradient = flat.take(form.matrix), flat.take(form.gradient)
        matrix.flat[: -1 : own.size + 1] += table.decay[i]
        gradient[:-1] += table.decay[i] * parameters[own[:-1]]
        return matrix, gradient

    def _squares(self, parameters: Floats, i: int) -> tuple[float, float]:
        """Weighted sums of (f(x) - y)^2 of network i over the training and over the validation samples.

        Kept, as a step's cost and its errors are asked for one after the other.
        """
        last = self.last.get(i)
        if last is not None and np.array_equal(last[0], parameters):
            return last[1]
        with _blas().limit(limits=1, user_api="blas"), np.errstate(over="ignore", invalid="ignore"):
            squares, member = self._errors(parameters, i) ** 2, self.table.member[i]
            sums = float(self.table.weights[member] @ squares), float(self.table.validations[member] @ squares)
            self.last[i] = parameters.copy(), sums
        return self.last[i][1]

    def _errors(self, parameters: Floats, i: int) -> Floats:
        neurons, alone = self._split(parameters, i)
        found = np.empty(len(self.y))
        for start in range(0, found.size, CHUNK):
            planes = self.planes[:, start : start + CHUNK]
            values = neurons[:, -1] @ np.tanh(neurons[:, :-1] @ planes) + alone @ planes[-alone.size :]
            found[start : start + CHUNK] = values - self.y[start : start + CHUNK]
        return found

    def _split(self, parameters: Floats, i: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Neurons (h, m + 1) and what stands alone (m,) or (1,), in the dtype of the work."""
        own = parameters[self.own[i]].astype(self.planes.dtype)
        cut = int(self.table.hidden[i]) * (self.table.k + 2)
        return own[:cut].reshape(-1, self.table.k + 2), own[cut:]

    def _each(self, task: Callable[[int], None], which: NDArray[np.bool_]) -> None:
        """Do a task for every network of `which`; BLAS on one thread, as more would change the order of its sums."""
        numbers = np.flatnonzero(which).tolist()

        def quietly(number: int) -> None:
            with np.errstate(over="ignore", invalid="ignore"):
                task(number)

        with _blas().limit(limits=1, user_api="blas"):
            if min(self.threads, len(numbers)) < 2:
                for number in numbers:
                    quietly(number)
                return
            with ThreadPoolExecutor(min(self.threads, len(numbers))) as pool:
                list(pool.map(quietly, numbers))


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def networks(
    x: ArrayLike,
    y: ArrayLike,
    weight: ArrayLike,
    hidden: ArrayLike,
    decay: ArrayLike = 0.0,
    validation: ArrayLike | None = None,
    *,
    member: ArrayLike | None = None,
    linear: bool = False,
    dtype: str = "float32",
    engine: str = "numpy",
    device: str | None = None,
    threads: int | None = None,
) -> Any:
    """The problem of r networks on one table, for `lm.run` or `train`.

    The cost of a network is half of sum_i w_i (f(x_i) - y_i)^2 + decay |parameters without the output threshold|^2. The
    products of inputs are kept: about 4 (k + 1) (k + 2) / 2 bytes a sample in float32.

    Parameters
    ----------
    x : (n, k) predictors, standardised; y : (n,) target
    weight : (n,) or (g, n), weights of the samples in training, >= 0; 0 holds a sample out
    hidden : (r,) neurons of each network
    decay : ridge on the parameters, one or (r,)
    validation : (n,) or (g, n), weights of the samples that decide when to stop; None for none
    member : (r,) rows of weight and validation that the networks have; None where each has its own, g = r
    linear : y also gets a linear part in x
    dtype : "float32" or "float64", of the work per sample; sums and linear systems are float64, so that on standardised
        samples 80 steps in float32 end within 0.1 % of the errors of float64
    engine : "numpy" (compiled, on the CPU) or "torch"
    device : of torch; None takes "cuda" where there is one
    threads : of the CPU's engine, None for every CPU of the process; the result does not depend on it. Samples that are
        held out cost least where they stand together

    Raises
    ------
    InputError : shapes that do not fit, values that are not finite, a network without training samples, an unknown engine
    """
    table = _checked(x, y, weight, hidden, decay, validation, member, linear)
    if engine not in ENGINES or dtype not in DTYPES:
        raise InputError(f"engine must be one of {ENGINES} and dtype one of {DTYPES}; got {engine!r}, {dtype!r}")
    if engine == "numpy":
        return Networks(table, dtype, threads or cpus())
    from smscale.kernels import lm_torch

    return lm_torch.Networks(table, dtype, device)


def _checked(
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


def join(
    w1: ArrayLike, b1: ArrayLike, w2: ArrayLike, b2: float, width: int | None = None, skip: ArrayLike | None = None
) -> Floats:
    """Parameters (p,) of a network w1 (k, h), b1 (h,), w2 (h,), b2, padded to `width` neurons; skip (k,) is the linear part."""
    neurons = np.hstack([np.asarray(w1, np.float64).T, np.asarray(b1)[:, None], np.asarray(w2)[:, None]])
    padding = np.zeros(((width or len(neurons)) - len(neurons), neurons.shape[1]))
    return np.concatenate([neurons.ravel(), padding.ravel(), [] if skip is None else np.asarray(skip), [b2]])


def split(parameters: Floats, k: int, linear: bool = False) -> tuple[Floats, Floats, Floats, float, Floats]:
    """w1 (k, h), b1 (h,), w2 (h,), b2, skip (k,) of a parameter vector, without the neurons that are padding."""
    alone = k + 1 if linear else 1
    neurons = parameters[:-alone].reshape(-1, k + 2)
    neurons = neurons[neurons.any(axis=1)]
    skip = parameters[-alone:-1] if linear else np.zeros(k)
    return neurons[:, :k].T, neurons[:, k], neurons[:, k + 1], float(parameters[-1]), skip


def forward(parameters: Floats, x: Floats, linear: bool = False) -> Floats:
    """Network of x (n, k) float64, (n,)."""
    w1, b1, w2, b2, skip = split(parameters, x.shape[1], linear)
    return np.tanh(x @ w1 + b1) @ w2 + x @ skip + b2


@dataclass(frozen=True)
class Stop:
    """When training ends before the solver does.

    goal : mean squared training error, units of y squared
    patience : steps without a better validation error, where there are validation samples
    """

    goal: float = 0.0
    patience: int = 12


class Training(NamedTuple):
    """r networks in training: the solver's state, and what was best so far.

    best (r, p), best_mse (r,), best_step (r,) : on the validation samples, on those of training where there are none.
        Never NaN: a start without a finite error leaves zeros and an infinite best_mse
    trace (r, max_steps + 1, 3) : mse, validation_mse (units of y squared) and damping after each step; NaN after the last
    """

    state: State
    best: Array
    best_mse: Array
    best_step: Array
    trace: Array


def begin(problem: Any, parameters: ArrayLike, settings: Settings, stop: Stop) -> Training:
    """Training before its first trial, from parameters (r, p)."""
    given = np.asarray(parameters, np.float64)
    expected = (len(problem.table.hidden), problem.table.parameters)
    if given.shape != expected:
        raise InputError(f"parameters must be (networks, parameters) {expected}; got {given.shape}")
    state = lm.start(problem, given, settings)
    xp = problem.xp
    trace = problem.array(np.full((len(given), settings.max_steps + 1, 3), np.nan))
    empty = Training(state, xp.zeros_like(state.x), xp.zeros_like(state.cost) + np.inf, state.steps, trace)
    return _seen(problem, empty, state, state.reason != lm.START, stop)


def advance(problem: Any, training: Training, settings: Settings, stop: Stop) -> Training:
    """One trial of every network that goes on; those whose error falls have made a step."""
    state = lm.advance(problem, training.state, settings)
    return _seen(problem, training, state, state.steps > training.state.steps, stop)


def _seen(problem: Any, before: Training, state: State, new: Array, stop: Stop) -> Training:
    """Record those that have made a step, and end those at their goal or past their patience."""
    xp = problem.xp
    training, validation = problem.mse(state.x, new)
    table = problem.table
    watched = problem.array(table.validations.any(axis=1)[table.member])
    score = xp.where(watched, validation, training)
    better = new & (score < before.best_mse)
    best = xp.where(better[:, None], state.x, before.best)
    best_mse = xp.where(better, score, before.best_mse)
    best_step = xp.where(better, state.steps, before.best_step)
    slots = problem.array(np.arange(before.trace.shape[1])) == state.steps[:, None]
    entry = xp.stack([training, validation, state.damping], -1)
    trace = xp.where((slots & new[:, None])[..., None], entry[:, None], before.trace)
    waited = watched & (state.steps - best_step >= stop.patience)
    reason = xp.where(new & waited, lm.VALIDATION, state.reason)
    reason = xp.where(new & (training <= stop.goal), lm.GOAL, reason)
    return Training(state._replace(reason=reason), best, best_mse, best_step, trace)


def train(problem: Any, parameters: ArrayLike, settings: Settings, stop: Stop | None = None) -> Training:
    """Train r networks from parameters (r, p) until every one has ended."""
    stop = stop or Stop()
    training = begin(problem, parameters, settings, stop)
    while not finished(training):
        training = advance(problem, training, settings, stop)
    return training


def finished(training: Training) -> bool:
    """Whether every network has ended."""
    return not lm.goes_on(training.state)


def reasons(training: Training) -> list[str]:
    """Why each network ended, see `lm.REASONS`."""
    return [lm.REASONS[int(code)] for code in training.state.reason]


def arrays(training: Training) -> dict[str, Array]:
    """Every array by its name, for a checkpoint."""
    return {**training.state._asdict(), **{name: getattr(training, name) for name in Training._fields[1:]}}


def restored(arrays: Mapping[str, Array]) -> Training:
    """Training from its arrays, to go on with; the linear models of a fresh problem are formed again."""
    training = _named(arrays)
    state = training.state
    return training._replace(state=state._replace(moved=state.reason == lm.GOES_ON))


def to_numpy(training: Training) -> Training:
    """With NumPy arrays, whatever the engine."""
    return _named({name: a if isinstance(a, np.ndarray) else a.cpu().numpy() for name, a in arrays(training).items()})


def _named(arrays: Mapping[str, Array]) -> Training:
    state = State(*(arrays[name] for name in State._fields))
    return Training(state, *(arrays[name] for name in Training._fields[1:]))
