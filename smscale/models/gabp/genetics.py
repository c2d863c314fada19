"""The first half of a GABP training: a genetic algorithm for each inner fold finds where its networks start."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from smscale.kernels import ga
from smscale.models.gabp.machine import Machine
from smscale.models.samples import Fold, Rows, Samples

Progress = Callable[[int, float], None]


class Evolved(NamedTuple):
    """What is kept of a genetic algorithm: the individuals to go on from (restarts, g), and how it went."""

    starts: NDArray[np.floating[Any]]
    trace: ga.Trace


class Search(NamedTuple):
    """The genetic algorithm's settings, the networks that go on from each of its last populations, and its precision."""

    settings: ga.Settings
    restarts: int
    dtype: str


def evolve(samples: Samples, folds: Sequence[Fold], search: Search, seed: int, machine: Machine) -> list[Evolved]:
    """One for each fold, on its training rows."""
    generations = search.settings.generations
    with _progress(machine.options, len(folds) * generations) as report:
        return [
            _evolve(
                samples, train, search, np.random.default_rng([seed, number]), machine, report(number * generations)
            )
            for number, (train, _) in enumerate(folds)
        ]


def _evolve(
    samples: Samples,
    rows: Rows,
    search: Search,
    rng: np.random.Generator,
    machine: Machine,
    progress: Progress | None,
) -> Evolved:
    found = ga.evolve(
        samples.X[rows],
        samples.y[rows],
        search.settings,
        rng,
        samples.weight[rows],
        machine.threads(len(rows)),
        progress,
        engine="numba" if machine.device == "cpu" else "torch",
        device=machine.device,
        dtype=search.dtype,
    )
    # The best individual, and others down to the median.
    starts = np.linspace(0, len(found.population) // 2, search.restarts, endpoint=False).astype(np.intp)
    return Evolved(found.population[starts], found.trace)


@contextmanager
def _progress(options: Mapping[str, Any], generations: int) -> Iterator[Callable[[int], Progress | None]]:
    """Makes a reporter for each inner fold, from the generations before it: a bar, or nothing."""
    if not options.get("enable_progress_bar") or os.environ.get("LOCAL_RANK", "0") != "0":
        yield lambda before: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=generations, desc="Genetic algorithm", unit="generation") as bar:

        def reporter(before: int) -> Progress:
            def report(generation: int, sse: float) -> None:
                bar.set_postfix(sse=f"{sse:.4g}", refresh=False)
                bar.update(before + generation - bar.n)

            return report

        yield reporter
        bar.update(generations - bar.n)
