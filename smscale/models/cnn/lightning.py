"""Training of the convolutional network: torch and Lightning, imported by `CNNRegressor.fit` and `partial_fit` alone.

Several networks, one per inner fold, are one network of grouped convolutions: each learns from the rows that its fold leaves
(the others have no weight), keeps the weights of its own best epoch, and all share every step.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as lightning
import torch
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Checkpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

from smscale.errors import InputError
from smscale.kernels.threads import Shared
from smscale.models import lightning_run
from smscale.models.cnn.layers import CONVOLUTIONS, KERNEL, Arrays, Floats, Singles, pooled_length
from smscale.models.record import versions

#: Rows of a validation batch: bounds memory only.
VALIDATION_ROWS = 2048
#: Trainer arguments unless the caller gives others.
QUIET: dict[str, Any] = lightning_run.QUIET | {"num_sanity_val_steps": 0, "log_every_n_steps": 1}
#: A network whose best error is that many times the larger of the target's variance and the error without it, diverged.
DIVERGED = 10.0
#: Part of a checkpoint's name; another layout of the state is another number.
LAYOUT = 2
#: What a checkpoint says it is of.
TRAINING = "smscale_training"


class Lesson(NamedTuple):
    """What m networks learn: rows (n, c * k), and for each row and network the value and how it counts; all float32.

    target (n, m) what is left to learn, standardised;  weight (n, m) in training, 0 where held out;  held (n, m) weight in
    validation, 0 where trained on;  block (n,) int64 numbers the pieces, each inside one fold, whose errors are told apart
    """

    rows: Singles
    target: Singles
    weight: Singles
    held: Singles
    block: NDArray[np.int64]


class Settings(NamedTuple):
    """How they learn; see `CNNRegressor`. `cells` are those of the patch, `patience` 0 runs all epochs."""

    cells: int
    filters: tuple[int, ...]
    dropout: float
    learning_rate: float
    weight_decay: float
    averaging: float
    batch_size: int
    epochs: int
    patience: int
    seed: int


class Machine(NamedTuple):
    """Where they learn: Lightning's accelerator, devices and further arguments, and a folder for checkpoints."""

    accelerator: str = "auto"
    devices: int | str | Sequence[int] = 1
    options: Mapping[str, Any] = {}
    checkpoint: Path | None = None


class Trained(NamedTuple):
    """Each network's weights at its best epoch (from 1), what it then gives for all rows (n, m), errors of every epoch.

    sums : (epochs, blocks, 2) of the held-out rows at each epoch: weight x given x target, and weight x given squared
    """

    arrays: Arrays
    best_epochs: NDArray[np.int64]
    given: Singles
    training_mse: Floats
    validation_mse: Floats
    sums: Floats


class Network(nn.Module):
    """m networks side by side: four groups of (convolution, ReLU) x 2, pooling and dropout; a dense output, zero at first.

    (n, c * k) -> (n, m). Between the layers values are (n, 1, positions, channels), as the CPU's convolutions want them.
    """

    def __init__(self, predictors: int, members: int, settings: Settings):
        super().__init__()
        weights = torch.Generator().manual_seed(settings.seed)
        self.members, self.cells, self.dropout = members, settings.cells, settings.dropout
        self.generator: torch.Generator | None = None
        self.convolutions = nn.ModuleList()
        channels = settings.cells
        for width in settings.filters:
            for _ in range(CONVOLUTIONS):
                # All read the same rows; from there on each network reads its own channels.
                groups = members if self.convolutions else 1
                self.convolutions.append(_convolution(channels * groups, members * width, groups, weights))
                channels = width
        shape = (1, pooled_length(predictors))
        self.dense: nn.Conv2d = nn.utils.skip_init(nn.Conv2d, members * channels, members, shape, groups=members)
        nn.init.zeros_(self.dense.weight)
        nn.init.zeros_(_bias(self.dense))

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(len(x), 1, self.cells, -1).transpose(2, 3)
        for number, layer in enumerate(self.convolutions):
            x = _along_positions(layer, x)
            if number % CONVOLUTIONS < CONVOLUTIONS - 1:
                x = torch.relu(x)
            else:
                x = self._dropped(torch.relu(_pooled(x)))
        return _along_positions(self.dense, x)[:, 0, 0]

    def _dropped(self, x: Tensor) -> Tensor:
        """Dropout that draws from a generator of its own, so that the global one stays as it is."""
        if not self.training or self.dropout == 0:
            return x
        kept = torch.rand(x.shape, generator=self.generator, device=x.device) >= self.dropout
        return x * (kept / (1 - self.dropout))

    def draw_from(self, generator: torch.Generator | None) -> None:
        """What dropout draws from, until it is told otherwise."""
        self.generator = generator

    def to_arrays(self) -> Arrays:
        """weight_i (m, out, in, 3), bias_i (m, out) of the eight convolutions; dense_weight (m, positions * out), dense_bias (m,)."""
        m = self.members
        # Positions outermost: the order in which `CNNPredictor` reads the last layer.
        dense = _array(self.dense.weight)[:, :, 0].transpose(0, 2, 1).reshape(m, -1)
        arrays: Arrays = {"dense_weight": dense, "dense_bias": _array(_bias(self.dense))}
        for number, layer in enumerate(part for part in self.convolutions if isinstance(part, nn.Conv2d)):
            weight = _array(layer.weight)[:, :, 0]
            arrays[f"weight_{number}"] = weight.reshape(m, -1, *weight.shape[1:])
            arrays[f"bias_{number}"] = _array(_bias(layer)).reshape(m, -1)
        return arrays


def _convolution(channels: int, width: int, groups: int, generator: torch.Generator) -> nn.Conv2d:
    shape, padding = (1, KERNEL), (0, KERNEL // 2)
    layer: nn.Conv2d = nn.utils.skip_init(nn.Conv2d, channels, width, shape, padding=padding, groups=groups)
    nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
    nn.init.zeros_(_bias(layer))
    return layer


def _along_positions(layer: nn.Module, x: Tensor) -> Tensor:
    """A convolution of (n, 1, positions, channels)."""
    seen = x.permute(0, 3, 1, 2)
    # CUDA has no deterministic gradient of every convolution with channels last.
    out: Tensor = layer(seen.contiguous() if seen.is_cuda else seen)
    return out.permute(0, 2, 3, 1)


def _pooled(x: Tensor) -> Tensor:
    """The larger of two neighbouring positions; an odd last one stays, if above 0, as a rectifier follows.

    Written with a rectifier: its gradient has one order on every device and costs less than that of a maximum.
    """
    length = x.shape[2]
    if length == 1:
        return x
    even = nn.functional.pad(x, (0, 0, 0, 1)) if length % 2 else x
    first, second = even.unflatten(2, (-1, 2)).unbind(3)
    return first + torch.relu(second - first)


def _generator(device: torch.device, *numbers: int) -> torch.Generator:
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    return torch.Generator(device=device).manual_seed(seed)


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


def _array(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().cpu().numpy().copy()


class Regression(lightning.LightningModule):
    """Weighted MSE by AdamW; validates the running mean of the weights and keeps each network's best.

    All that training goes on from lies in parameters and buffers, hence in a checkpoint and in what a process of several
    hands back: `averaged`, `best`, and of every epoch the errors. Orders and dropout are drawn from (seed, epoch, rank) anew.
    """

    def __init__(self, lesson: Lesson, settings: Settings):
        super().__init__()
        self.settings = settings
        self.lesson = [torch.from_numpy(np.ascontiguousarray(values)) for values in lesson]
        shape = (lesson.rows.shape[1] // settings.cells, lesson.target.shape[1], settings)
        self.network = Network(*shape)
        self.averaged = Network(*shape).requires_grad_(False).eval()
        self.best = Network(*shape).requires_grad_(False).eval()
        members = lesson.target.shape[1]
        self.best_epochs: Tensor
        self.best_mse: Tensor
        self.errors: Tensor
        self.sums: Tensor
        self.passed: Tensor
        self.register_buffer("best_epochs", torch.zeros(members, dtype=torch.int64))
        self.register_buffer("best_mse", torch.full((members,), torch.inf))
        self.register_buffer("errors", torch.full((settings.epochs, 2), torch.nan))
        blocks = int(lesson.block.max(initial=-1)) + 1
        self.register_buffer("sums", torch.zeros(settings.epochs, blocks, 2))
        self.register_buffer("passed", torch.zeros((), dtype=torch.int64))

    def ended(self) -> bool:
        """All epochs ran, the errors stopped falling, or they are no numbers any more."""
        passed = int(self.passed)
        if passed and not bool(torch.isfinite(self.errors[passed - 1]).all()):
            return True
        patience = self.settings.patience or passed + 1
        return passed >= self.settings.epochs or passed - int(self.best_epochs.max()) >= patience

    def configure_optimizers(self) -> torch.optim.Optimizer:
        rate, decay = self.settings.learning_rate, self.settings.weight_decay
        return torch.optim.AdamW(self.network.parameters(), lr=rate, weight_decay=decay, fused=True)

    def train_dataloader(self) -> DataLoader[Any]:
        rows, target, weight, _, _ = self.lesson
        order = Shuffled(len(rows), self.settings, self.global_rank, self.trainer.world_size)
        return _loader([rows, target, weight], order)

    def val_dataloader(self) -> DataLoader[Any]:
        rows, target, _, held, block = self.lesson
        batches = torch.arange(len(rows)).split(VALIDATION_ROWS)
        return _loader([rows, target, held, block], batches)

    def on_fit_start(self) -> None:
        if not one_order.users:
            # A process that Lightning started.
            torch.set_num_threads(1)
            lightning_run.silence.take()
            one_order.take()

    def on_train_epoch_start(self) -> None:
        self.network.draw_from(_generator(self.device, self.settings.seed, self.current_epoch, self.global_rank))
        self._epoch_error = torch.zeros((), device=self.device)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        error = weighted_error(self.network, *batch)
        self._epoch_error += error.detach()
        # Processes average their gradients; the sum over the batch is wanted.
        return error * (self.trainer.world_size / self.settings.batch_size)

    @torch.no_grad()
    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        self.follow(self.global_step)

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move the averaged weights towards the network's, after `step` steps in all."""
        share = 1 - min(self.settings.averaging, step / (step + 10))
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.network.parameters()), share)

    def on_validation_epoch_start(self) -> None:
        self._held_error = torch.zeros(self.network.members, device=self.device)
        self._block_sums = torch.zeros_like(self.sums[0])

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        rows, target, held, block = batch
        given = self.averaged(rows)
        self._held_error += (held * (given - target) ** 2).sum(dim=0)
        sums = torch.stack([(held * given * target).sum(dim=1), (held * given**2).sum(dim=1)], dim=1)
        self._block_sums.index_add_(0, block, sums)

    def on_validation_epoch_end(self) -> None:
        # Every process validated all rows: same weights, same sums.
        held = self.lesson[3].sum(dim=0).to(self.device)
        self._member_mse = self._held_error / held
        self._validation_mse = self._held_error.sum() / held.sum()
        self.log("validation_mse", self._validation_mse, prog_bar=True)

    @torch.no_grad()
    def on_train_epoch_end(self) -> None:
        """Record the epoch (validated just before); keep the averaged weights of the networks that were never better."""
        total = self.trainer.strategy.reduce(self._epoch_error, reduce_op="sum")
        training = total / self.lesson[2].sum().to(self.device)
        self.log("training_mse", training, prog_bar=True)
        self.errors[self.passed] = torch.stack([training, self._validation_mse])
        self.sums[self.passed] = self._block_sums
        self.passed += 1
        better = self._member_mse < self.best_mse
        self.best_mse[better] = self._member_mse[better]
        self.best_epochs[better] = self.passed
        for kept, now in zip(self.best.parameters(), self.averaged.parameters(), strict=True):
            shape = (self.network.members, -1)
            kept.view(shape)[better] = now.view(shape)[better]
        self.trainer.should_stop = self.trainer.should_stop or self.ended()

    @torch.no_grad()
    def result(self) -> Trained:
        """What was learnt.

        Raises
        ------
        InputError : the errors were not finite, or a network ended far from the target.
        """
        rows, target, _, held, _ = (values.to(self.device) for values in self.lesson)
        passed = int(self.passed)
        training, validation = _array(self.errors[:passed]).astype(np.float64).T
        none = (held * target**2).sum(dim=0) / held.sum(dim=0)
        wild = self.best_mse > DIVERGED * torch.clamp(none, min=1.0)
        if not np.isfinite([training, validation]).all() or bool(wild.any()):
            raise InputError(
                f"the network diverged within {passed} epochs; lower learning_rate (now {self.settings.learning_rate}) "
                "or look for extreme values in the predictors"
            )
        best = self.best.to(self.device)
        given = torch.cat([best(block) for block in rows.split(VALIDATION_ROWS)])
        sums = _array(self.sums[:passed]).astype(np.float64)
        return Trained(best.to_arrays(), _array(self.best_epochs), _array(given), training, validation, sums)


def _loader(tensors: list[Tensor], batches: Any) -> DataLoader[Any]:
    # A loader draws a number at each start, needed or not: from a generator of its own.
    return DataLoader(TensorDataset(*tensors), batch_size=None, sampler=batches, generator=torch.Generator())


def weighted_error(network: nn.Module, rows: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """The sum over rows and networks of weight x squared error."""
    return (weight * (network(rows) - target) ** 2).sum()


class Shuffled(Sampler[NDArray[np.intp]]):
    """Batches of row numbers, drawn anew from the seed and the epoch; of each the share of one of several processes."""

    def __init__(self, rows: int, settings: Settings, rank: int = 0, processes: int = 1):
        if rows < processes:
            raise InputError(f"{rows} training rows cannot be shared by {processes} devices; lower devices")
        self.rows, self.seed, self.rank, self.processes = rows, settings.seed, rank, processes
        self.batches = min(-(-rows // settings.batch_size), rows // processes)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning says which epoch comes."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[NDArray[np.intp]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.rows)
        for batch in np.array_split(order, self.batches):
            yield batch[self.rank :: self.processes]


class Saving(Checkpoint):
    """Writes a checkpoint after each epoch."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        lightning_run.save(trainer, self.path)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[TRAINING] = self.path.stem


def train(lesson: Lesson, settings: Settings, machine: Machine) -> Trained:
    """Train m networks; where `machine.checkpoint` holds a checkpoint of the same training, go on from there.

    Raises
    ------
    InputError : a network diverged, or a checkpoint cannot be read.
    """
    module = Regression(lesson, settings)
    path = None if machine.checkpoint is None else _checkpoint_path(machine.checkpoint, lesson, settings, machine)
    resume = path if path is not None and path.exists() else None
    if resume is not None:
        _restore(module, resume)
    with quiet_and_single():
        if not module.ended():
            lightning_run.fit(_trainer(machine, settings, path), module, None, resume)
        return module.result()


def _trainer(machine: Machine, settings: Settings, path: Path | None) -> lightning.Trainer:
    options = QUIET | {"enable_checkpointing": path is not None} | dict(machine.options)
    own = [] if path is None else [Saving(path)]
    options["callbacks"] = [*lightning_run.listed(options.get("callbacks")), *own]
    devices = 1 if machine.devices == "auto" else machine.devices
    if devices not in (1, "1"):
        # Processes of its own that hand the result back, rather than runs of the caller's whole script.
        options.setdefault("strategy", "ddp_spawn")
    return lightning_run.trainer_for(machine.accelerator, devices, settings.epochs, options)


def _checkpoint_path(folder: Path, lesson: Lesson, settings: Settings, machine: Machine) -> Path:
    """The file of one training: named by all that its result depends on, so that other data never meet it."""
    where = lightning_run.device_told(machine.accelerator), machine.devices
    digest = hashlib.sha256(repr((LAYOUT, tuple(settings), where, sorted(versions().items()))).encode())
    for values in lesson:
        digest.update(repr(values.shape).encode() + np.ascontiguousarray(values).tobytes())
    return lightning_run.folder(folder) / f"cnn-{digest.hexdigest()[:16]}.ckpt"


def _restore(module: Regression, path: Path) -> None:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        if found[TRAINING] != path.stem:
            raise InputError(f"it is of {found[TRAINING]}")
        module.load_state_dict(found["state_dict"])
    except Exception as error:
        raise InputError(
            f"{path}: no checkpoint of this training ({type(error).__name__}: {lightning_run.one_line(error)[:200]}); "
            "delete it to start again"
        ) from None


class Pupil:
    """m networks that learn one pass at a time, all from the same rows: what `CNNRegressor.partial_fit` keeps. Pickles."""

    def __init__(self, columns: int, members: int, settings: Settings):
        nothing = np.zeros((0, members), np.float32)
        self.module = Regression(
            Lesson(np.zeros((0, columns), np.float32), nothing, nothing, nothing, np.zeros(0, np.int64)), settings
        )
        self.optimizer = self.module.configure_optimizers()
        self.passes = self.steps = 0

    def learn(self, rows: Singles, target: Singles, weight: Singles, settings: Settings) -> Arrays:
        """One pass over rows (n, c * k), target (n,), weight (n,); the averaged weights after it.

        Raises
        ------
        InputError : the networks are far from the target after it, or no longer finite.
        """
        batch = torch.from_numpy(rows), torch.from_numpy(target), torch.from_numpy(weight)
        with quiet_and_single():
            self._pass(*batch, settings)
            left = self._error(*batch)
        arrays = self.module.averaged.to_arrays()
        none = self.module.averaged.members * float((batch[2] * batch[1] ** 2).sum())
        if not left <= DIVERGED * max(none, self.module.averaged.members * float(batch[2].sum())):
            raise InputError(
                f"the network diverged in pass {self.passes}; lower learning_rate (now {settings.learning_rate})"
            )
        return arrays

    @torch.no_grad()
    def _error(self, rows: Tensor, target: Tensor, weight: Tensor) -> float:
        return float(weighted_error(self.module.averaged, rows, target[:, None], weight[:, None]))

    def _pass(self, rows: Tensor, target: Tensor, weight: Tensor, settings: Settings) -> None:
        self.module.settings = settings
        network = self.module.network.train()
        network.draw_from(_generator(self.module.device, settings.seed, self.passes))
        order = Shuffled(len(rows), settings)
        order.set_epoch(self.passes)
        for numbers in order:
            self.optimizer.zero_grad()
            error = weighted_error(network, rows[numbers], target[numbers, None], weight[numbers, None])
            (error / settings.batch_size).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.steps += 1
            self.module.follow(self.steps)
        self.passes += 1
        network.draw_from(None)


CUBLAS, FILLED = "CUBLAS_WORKSPACE_CONFIG", "fill_uninitialized_memory"


def _one_order(undo: ExitStack) -> None:
    if CUBLAS not in os.environ:
        # cuBLAS sums in one order only with a workspace of its own.
        os.environ[CUBLAS] = ":4096:8"
        undo.callback(os.environ.pop, CUBLAS, None)
    undo.callback(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled())
    torch.use_deterministic_algorithms(True)
    # Memory that every operation writes whole need not be filled first: a sixth of the time.
    undo.callback(setattr, torch.utils.deterministic, FILLED, getattr(torch.utils.deterministic, FILLED))
    setattr(torch.utils.deterministic, FILLED, False)


#: Deterministic kernels.
one_order = Shared(_one_order)


@contextmanager
def quiet_and_single() -> Iterator[None]:
    """One torch thread (sums in one order), deterministic kernels, Lightning's advice silenced; all put back after.

    Threads are each thread's own; what is the process's is put back when the last of several threads leaves.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with lightning_run.silence.held(), one_order.held():
            yield
    finally:
        torch.set_num_threads(threads)
