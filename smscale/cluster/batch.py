"""What deploy/slurm/run.sbatch asks before it begins: the memory of a worker, where the allocation holds what is started in it."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence

from smscale import config
from smscale.cluster.profile import mib, size
from smscale.cluster.slurm import WATCHER_BYTES
from smscale.errors import RecipeError, SmscaleError

#: Memory of the scheduler and of the run itself, both on the first node: generous, since what holds more than a job may is ended.
HEAD_BYTES = 3 * 2**29


def worker_memory(recipe: str, settings: Sequence[str], allocation: Mapping[str, str]) -> str:
    """The recipe's memory of a worker.

    Parameters
    ----------
    settings : KEY=VALUE, as `smscale run --set` takes them
    allocation : what Slurm tells of the job, in the environment

    Raises
    ------
    RecipeError
        for a wrong recipe, and where the first node does not hold its workers, the scheduler and the run, or another its workers.
    """
    memory = config.read(recipe, settings).resources.memory_per_worker
    worker = size(memory) + WATCHER_BYTES
    cpus, cpus_per_task = (int(allocation.get(f"SLURM_{name}", 1)) for name in ("CPUS_ON_NODE", "CPUS_PER_TASK"))
    tasks = _first(allocation.get("SLURM_TASKS_PER_NODE", ""))
    each, node = (int(allocation.get(f"SLURM_MEM_PER_{name}", 0)) * 2**20 for name in ("CPU", "NODE"))
    here = node or each * cpus
    needed = tasks * worker + HEAD_BYTES
    if 0 < here < needed:
        raise RecipeError(
            f"the first node gives {mib(here)}, {tasks} worker{'s' * (tasks > 1)} of resources.memory_per_worker {memory}, the scheduler "
            f"and the run need {mib(needed)}: sbatch --mem-per-cpu={mib(needed / cpus)}, or fewer tasks on a node"
        )
    if 0 < each * cpus_per_task < worker:
        raise RecipeError(
            f"a task gets {mib(each * cpus_per_task)}, a worker of resources.memory_per_worker {memory} needs {mib(worker)}: "
            f"sbatch --mem-per-cpu={mib(worker / cpus_per_task)}"
        )
    return memory


def _first(tasks: str) -> int:
    """Of Slurm's list of numbers, as 4(x2),1."""
    found = re.match(r"\d+", tasks)
    return int(found[0]) if found else 1


def main(arguments: Sequence[str]) -> int:
    """Print it; or say in one line why not."""
    parser = argparse.ArgumentParser(prog="run.sbatch", allow_abbrev=False)
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[])
    known, _ = parser.parse_known_args(arguments)
    try:
        sys.stdout.write(worker_memory(known.recipe, known.set, os.environ).replace(" ", "") + "\n")
    except SmscaleError as error:
        sys.stderr.write(f"run.sbatch: {' '.join(str(error).split())}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
