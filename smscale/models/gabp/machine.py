"""Where a GABP network trains: engine, device and threads. What is learnt depends on none but the kind of device."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from smscale.errors import InputError
from smscale.kernels import ga

#: Rows a thread: with fewer, threads wait for one another.
SMALL = 500


class Machine(NamedTuple):
    """Engine ("lightning", "numpy"), device of this process ("cpu" or a CUDA device), and what Lightning's Trainer gets."""

    engine: str
    device: str
    devices: int | str | Sequence[int]
    jobs: int | None
    options: Mapping[str, Any]

    @property
    def accelerator(self) -> str:
        """Lightning's word for the device."""
        return "cpu" if self.device == "cpu" else "gpu"

    @property
    def told(self) -> str:
        """The kind of device: another kind rounds otherwise."""
        if self.device == "cpu":
            return self.device
        import torch

        return torch.cuda.get_device_name(self.device)

    def threads(self, rows: int) -> int:
        """How many work on so many rows; a negative `jobs` counts from the last CPU, as scikit-learn's."""
        wanted = ga.cpus() if self.jobs is None else self.jobs if self.jobs > 0 else ga.cpus() + 1 + self.jobs
        return max(1, min(wanted, rows // SMALL))


def machine_of(
    engine: str,
    accelerator: str,
    devices: int | str | Sequence[int],
    jobs: int | None,
    options: Mapping[str, Any] | None,
) -> Machine:
    """The machine that the estimator's settings of the same names ask for.

    Raises
    ------
    InputError : there is no such device, or the engine does not use it
    """
    machine = Machine(engine, "cpu", devices, jobs, options or {})
    if engine == "numpy":
        if accelerator not in ("auto", "cpu") or devices not in (1, "1", "auto"):
            raise InputError(
                f"engine='numpy' trains on one CPU; got accelerator={accelerator!r}, devices={devices!r}; "
                "take engine='lightning'"
            )
        return machine
    if accelerator == "cpu":
        return machine
    import torch

    if not torch.cuda.is_available():
        if accelerator != "auto":
            raise InputError(
                f"accelerator={accelerator!r} needs a CUDA device, and there is none; take 'auto' or 'cpu'"
            )
        return machine
    rank = int(os.environ.get("LOCAL_RANK", 0))
    listed = devices if isinstance(devices, list | tuple) else None
    return machine._replace(device=f"cuda:{listed[rank] if listed else rank}")
