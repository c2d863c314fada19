"""Training of the convolutional network: torch and Lightning, imported by `CNNRegressor.fit` alone."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as lightning
import torch
from numpy.typing import NDArray
from pytorch_lightning.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset

from smscale.errors import InputError
from smscale.models.cnn_layers import CONVOLUTIONS, GROUPS, KERNEL

#: Rows of a validation batch: bounds memory only.
VALIDATION_ROWS = 8192


class Trained(NamedTuple):
    """Weights at the best epoch, and the errors of every epoch (standardised units squared)."""

    arrays: dict[str, NDArray[np.float32]]
    best_epoch: int
    best_mse: float
    training_mse: list[float]
    validation_mse: list[float]


class SeededDropout(nn.Module):
    """Dropout that draws from its own generator, so that the global one stays as it is."""

    def __init__(self, share: float, seed: int):
        super().__init__()
        self.share = share
        self.seed = seed
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.share == 0:
            return x
        if self.generator is None or self.generator.device != x.device:
            self.generator = torch.Generator(device=x.device).manual_seed(self.seed)
        kept = torch.rand(x.shape, generator=self.generator, device=x.device) >= self.share
        return x * kept / (1 - self.share)


class Network(nn.Module):
    """Four groups of (convolution, ReLU) x 2, max pooling in ceil mode and dropout; a dense output, zero at first. (n, k) -> (n,)."""

    def __init__(self, predictors: int, filters: tuple[int, ...], dropout: float, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        layers: list[nn.Module] = []
        channels = 1
        for group, width in enumerate(filters):
            for _ in range(CONVOLUTIONS):
                layers += [_convolution(channels, width, generator), nn.ReLU()]
                channels = width
            layers += [nn.MaxPool1d(2, ceil_mode=True), SeededDropout(dropout, seed + 1 + group)]
        self.features = nn.Sequential(*layers)
        self.dense = nn.utils.skip_init(nn.Linear, -(-predictors // 2**GROUPS) * channels, 1)
        nn.init.zeros_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)

    def forward(self, x: Tensor) -> Tensor:
        # Positions outermost: the order in which `CNNPredictor` reads the last layer.
        return self.dense(self.features(x[:, None]).transpose(1, 2).flatten(1))[:, 0]

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """weight_i (out, in, 3), bias_i (out,) of the eight convolutions; dense_weight, dense_bias (1,)."""
        convolutions = [layer for layer in self.features if isinstance(layer, nn.Conv1d)]
        arrays = {"dense_weight": _array(self.dense.weight[0]), "dense_bias": _array(self.dense.bias)}
        for number, layer in enumerate(convolutions):
            assert layer.bias is not None
            arrays |= {f"weight_{number}": _array(layer.weight), f"bias_{number}": _array(layer.bias)}
        return arrays


def _convolution(channels: int, width: int, generator: torch.Generator) -> nn.Conv1d:
    layer: nn.Conv1d = nn.utils.skip_init(nn.Conv1d, channels, width, KERNEL, padding=KERNEL // 2)
    nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().cpu().numpy().copy()


class Regression(lightning.LightningModule):
    """Weighted MSE by Adam; validates the running mean of the weights and keeps the best epoch's."""

    def __init__(self, predictors: int, settings: dict[str, Any], seed: int):
        super().__init__()
        self.settings = settings
        shape = (predictors, tuple(settings["filters"]), settings["dropout"], seed)
        self.network = Network(*shape)
        self.averaged = Network(*shape).requires_grad_(False).eval()
        self.best: Trained | None = None
        self.training_mse: list[float] = []
        self.validation_mse: list[float] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        rates = {"lr": self.settings["learning_rate"], "weight_decay": self.settings["weight_decay"]}
        return torch.optim.AdamW(self.network.parameters(), fused=True, **rates)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        loss = _weighted_mse(self.network, batch)
        self.epoch_loss += loss.detach() * len(batch[0])
        self.epoch_rows += len(batch[0])
        return loss

    @torch.no_grad()
    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        share = 1 - min(self.settings["averaging"], self.global_step / (self.global_step + 10))
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.network.parameters()), share)

    def on_train_epoch_start(self) -> None:
        self.epoch_loss, self.epoch_rows = torch.zeros((), device=self.device), 0

    def on_train_epoch_end(self) -> None:
        """Record the epoch (validated just before); copy the averaged weights whenever the inner validation improves."""
        mean = self.epoch_loss / self.epoch_rows
        self.log("training_mse", mean, sync_dist=True)
        error = float(self.trainer.callback_metrics["validation_mse"])
        self.validation_mse.append(error)
        self.training_mse.append(float(mean))
        better = self.best is None or error < self.best.best_mse or self.settings["keep_last"]
        if np.isfinite(error) and better:
            self.best = Trained(self.averaged.to_arrays(), len(self.validation_mse), error, [], [])

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.log("validation_mse", _weighted_mse(self.averaged, batch), batch_size=len(batch[0]), sync_dist=True)


def _weighted_mse(network: nn.Module, batch: list[Tensor]) -> Tensor:
    X, y, weight = batch
    return (weight * (network(X) - y) ** 2).mean()


def train(
    X: NDArray[np.float32],
    y: NDArray[np.float32],
    weight: NDArray[np.float32],
    training: NDArray[np.intp],
    validation: NDArray[np.intp],
    settings: dict[str, Any],
    seed: int,
) -> Trained:
    """Train on the rows `training` of standardised X (n, k), y (n,).

    The rows `validation` choose the epoch that is kept; with the setting `keep_last` it is the last.

    Raises
    ------
    InputError : no epoch had a finite validation error.
    """
    module = Regression(X.shape[1], settings, seed)
    rows = [torch.from_numpy(np.ascontiguousarray(values)) for values in (X, y, weight)]
    patience = settings["patience"] or settings["epochs"]
    stop = EarlyStopping("validation_mse", patience=patience, check_finite=True)
    with _one_quiet_thread():
        trainer = lightning.Trainer(
            max_epochs=settings["epochs"],
            accelerator=settings["accelerator"],
            devices=settings["devices"],
            callbacks=[stop],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(
            module,
            _batches([t[training] for t in rows], settings["batch_size"], seed),
            _batches([t[validation] for t in rows], VALIDATION_ROWS, None),
        )
    if module.best is None:
        raise InputError(
            "the network diverged: no epoch had a finite validation error; "
            f"lower learning_rate (now {settings['learning_rate']}) or look for extreme values in the predictors"
        )
    return module.best._replace(training_mse=module.training_mse, validation_mse=module.validation_mse)


def _batches(tensors: list[Tensor], size: int, seed: int | None) -> DataLoader[Any]:
    """Whole batches by index; shuffled by a generator of their own where a seed is given."""
    data = TensorDataset(*tensors)
    generator = torch.Generator().manual_seed(seed or 0)
    order = SequentialSampler(data) if seed is None else RandomSampler(data, generator=generator)
    return DataLoader(
        data, batch_size=None, sampler=BatchSampler(order, min(size, len(data)), drop_last=False), generator=generator
    )


@contextmanager
def _one_quiet_thread() -> Iterator[None]:
    """One torch thread (sums in one order), deterministic kernels, Lightning's advice silenced; all put back after."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "pytorch_lightning.utilities.rank_zero")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.set_num_threads(1)
            torch.use_deterministic_algorithms(True)
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic)
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
