"""Lightning drives Levenberg-Marquardt: one training step is one step of every network still in training.

Imported by `GABPRegressor.fit` alone. The mathematics is `kernels.lm`; Lightning gives device, logging, checkpoints,
progress and callbacks.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytorch_lightning as lightning
import torch
from torch import nn
from torch.utils.data import DataLoader

from smscale.kernels import lm

#: Trainer arguments unless the caller gives others.
QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Steps(torch.optim.Optimizer):
    """An optimiser whose step is one step of Levenberg-Marquardt of every network that is still in training."""

    def __init__(self, networks: nn.ParameterList, runs: list[lm.Training], pool: ThreadPoolExecutor):
        super().__init__(networks, {})
        self.runs = runs
        self.pool = pool

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Advance, and let the parameters follow."""
        list(self.pool.map(lm.Training.advance, self.runs))
        for parameter, run in zip(self.param_groups[0]["params"], self.runs, strict=True):
            parameter.copy_(torch.from_numpy(run.state.x))


class LevenbergMarquardt(lightning.LightningModule):
    """Networks trained side by side on their whole batches, by manual optimisation.

    Logs mse and validation_mse (best of all networks, units of the target squared), damping (median) and active (how many
    networks go on). The parameters, `networks`, follow the steps, so that a checkpoint holds them.
    """

    def __init__(self, runs: list[lm.Training], variance: float, pool: ThreadPoolExecutor):
        super().__init__()
        self.automatic_optimization = False
        self.runs = runs
        self.variance = variance
        self.pool = pool
        self.networks = nn.ParameterList(nn.Parameter(torch.from_numpy(run.state.x.copy()), False) for run in runs)

    def configure_optimizers(self) -> Steps:
        return Steps(self.networks, self.runs, self.pool)

    def training_step(self, batch: int, index: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.step()
        last = [run.watch.trace[-1] for run in self.runs]
        self._report("mse", min(entry.mse for entry in last) * self.variance)
        self._report("validation_mse", min(run.watch.best_mse for run in self.runs) * self.variance)
        self._report("damping", float(np.median([entry.damping for entry in last])))
        self._report("active", float(sum(run.reason is None for run in self.runs)))
        self.trainer.should_stop = all(run.reason is not None for run in self.runs)

    def _report(self, name: str, value: float) -> None:
        self.log(name, value, on_step=True, on_epoch=False, prog_bar=True, batch_size=1)


def train(
    runs: list[lm.Training],
    variance: float,
    pool: ThreadPoolExecutor,
    max_steps: int,
    accelerator: str,
    devices: int | str,
    options: Mapping[str, Any],
) -> None:
    """Train networks to their ends under one Trainer; results lie in each run's watch.

    Parameters
    ----------
    runs : networks at their starts
    variance : target units squared per standardised unit squared, for the log
    pool : threads that share the networks of a step
    max_steps : steps after which every network has ended
    accelerator, devices, options : of Lightning's Trainer
    """
    with _quiet():
        trainer = lightning.Trainer(
            accelerator=accelerator,
            devices=devices,
            max_epochs=1,
            log_every_n_steps=1,
            **{**QUIET, **options},
        )
        whole_batch: DataLoader[Any] = DataLoader(range(max_steps + 2), batch_size=None)  # type: ignore[arg-type]
        trainer.fit(LevenbergMarquardt(runs, variance, pool), whole_batch)


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's advice silenced; levels put back after."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "pytorch_lightning.utilities.rank_zero")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
