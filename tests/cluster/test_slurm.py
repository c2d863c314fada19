"""A real Slurm gives the bytes of a run in one process; what it does not give is told in one line."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import slurm_here

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm_here.Slurm]:
    if why := slurm_here.lacking():
        pytest.skip(why)
    with slurm_here.running(tmp_path_factory.mktemp("slurm") / "s") as slurm:
        yield slurm


@pytest.fixture
def profile(tmp_path: Path) -> Callable[..., Path]:
    def write(*lines: str) -> Path:
        path = tmp_path / "here.yaml"
        common = ("kind: slurm", "workers: 2", "interface: lo", f"log_folder: {tmp_path}/logs", "start_timeout: 90s")
        given = {line.split(":")[0] for line in lines}
        path.write_text("\n".join([*(line for line in common if line.split(":")[0] not in given), *lines]))
        return path

    return write


def smscale(slurm: slurm_here.Slurm, *arguments: str | Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "smscale.cli", *map(str, arguments)]
    return subprocess.Popen(command, env=slurm.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def refusal(slurm: slurm_here.Slurm, *arguments: str | Path, within: float = 60) -> str:
    """The one line of a run that ends with exit code 2."""
    _, told = (run := smscale(slurm, *arguments, "--quiet")).communicate(timeout=within)
    assert run.returncode == 2, told
    assert told.count("\n") == 1, told
    return told


def test_slurm_gives_the_same_bytes_though_a_job_is_cancelled(
    slurm: slurm_here.Slurm, profile: Callable[..., Path], tiny_recipe: Path, tiny_run: Path, tmp_path: Path,
    digests: Callable[[Path], dict[str, str]],
) -> None:  # fmt: skip
    run = smscale(slurm, "run", tiny_recipe, "--workspace", tmp_path / "w", "--cluster", profile(), "--quiet")
    ledger, until = tmp_path / "w" / "world" / "ledger", time.monotonic() + 300
    while not list(ledger.glob("*/*.json")):
        assert time.monotonic() < until
        assert run.poll() is None, run.communicate()
        time.sleep(0.2)
    before = slurm.jobs()
    slurm.call("scancel", before[0])
    _, told = run.communicate(timeout=900)
    assert run.returncode == 0, told
    assert digests(tmp_path / "w") == digests(tiny_run)
    assert len(list((tmp_path / "logs").glob("smscale-*.err"))) > len(before), "another job came in place of it"
    assert not list((tmp_path / "logs").glob("tls-*")), "the run's own certificates end with it"
    time.sleep(1)
    assert slurm.jobs() == []


def test_run_that_is_told_to_stop_leaves_no_job_and_no_key(
    slurm: slurm_here.Slurm, profile: Callable[..., Path], tiny_recipe: Path, tmp_path: Path
) -> None:
    run = smscale(slurm, "run", tiny_recipe, "--workspace", tmp_path / "w", "--cluster", profile(), "--quiet")
    until = time.monotonic() + 120
    while len(slurm.jobs()) < 2:
        assert time.monotonic() < until
        assert run.poll() is None, run.communicate()
        time.sleep(0.2)
    run.terminate()
    _, told = run.communicate(timeout=90)
    assert (run.returncode, told.count("\n")) == (143, 1), told
    time.sleep(1)
    assert slurm.jobs() == []
    assert not list((tmp_path / "logs").glob("tls-*"))


def test_job_that_stays_pending_is_told_with_its_reason(
    slurm: slurm_here.Slurm, profile: Callable[..., Path], tiny_recipe: Path, tmp_path: Path
) -> None:
    place = profile("partition: closed", "start_timeout: 5s")
    told = refusal(slurm, "run", tiny_recipe, "--workspace", tmp_path / "w", "--cluster", place)
    assert "cluster here: no worker within start_timeout 5s: 2 jobs are PENDING (PartitionDown)" in told
    time.sleep(1)
    assert slurm.jobs() == []


def test_job_that_slurm_refuses_is_told(
    slurm: slurm_here.Slurm, profile: Callable[..., Path], tiny_recipe: Path, tmp_path: Path
) -> None:
    told = refusal(slurm, "run", tiny_recipe, "--workspace", tmp_path / "w", "--cluster", profile("partition: none"))
    assert "sbatch refuses the job:" in told
    assert "invalid partition specified: none" in told


def test_jobs_that_end_before_a_worker_comes_are_told_with_their_last_words(
    slurm: slurm_here.Slurm, profile: Callable[..., Path], tiny_recipe: Path, tmp_path: Path
) -> None:
    place = profile("python: /nowhere/python")
    told = refusal(slurm, "run", tiny_recipe, "--workspace", tmp_path / "w", "--cluster", place)
    assert "jobs ended before a worker came:" in told
    assert "/nowhere/python: No such file or directory" in told


def test_worker_of_a_job_has_the_memory_of_the_recipe_or_the_job_is_refused(
    slurm: slurm_here.Slurm, profile: Callable[..., Path], tiny_recipe: Path, tmp_path: Path
) -> None:
    place = profile("cores: 2", "memory: 2GiB")
    told = refusal(slurm, "run", tiny_recipe, "--workspace", tmp_path / "w", "--cluster", place)
    assert (
        "key memory: found 2GiB, which does not hold 2 workers of the recipe's resources.memory_per_worker 1.5GiB: expected at least 3072M"
        in told
    )


def test_batch_script_refuses_an_allocation_that_is_too_small(
    slurm: slurm_here.Slurm, tiny_recipe: Path, tmp_path: Path
) -> None:
    script = Path(__file__).parents[2] / "deploy" / "slurm" / "run.sbatch"
    options = ["--wait", "--ntasks=2", "--mem-per-cpu=2500M", "--export=ALL", f"--output={tmp_path}/out.txt"]
    environment = {"SMSCALE_PYTHON": sys.executable, "SMSCALE_FOLDER": str(tmp_path / "own")}
    run = subprocess.Popen(
        ["sbatch", *options, str(script), str(tiny_recipe)], env={**slurm.environment, **environment}
    )
    assert run.wait(120) == 2
    told = (tmp_path / "out.txt").read_text()
    assert told.count("\n") == 1
    assert "run.sbatch: the first node gives 2500M, 1 worker" in told


def test_batch_script_runs_all_inside_one_allocation(
    slurm: slurm_here.Slurm,
    tiny_recipe: Path,
    tiny_run: Path,
    tmp_path: Path,
    digests: Callable[[Path], dict[str, str]],
) -> None:
    script = Path(__file__).parents[2] / "deploy" / "slurm" / "run.sbatch"
    sbatch = ["sbatch", "--wait", "--ntasks=2", "--export=ALL", f"--output={tmp_path}/out.txt", str(script)]
    run = subprocess.Popen(
        [*sbatch, str(tiny_recipe), "--workspace", str(tmp_path / "w")],
        env={
            **slurm.environment,
            "SMSCALE_PYTHON": sys.executable,
            "SMSCALE_FOLDER": str(tmp_path / "own"),
            "SMSCALE_INTERFACE": "lo",
        },
    )
    assert run.wait(900) == 0, (tmp_path / "out.txt").read_text()
    assert digests(tmp_path / "w") == digests(tiny_run)
    assert not list((tmp_path / "own").iterdir()), "certificates and logs of the run end with it"
