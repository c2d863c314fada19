"""Profiles: where the workers are and how they are asked for. YAML values only, checked key by key like a recipe.

A recipe says what is made, a profile where: the same recipe gives the same bytes with every profile.
"""

from __future__ import annotations

import math
import os
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from smscale.config import build, read_yaml
from smscale.errors import RecipeError


@dataclass(frozen=True)
class Workers:
    """How many workers: a run begins with `min`, and uses up to `max`."""

    min: int
    max: int


@dataclass(frozen=True)
class Tls:
    """Files in PEM form: the authority whose certificates are trusted, and a certificate of its own with the key."""

    ca: str
    cert: str
    key: str


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What every kind of place has.

    workers : a number, or {min, max}; the recipe's `resources.workers` if not given
    start_timeout : for the first `workers` to come
    connect_timeout : for a scheduler to answer
    lost_timeout : for others to come, or the scheduler to answer again, where all were lost in the middle of a run
    path : where the profile was read; paths in it are relative to that
    """

    kind: str
    workers: Workers | None = None
    start_timeout: str = "2min"
    connect_timeout: str = "20s"
    lost_timeout: str = "2min"
    path: str = ""

    @property
    def name(self) -> str:
        return Path(self.path).stem if self.path else self.kind

    def resolve(self, path: str) -> Path:
        """A path of the profile: relative to its file."""
        return Path(self.path).parent / Path(path).expanduser()


@dataclass(frozen=True, kw_only=True)
class Local(Profile):
    """Processes on this machine, of one thread each.

    dashboard : address on which the scheduler shows its pages, as 127.0.0.1:8787
    gpus : GPUs that get a worker of their own; all that are there if not given
    gpu_memory : main memory of each of these; the recipe's `memory_per_worker` and room for CUDA if not given
    """

    kind: Literal["local"] = "local"
    dashboard: str | None = None
    gpus: int | None = None
    gpu_memory: str | None = None


@dataclass(frozen=True, kw_only=True)
class Address(Profile):
    """A scheduler that runs already."""

    kind: Literal["address"] = "address"
    address: str
    tls: Tls | None = None


@dataclass(frozen=True, kw_only=True)
class Group:
    """A named group of Slurm jobs beside the others: `workers` of one GPU each, or without one.

    memory : of a worker; the recipe's `memory_per_worker`, and room for CUDA beside a GPU, if not given
    directives : of sbatch, without `#SBATCH`, as --gpus=1
    """

    workers: int = 1
    gpu: bool = True
    memory: str | None = None
    partition: str | None = None
    directives: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Slurm(Profile):
    """Workers as Slurm jobs, the scheduler in this process.

    worker_ttl : silence after which a worker counts as lost (a call that holds Python's lock is silent, too)
    dashboard : address on which the scheduler shows its pages, as 127.0.0.1:8787
    cores : workers of one job, of one thread each
    memory : of one job; what its workers need (the recipe's `memory_per_worker` each, and their watchers) if not given
    interface : network interface of this host that the nodes reach, as ib0
    port : of the scheduler, where a firewall lets through only some; any free one if not given
    python : on the nodes; this one if not given
    environment : lines of shell before the worker starts, as `module load …`
    directives : of sbatch, without `#SBATCH`
    local_folder : of the workers' scratch files on their node; TMPDIR if not given
    log_folder : of the jobs' output and of the run's own certificates: on a file system that the nodes share
    security : "tls", by certificates that live as long as the run (or `tls`, of one's own); "none" only on a network that is trusted
    groups : named groups of other jobs, as one with GPUs (`Group`, once it is read)
    """

    kind: Literal["slurm"] = "slurm"
    start_timeout: str = "10min"
    lost_timeout: str = "10min"
    worker_ttl: str = "60s"
    dashboard: str | None = None
    partition: str | None = None
    account: str | None = None
    walltime: str = "04:00:00"
    cores: int = 1
    memory: str | None = None
    interface: str | None = None
    port: int | None = None
    python: str | None = None
    environment: tuple[str, ...] = ()
    directives: tuple[str, ...] = ()
    log_folder: str = "~/.smscale/slurm"
    local_folder: str | None = None
    security: Literal["tls", "none"] = "tls"
    tls: Tls | None = None
    groups: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Kubernetes(Profile):
    """A DaskCluster that the dask operator makes, and that ends with the run.

    manifest : its YAML file, relative to the profile
    cluster, namespace : its name and place; those of the manifest, and the current one, if not given
    """

    kind: Literal["kubernetes"] = "kubernetes"
    start_timeout: str = "10min"
    lost_timeout: str = "10min"
    manifest: str
    cluster: str | None = None
    namespace: str | None = None


KINDS: dict[str, type[Profile]] = {"local": Local, "address": Address, "slurm": Slurm, "kubernetes": Kubernetes}
TIMES = ("start_timeout", "connect_timeout", "lost_timeout", "worker_ttl")
UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
SIZES = ("memory", "gpu_memory")
MOST_PORT = 65535


def read(where: str) -> Profile:
    """The profile that `--cluster` names: an address, a file, or a name.

    Raises
    ------
    RecipeError
        in one line, if there is none such or a key of it is wrong.
    """
    if where.startswith(("tcp://", "tls://")):
        return Address(address=_address(where, f"--cluster {where}"))
    path = _find(where)
    values = read_yaml(path)
    kind = values.get("kind")
    if kind not in KINDS:
        raise RecipeError(f"{path.name}: key kind: found {kind!r}, expected one of {', '.join(KINDS)}")
    if isinstance(values.get("workers"), int):
        values["workers"] = {"min": values["workers"], "max": values["workers"]}
    made: Profile = build(KINDS[kind], {**values, "path": str(path.absolute())}, where=path.name)
    if isinstance(made, Slurm):
        made = replace(made, groups=_groups(made.groups, path.name))
    _check(made, path.name)
    return made


def names() -> list[str]:
    """Names that `--cluster` knows."""
    return sorted({p.name.removesuffix(".yaml") for folder in _folders() for p in folder.iterdir() if _is_yaml(p.name)})


def seconds(text: str) -> float:
    """A time of a profile, as 90s, 10min or 1.5h, in seconds; NaN if it is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|min|h|d)", text)
    return float(found[1]) * UNITS[found[2]] if found else math.nan


def size(text: str) -> int:
    """A size in bytes."""
    from dask.utils import parse_bytes

    return int(parse_bytes(text))


def mib(n: float) -> str:
    """So many bytes, or a little more, as Slurm's commands take them."""
    return f"{math.ceil(n / 2**20)}M"


def _find(where: str) -> Path:
    if _is_yaml(where):
        if not Path(where).is_file():
            raise RecipeError(f"--cluster {where}: no such profile; those with a name are {', '.join(names())}")
        return Path(where)
    for folder in _folders():
        found = folder / f"{where}.yaml"
        if "/" not in where and found.is_file():
            return found
    raise RecipeError(
        f"--cluster {where}: expected {', '.join(names())}, a profile's file (x.yaml), tcp://host:port or tls://host:port"
    )


def _folders() -> list[Path]:
    """Where profiles have names: the user's own first, then what comes with the package."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    own = config / "smscale" / "profiles"
    return [*([own] if own.is_dir() else []), Path(str(files("smscale.cluster") / "profiles"))]


def _is_yaml(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _address(text: str, where: str) -> str:
    found = re.fullmatch(r"(tcp|tls)://(\[[0-9a-fA-F:.%\w]+\]|[^\s/:\[\]]+):([1-9]\d{0,4})", text)
    if not found or int(found[3]) > MOST_PORT or not _is_host(found[2]):
        raise RecipeError(
            f"{where}: found {text!r}, expected tcp://host:port or tls://host:port, as tls://10.0.0.5:8786"
        )
    return text


def _is_host(text: str) -> bool:
    try:
        text.encode("idna")
    except UnicodeError:  # as parts that are empty, or of more than 63 letters
        return False
    return True


def _check(profile: Profile, where: str) -> None:
    """What types cannot say."""

    def refuse(key: str, found: Any, expected: str) -> typing.NoReturn:
        raise RecipeError(f"{where}: key {key}: found {found!r}, expected {expected}")

    for key in TIMES:
        if (text := getattr(profile, key, None)) is not None and not seconds(text) > 0:  # nor NaN
            refuse(key, text, "a time above 0, as 90s, 10min or 2h")
    for key in SIZES:
        if (text := getattr(profile, key, None)) is not None and not _is_size(text):
            refuse(key, text, "a size, as 4GiB")
    if profile.workers is not None and not 1 <= profile.workers.min <= profile.workers.max:
        refuse("workers", vars(profile.workers), "a number of at least 1, or {min, max} with 1 <= min <= max")
    if isinstance(profile, Address):
        _address(profile.address, f"{where}: key address")
        if profile.tls is not None and profile.address.startswith("tcp://"):
            refuse("address", profile.address, "tls://host:port beside tls")
    if isinstance(profile, Local) and profile.gpus is not None and profile.gpus < 0:
        refuse("gpus", profile.gpus, "a number of at least 0")
    if isinstance(profile, Slurm):
        _check_slurm(profile, refuse)


def _check_slurm(profile: Slurm, refuse: Any) -> None:
    if profile.cores < 1:
        refuse("cores", profile.cores, "a number of at least 1")
    if profile.tls is not None and profile.security == "none":
        refuse("security", "none", "tls beside tls")
    if profile.port is not None and not 1 <= profile.port <= MOST_PORT:
        refuse("port", profile.port, f"1 to {MOST_PORT}")
    if profile.local_folder is not None and not re.fullmatch(r"[\w./~+${}:-]+", profile.local_folder):
        refuse("local_folder", profile.local_folder, "a path of plain letters: it stands in the jobs' scripts")
    if not re.fullmatch(r"(\d+-)?\d+(:\d\d){0,2}", profile.walltime):
        refuse("walltime", profile.walltime, "Slurm's form in quotes, as '04:00:00' or '1-12:00:00'")
    for name, group in profile.groups.items():
        if group.memory is not None and not _is_size(group.memory):
            refuse(f"groups.{name}.memory", group.memory, "a size, as 4GiB")
        if group.workers < 1:
            refuse(f"groups.{name}.workers", group.workers, "a number of at least 1")


def _groups(given: Mapping[str, Any], where: str) -> dict[str, Group]:
    """The named groups of a profile's file."""
    made = {}
    for name, values in given.items():
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name) or name == "cpu":
            raise RecipeError(f"{where}: key groups: found {name!r}, expected a name of a-z, 0-9 and -, not cpu")
        if not isinstance(values, Mapping):
            raise RecipeError(f"{where}: key groups.{name}: found {values!r}, expected keys and values")
        made[name] = build(Group, values, where, f"groups.{name}.")
    return made


def _is_size(text: str) -> bool:
    return re.fullmatch(r"[1-9]\d*(\.\d+)? ?[kMGT]i?B", text) is not None
