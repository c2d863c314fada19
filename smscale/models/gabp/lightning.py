"""Lightning drives Levenberg-Marquardt: one training step is one trial step of every network still in training.

Imported by `GABPRegressor.fit` alone. The mathematics is `kernels.lm`; Lightning gives device, logging, checkpoints,
progress, callbacks and processes: each process trains every n-th network, and in the end all hold them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as lightning
import torch
from pytorch_lightning import Callback
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from smscale.errors import InputError
from smscale.kernels import lm, lm_network
from smscale.kernels.ga import cpus
from smscale.models import lightning_run
from smscale.models.gabp.kept import Kept
from smscale.models.gabp.restarts import Restarts
from smscale.models.samples import Rows

#: Trainer arguments unless the caller gives others.
QUIET: dict[str, Any] = lightning_run.QUIET | {"enable_checkpointing": False, "log_every_n_steps": 1}
#: Trainer arguments that are not the caller's, beside `lightning_run.OURS`: the training needs them as they are.
OURS = (
    "accumulate_grad_batches", "fast_dev_run", "gradient_clip_val", "limit_train_batches", "max_steps", "min_epochs",
    "min_steps", "overfit_batches", "precision",
)  # fmt: skip
#: The key of a checkpoint under which it names its training.
TRAINING = "smscale_training"
#: Trial steps between two checkpoints.
CHECKPOINT_STEPS = 10


class Trials:
    """Batches without end: each asks for one trial step on the whole table. No loader, which would draw a seed from torch."""

    def __iter__(self) -> Iterator[int]:
        step = 0
        while True:
            yield step
            step += 1


class Steps(torch.optim.Optimizer):
    """An optimiser whose step is a trial step of Levenberg-Marquardt of every network that is still in training."""

    def __init__(self, module: LevenbergMarquardt):
        super().__init__([module.anchor], {})
        self.module = module

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One trial step; the closure is Lightning's and has nothing to add."""
        self.module.advance()


class LevenbergMarquardt(lightning.LightningModule):
    """Networks trained side by side on their whole batches, by manual optimisation.

    Logs mse and validation_mse (best of the process's networks, units of the target squared), damping (median) and active
    (how many networks go on). The state of all networks lies in buffers whenever it is saved, and after training.
    """

    def __init__(self, restarts: Restarts, variance: float, threads: int | None, name: str = ""):
        super().__init__()
        self.automatic_optimization = False
        self.name, self.ended = name, False
        self.restarts, self.variance, self.threads = restarts, variance, threads
        # Data-parallel strategies want a parameter with a gradient; nothing else uses it.
        self.anchor = nn.Parameter(torch.zeros(1))
        (r, p), steps = restarts.start.shape, restarts.settings.max_steps
        for name in ("x", "best"):
            self.register_buffer(name, torch.zeros(r, p, dtype=torch.float64))
        for name in ("cost", "damping", "growth", "best_mse"):
            self.register_buffer(name, torch.zeros(r, dtype=torch.float64))
        for name in ("steps", "reason", "best_step"):
            self.register_buffer(name, torch.zeros(r, dtype=torch.int64))
        for name in ("moved", "begun"):
            self.register_buffer(name, torch.zeros(r, dtype=torch.bool))
        self.register_buffer("trace", torch.zeros(r, steps + 1, 3, dtype=torch.float64))
        self.problem: Any = None
        self.live: Any = None

    @property
    def rows(self) -> Rows:
        """The networks of this process."""
        return np.arange(self.trainer.global_rank, len(self.restarts), self.trainer.world_size)

    def configure_optimizers(self) -> Steps:
        return Steps(self)

    def on_train_start(self) -> None:
        """Begin, or go on from what a checkpoint has left in the buffers."""
        if not self.rows.size:
            return
        device = str(self.device) if self.device.type == "cuda" else "cpu"
        local = max(1, self.trainer.num_devices) if device == "cpu" else 1
        self.problem = self.restarts.problem(self.rows, device, max(1, (self.threads or cpus()) // local))
        if bool(self.get_buffer("begun").any()):
            found = {name: self.get_buffer(name)[self.rows] for name in self._names()}
            for name in ("x", "best"):
                found[name] = found[name][:, self.restarts.columns(self.rows)]
            self.live = lm_network.restored({name: self._on_engine(value) for name, value in found.items()})
        else:
            self.live = self.restarts.begin(self.problem, self.rows)

    def _on_engine(self, value: torch.Tensor) -> Any:
        return value.clone() if self.problem.xp is torch else value.cpu().numpy().copy()

    def advance(self) -> None:
        if self.live is not None:
            self.live = self.restarts.advance(self.problem, self.live)

    def training_step(self, batch: int, index: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.step()
        finished = self.live is None or lm_network.finished(self.live)
        if self.live is not None:
            self._log()
        self.ended = self.trainer.strategy.reduce_boolean_decision(finished, all=True)
        self.trainer.should_stop = self.trainer.should_stop or self.ended

    def _log(self) -> None:
        state, trace = self.live.state, self.live.trace
        last = trace[np.arange(len(state.steps)), state.steps]
        self._report("mse", last[:, 0].min() * self.variance)
        self._report("validation_mse", self.live.best_mse.min() * self.variance)
        self._report("damping", np.median(np.asarray(torch.as_tensor(state.damping).cpu())))
        self._report("active", (state.reason == 0).sum())

    def _report(self, name: str, value: Any) -> None:
        self.log(name, float(value), on_step=True, on_epoch=False, prog_bar=True, batch_size=1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._publish()
        checkpoint["state_dict"] = self.trainer.strategy.lightning_module_state_dict()
        checkpoint[TRAINING] = self.name

    def on_train_end(self) -> None:
        self._publish()

    def _publish(self) -> None:
        """Bring the state of every network of every process into the buffers of each."""
        own = torch.from_numpy(self.rows)
        if self.live is not None:
            wide = torch.from_numpy(self.restarts.columns(self.rows))
            for name, value in lm_network.arrays(self.live).items():
                part = torch.as_tensor(value)
                buffer = self.get_buffer(name)
                if name in ("x", "best"):
                    buffer[own[:, None], wide] = part.to(buffer)
                else:
                    buffer[own] = part.to(buffer)
            self.get_buffer("begun")[own] = True
        world = self.trainer.world_size
        if world > 1:
            for name in (*self._names(), "begun"):
                buffer = self.get_buffer(name)
                gathered: Any = self.all_gather(buffer.to(torch.float64))
                for rank in range(world):
                    buffer[rank::world] = gathered[rank, rank::world].to(buffer.dtype)

    def _names(self) -> list[str]:
        return [name for name, _ in self.named_buffers() if name != "begun"]


class Keep(lightning.Callback):
    """Saves the training every `CHECKPOINT_STEPS` trial steps and at its end, which one cut short has not reached."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_batch_end(self, trainer: lightning.Trainer, *rest: Any) -> None:
        if trainer.global_step % CHECKPOINT_STEPS == 0:
            lightning_run.save(trainer, self.path)

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if module.ended:
            lightning_run.save(trainer, self.path)


def refused(options: Mapping[str, Any]) -> list[str]:
    """What is wrong of `trainer_options`, as far as can be told without a Trainer."""
    wrong = lightning_run.refused(options)
    if ours := sorted(set(options) & set(OURS)):
        wrong.append(f"trainer_options must leave {', '.join(ours)} to the estimator")
    for name, kinds in (("callbacks", Callback), ("logger", Logger | bool)):
        if not all(isinstance(one, kinds) for one in lightning_run.listed(options.get(name))):
            wrong.append(f"trainer_options: {name} must be one of Lightning's or a list of them, got {options[name]!r}")
    return wrong


def train(
    restarts: Restarts,
    variance: float,
    threads: int | None,
    accelerator: str,
    devices: Any,
    options: Mapping[str, Any],
    kept: Kept | None,
) -> lm_network.Training:
    """Train networks to their ends under one Trainer.

    Parameters
    ----------
    restarts : the networks
    variance : target units squared per standardised unit squared, for the log
    threads : of the compiled engine, None for all CPUs; processes on one machine share them
    accelerator, devices, options : of Lightning's Trainer
    kept : files of this training, of which the checkpoint is gone on from and written on the way; None for none

    Raises
    ------
    InputError : options that Lightning refuses; a checkpoint that cannot be read or is of another training
    """
    module = LevenbergMarquardt(restarts, variance, threads, kept.key if kept else "")
    given = {**QUIET, **options}
    if kept:
        given["callbacks"] = [*lightning_run.listed(given.get("callbacks")), Keep(kept.networks)]
    begun = kept.networks if kept and kept.networks.exists() else None
    if begun:
        _check_checkpoint(begun, module)
    with lightning_run.silence.held():
        trainer = lightning_run.trainer_for(accelerator, devices, 1, given)
        try:
            lightning_run.fit(trainer, module, Trials(), begun)
        except MisconfigurationException as error:
            raise InputError(f"Lightning refuses trainer_options: {lightning_run.one_line(error)}") from error
    if not module.get_buffer("begun").all():
        raise InputError("GABPRegressor: Lightning ended before the first step; look at trainer_options")
    return lm_network.restored({name: module.get_buffer(name).cpu().numpy() for name in module._names()})


def _check_checkpoint(path: Path, module: LevenbergMarquardt) -> None:
    """Raise InputError where a file is not what this training has left."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        why = _difference(found, module)
    except Exception as error:  # a foreign file may fail its reader in any way
        why = f"{type(error).__name__}: {lightning_run.one_line(error)[:200]}"
    if why:
        raise InputError(f"{path} is no checkpoint of this training ({why}); remove it")


def _difference(found: Any, module: LevenbergMarquardt) -> str:
    """How a checkpoint differs from one of this training; nothing where it does not."""
    if found.get(TRAINING) != module.name:
        return "it is of other data, settings or versions"
    state, expected = found["state_dict"], module.state_dict()
    if state.keys() != expected.keys():
        return "its arrays have other names"
    if any(state[name].shape != array.shape or state[name].dtype != array.dtype for name, array in expected.items()):
        return "its arrays have other shapes or types"
    sound = state["begun"] & (state["reason"] != lm.START)
    numbers = ("x", "best", "cost", "damping", "growth")
    # A network whose errors on its inner fold overflow has an infinite best_mse.
    if not all(torch.isfinite(state[name][sound]).all() for name in numbers) or state["best_mse"].isnan().any():
        return "it holds NaN or infinity"
    last = module.restarts.settings.max_steps
    if not all(((state[name] >= 0) & (state[name] <= last)).all() for name in ("steps", "best_step")):
        return "it counts steps that there are not"
    return ""
