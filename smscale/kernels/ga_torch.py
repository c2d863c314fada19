"""The genetic algorithm's torch engine: a block of generations runs on the device without the host waiting for it.

The host draws the random numbers, the same as for the compiled engine, and uploads a block while the one before is
computed; what comes back is one small table a block. Same maths as `ga_numba`, term by term.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from smscale.errors import InputError
from smscale.kernels.ga_rules import COLLAPSED, SLOTS, SMALLEST_SSE, Draws, Floats, Floats32, Reals, Settings, bounds

#: Bytes of hidden neurons, (p, h, samples), that exist at once: on CUDA all of 100 networks of 20 on 6 069 samples and
#: more, on the CPU what a cache holds.
HIDDEN_BYTES = {"cuda": 256 * 2**20, "cpu": 2 * 2**20}
#: Bytes of one block of draws, and the most generations in it: while it runs the host draws the next.
BLOCK_BYTES, BLOCK = 32 * 2**20, 64

Tensor = torch.Tensor


class Genes(NamedTuple):
    """What breeding needs of a block beside its draws: mutation's direction and r (generations, children, genes)."""

    upwards: Tensor
    r: Tensor


@contextmanager
def exact() -> Iterator[None]:
    """No gradients, and products in full float32 (TF32 would lose half of the digits); the caller's choice after."""
    with _full_float32(), torch.inference_mode():
        yield


@contextmanager
def _full_float32() -> Iterator[None]:
    """torch has an older and a newer setting and refuses a mixture: the one that the caller used is the one to change."""
    matmul = torch.backends.cuda.matmul
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:
        newer = matmul.fp32_precision
        matmul.fp32_precision = "ieee"
        try:
            yield
        finally:
            matmul.fp32_precision = newer
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def chosen_device(name: str | None) -> torch.device:
    """The device of that name; CUDA, where there is one, if None.

    Raises
    ------
    InputError : no such device here, or one without float64
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"torch knows no device {name!r}; take 'cpu' or 'cuda'") from error
    if device.type not in HIDDEN_BYTES:
        raise InputError(f"the genetic algorithm runs on 'cpu' or 'cuda', not on {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name!r} asked for, but torch sees {torch.cuda.device_count()} CUDA devices here")
    return device


def population_sse(
    planes: Tensor, y: Tensor, weight: Tensor, population: Tensor, max_hidden: int, limit: int | None = None
) -> Tensor:
    """Weighted sum of squared errors of every network.

    Parameters
    ----------
    planes : (k, n) predictors; y : (n,); population : (p, g); of one type
    weight : (n,) float64
    limit : bytes that the hidden neurons (p, h, samples) may take at once; the device's `HIDDEN_BYTES` if None

    Returns
    -------
    (p,) float64
    """
    k, n = planes.shape
    p = len(population)
    neurons = population[:, :-2].view(p, max_hidden, k + 2)
    count = population[:, -1:].floor().clamp(1, max_hidden)
    alive = torch.arange(max_hidden, device=population.device) < count
    neurons = neurons * alive[:, :, None]
    inner, threshold = neurons[:, :, :k].reshape(-1, k), neurons[:, :, k].reshape(-1, 1)
    outer, bias = neurons[:, None, :, k + 1], population[:, -2, None]
    size = samples_at_once(p * max_hidden * population.element_size(), limit or HIDDEN_BYTES[population.device.type])
    total = torch.zeros(p, dtype=torch.float64, device=population.device)
    for start in range(0, n, size):
        part = slice(start, start + size)
        hidden = torch.addmm(threshold, inner, planes[:, part]).tanh_()
        output = torch.bmm(outer, hidden.view(p, max_hidden, -1))[:, 0] + bias
        # A sum along each row, where a product with the weights would round equal networks in different rows differently.
        total += ((output - y[part]).double().square_() * weight[part]).sum(1)
    return total


def samples_at_once(bytes_each: int, limit: int) -> int:
    """Samples whose hidden neurons fit the limit; one at least."""
    return max(1, limit // bytes_each)


def fitness_of(sse: Tensor) -> Tensor:
    """1/SSE; 0 for a network whose SSE is infinite or NaN."""
    return sse.nan_to_num(nan=torch.inf, posinf=torch.inf).clamp_min(SMALLEST_SSE).reciprocal()


def chosen_parents(fitness: Tensor, parents: Tensor) -> Tensor:
    """Roulette, as `ga_numba.chosen_parents`."""
    slots = (fitness / fitness.amax() * SLOTS).nan_to_num(nan=1.0).long()
    wheel = slots.cumsum(0)
    places = (parents * wheel[-1]).long()
    return torch.searchsorted(wheel, places, right=True).clamp_max(len(fitness) - 1)


class Standing(NamedTuple):
    """Where individuals stand: below the mean (all of a collapsed population), and how far below the best, 0 to 1."""

    below: Tensor
    distance: Tensor


def standing(fitness: Tensor) -> Standing:
    """Of fitness (p,)."""
    best, mean = fitness.amax(), fitness.mean()
    above = best - mean
    return Standing((fitness < mean) | (above <= COLLAPSED * best), (best - fitness) / above)


def adapted(those: Standing, low: float, high: float, least: float) -> Tensor:
    """Rates of individuals, as `ga_numba.adapted`."""
    return torch.where(those.below, low, (those.distance * high).clamp_min(least))


class Torch:
    """The engine: blocks of generations on one device."""

    def __init__(self, data: tuple[Reals, Reals, Reals], first: Floats32, settings: Settings, device: str | None):
        planes, y, weight = data
        self.device = chosen_device(device)
        self.settings = settings
        self.data = self._there(planes), self._there(y), self._there(weight.astype(np.float64))
        self.lower, self.upper = (self._there(b.astype(planes.dtype)) for b in bounds(len(planes), settings))
        genes = first.shape[1]
        self.block = max(1, min(BLOCK, BLOCK_BYTES // (8 * genes * settings.children)))
        population = self._there(first.astype(planes.dtype))
        self.state = population, population_sse(*self.data, population, settings.max_hidden)

    def empty(self, shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
        """Pinned on CUDA: only such memory is uploaded while the host goes on. The array keeps its tensor alive."""
        kind = torch.float32 if dtype is np.float32 else torch.float64
        return torch.empty(shape, dtype=kind, pin_memory=self.device.type == "cuda").numpy()

    def advance(self, draws: Draws, progress: Sequence[float]) -> Floats:
        there: Any = Draws(*(self._uploaded(numbers) for numbers in draws))
        each = zip(
            zip(*(t.unbind(0) for t in there), strict=True),
            zip(*(t.unbind(0) for t in self._genes(there.step)), strict=True),
            progress,
            strict=True,
        )
        errors, widths = [], []
        for numbers, genes, share in each:
            self.state = self._next(*self.state, Draws(*numbers), Genes(*genes), share)
            errors.append(self.state[1])
            widths.append(self.state[0][:, -1])
        return self._summaries(torch.stack(errors), torch.stack(widths))

    def summary(self) -> Floats:
        population, sse = self.state
        return self._summaries(sse[None], population[None, :, -1])

    def result(self) -> tuple[Reals, Floats]:
        population, sse = self.state
        return population.cpu().numpy(), sse.cpu().numpy()

    def _next(
        self, population: Tensor, sse: Tensor, draws: Draws, genes: Genes, progress: float
    ) -> tuple[Tensor, Tensor]:
        settings = self.settings
        elite = torch.sort(sse, stable=True).indices[: settings.elites]
        children = self._children(population, fitness_of(sse), draws, genes, (1.0 - progress) ** settings.shrink)
        errors = population_sse(*self.data, children, settings.max_hidden)
        return torch.cat([population[elite], children]), torch.cat([sse[elite], errors])

    def _children(self, population: Tensor, fitness: Tensor, draws: Any, genes: Genes, power: float) -> Tensor:
        settings = self.settings
        chosen = chosen_parents(fitness, draws.parents)
        those = standing(fitness)
        mutation = adapted(those, settings.mutation, settings.mutation_fit, settings.mutation_least)
        crossover = adapted(those, settings.crossover, settings.crossover_fit, 0.0)
        child = _crossed(population, fitness, crossover, chosen, draws)
        reach = 1.0 - genes.r.pow(power)
        bound = torch.where(genes.upwards, self.upper, self.lower)
        touched = draws.mutation < mutation[chosen, None]
        child = torch.where(touched, child + (bound - child) * reach, child)
        return child.clamp(self.lower, self.upper)[: settings.children]

    def _genes(self, step: Tensor) -> Genes:
        upwards, twice = step < 0.5, 2.0 * step.to(self.lower.dtype)
        return Genes(upwards, torch.where(upwards, twice, twice - 1.0))

    def _summaries(self, sse: Tensor, widths: Tensor) -> Floats:
        fitness = fitness_of(sse)
        best = sse.argmin(1, keepdim=True)
        hidden = widths.gather(1, best).floor().clamp(1, self.settings.max_hidden).double()
        columns = [fitness.gather(1, best), fitness.mean(1, keepdim=True), sse.gather(1, best), hidden]
        return torch.cat(columns, 1).cpu().numpy()

    def _there(self, values: NDArray[Any]) -> Tensor:
        return torch.tensor(values, device=self.device)

    def _uploaded(self, numbers: NDArray[Any]) -> Any:
        return torch.from_numpy(numbers).to(self.device, non_blocking=True)


def _crossed(population: Tensor, fitness: Tensor, rates: Tensor, chosen: Tensor, draws: Any) -> Tensor:
    """Children of neighbouring pairs, before mutation; the fitter parent's rate counts."""
    pairs = chosen.view(-1, 2)
    rate = rates[pairs].gather(1, fitness[pairs].argmax(1, keepdim=True))[:, 0]
    blend = torch.where(draws.crossover < rate, draws.blend, 0.0).to(population.dtype)
    own, other = population[chosen], population[pairs.flip(1).reshape(-1)]
    return own + blend.repeat_interleave(2)[:, None] * (other - own)
