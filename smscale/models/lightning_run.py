"""How a `fit` runs Lightning: quietly, in one thread or many, so that Ctrl-C ends it and a kill leaves a whole checkpoint.

Imported by the trainings alone, as it imports torch.
"""

from __future__ import annotations

import inspect
import logging
import os
import signal
import tempfile
import threading
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from smscale.errors import InputError
from smscale.kernels.threads import Shared

#: Trainer arguments unless the caller gives others.
QUIET: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
LOGGERS = ("pytorch_lightning", "pytorch_lightning.utilities.rank_zero", "lightning_fabric")

#: Trainer arguments that are the estimators' own.
OURS = ("accelerator", "devices", "max_epochs", "use_distributed_sampler")


def one_line(error: Exception) -> str:
    """What an exception says, without its line breaks."""
    return " ".join(str(error).split())


def refused(options: Mapping[Any, Any]) -> list[str]:
    """What is wrong of the names among `trainer_options`."""
    known = set(inspect.signature(lightning.Trainer.__init__).parameters) - {"self"}
    wrong = []
    if unknown := sorted(str(name) for name in set(options) - known):
        wrong.append(f"trainer_options has no {', '.join(unknown)}: Lightning's Trainer takes no such argument")
    if ours := sorted(set(options) & set(OURS)):
        wrong.append(f"trainer_options must leave {', '.join(ours)} to the estimator")
    return wrong


def trainer_for(accelerator: str, devices: Any, epochs: int, options: Mapping[str, Any]) -> lightning.Trainer:
    """Lightning's Trainer; `accelerator` "auto" is CUDA where there is a device, else the CPU.

    Raises
    ------
    InputError : there is no such device, or Lightning refuses an option
    """
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise InputError(f"accelerator={accelerator!r} needs a CUDA device, and there is none; take 'auto' or 'cpu'")
    if devices == 1 and not {"plugins", "num_nodes", "strategy"} & set(options):
        # A batch system's number of tasks is no business of a fit on one device.
        options = {**options, "plugins": [LightningEnvironment()]}
    cpus = os.cpu_count() or 1
    if accelerator == "cpu" and _count(devices) > cpus:
        raise InputError(f"devices={devices!r}, but this machine has {cpus} CPUs; take at most so many")
    try:
        return lightning.Trainer(
            accelerator=accelerator, devices=devices, max_epochs=epochs, use_distributed_sampler=False, **options
        )
    except (AttributeError, TypeError, ValueError, RuntimeError, MisconfigurationException) as error:
        raise InputError(
            f"Lightning refuses accelerator={accelerator!r}, devices={devices!r} or trainer_options: {one_line(error)}"
        ) from error


def _count(devices: Any) -> int:
    if isinstance(devices, list | tuple):
        return len(devices)
    return int(devices) if str(devices).isdigit() else 1


def _silence(undo: ExitStack) -> None:
    undo.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    for logger in map(logging.getLogger, LOGGERS):
        undo.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)


#: Lightning's advice silenced.
silence = Shared(_silence)


def fit(trainer: lightning.Trainer, module: lightning.LightningModule, batches: Any, checkpoint: Path | None) -> None:
    """`trainer.fit`, that a Ctrl-C leaves as a KeyboardInterrupt (Lightning exits, and ignores the next one).

    batches : None where the module has its own; checkpoint : file to go on from, or None
    """
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if main else None
    try:
        trainer.fit(module, batches, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)


def save(trainer: lightning.Trainer, path: Path) -> None:
    """Write a checkpoint beside, then in place of the last, so that a kill leaves a whole one.

    Raises
    ------
    InputError : it cannot be written
    """
    beside = path.with_name(f"{path.name}.part")
    try:
        trainer.save_checkpoint(beside)
        if trainer.is_global_zero:
            beside.replace(path)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{path}: the checkpoint cannot be written ({one_line(error)}); free the disk or take another folder"
        ) from error


def folder(path: Path) -> Path:
    """A folder for checkpoints, made where there is none.

    Raises
    ------
    InputError : there can be none, or nothing can be written into it
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise InputError(
            f"checkpoint={str(path)!r}: no folder to write into ({error.strerror}); take another"
        ) from error


def listed(callbacks: Any) -> list[Any]:
    """Callbacks as Lightning takes them: none, one or several."""
    if callbacks is None:
        return []
    return list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks]


def device_told(accelerator: str) -> str:
    """The kind of device behind an accelerator's name, for the name of a checkpoint: another kind rounds otherwise."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return "cpu" if accelerator == "auto" else accelerator
