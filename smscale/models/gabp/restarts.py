"""Networks of one table at their starts: what Levenberg-Marquardt trains side by side, in arrays that any process can take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smscale.kernels import lm, lm_network
from smscale.models.samples import Floats, Rows


@dataclass(frozen=True, eq=False)
class Restarts:
    """r networks on one table.

    x (n, k), y (n,), standardised; weight and validation (g, n), 0 where a row does not count, of which network i has row
    member[i]; hidden (r,) neurons; decay (r,), per unit of weight; start (r, p) parameters, padded to the widest; dtype of the sums over samples.
    """

    x: Floats
    y: Floats
    weight: Floats
    validation: Floats
    member: Rows
    hidden: NDArray[np.int64]
    decay: Floats
    start: Floats
    settings: lm.Settings
    stop: lm_network.Stop
    dtype: str

    def __len__(self) -> int:
        return len(self.hidden)

    def problem(self, rows: Rows, device: str, threads: int | None = None) -> Any:
        """Some of the networks as a problem, by the compiled engine on "cpu", else by torch."""
        engine: dict[str, Any] = {"threads": threads} if device == "cpu" else {"engine": "torch", "device": device}
        member = self.member[rows]
        return lm_network.networks(
            self.x,
            self.y,
            self.weight,
            self.hidden[rows],
            self.decay[rows] * self.weight.sum(axis=1)[member],
            self.validation,
            member=member,
            dtype=self.dtype,
            **engine,
        )

    def columns(self, rows: Rows) -> NDArray[np.int64]:
        """Where the parameters of some networks, padded to the widest of them, lie among those of all."""
        size = self.start.shape[1]
        return np.append(np.arange(int(self.hidden[rows].max()) * (self.x.shape[1] + 2)), size - 1)

    def begin(self, problem: Any, rows: Rows) -> lm_network.Training:
        return lm_network.begin(problem, self.start[np.ix_(rows, self.columns(rows))], self.settings, self.stop)

    def advance(self, problem: Any, training: lm_network.Training) -> lm_network.Training:
        return lm_network.advance(problem, training, self.settings, self.stop)

    def trained(self, threads: int | None) -> lm_network.Training:
        """All of them, on this CPU."""
        rows = np.arange(len(self))
        problem = self.problem(rows, "cpu", threads)
        training = self.begin(problem, rows)
        while not lm_network.finished(training):
            training = self.advance(problem, training)
        return training
