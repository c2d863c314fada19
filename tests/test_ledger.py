"""The ledger: one record a block, one for each stage where a block does the work of several, and what a real disk refuses."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from smscale import blocks, ledger
from smscale.blocks import Joint, Ledger, Task


class Death(BaseException):
    """What no handler of errors catches."""


def both(x: int, folder: str) -> dict[str, dict[str, int]]:
    """The work of two stages; every call is counted."""
    with (Path(folder) / f"calls-{x}").open("a") as calls:
        calls.write("x")
    return {"downscale": {"valid": x}, "fuse": {"valid": 10 * x}}


def one(x: int) -> dict[str, int]:
    return {"valid": 10 * x}


def joint(root: Path, fused: str = "of fuse") -> Joint:
    return Joint({"downscale": (Ledger(root / "downscale"), "of downscale"), "fuse": (Ledger(root / "fuse"), fused)})


def tasks(n: int, folder: Path) -> list[Task]:
    return [Task(f"{i}", both, (i, str(folder))) for i in range(n)]


def calls(folder: Path) -> list[int]:
    return [path.stat().st_size for path in sorted(folder.glob("calls-*"))]


def test_task_of_two_stages_stands_in_both_ledgers_once(tmp_path: Path) -> None:
    outcome = blocks.run(tasks(3, tmp_path), joint(tmp_path), progress=False)
    assert outcome.results == {f"{i}": {"downscale": {"valid": i}, "fuse": {"valid": 10 * i}} for i in range(3)}
    records = {s: json.loads((tmp_path / s / "2.json").read_text()) for s in ("downscale", "fuse")}
    assert {s: (r["fingerprint"], r["result"]) for s, r in records.items()} == {
        "downscale": ("of downscale", {"valid": 2}),
        "fuse": ("of fuse", {"valid": 20}),
    }
    again = blocks.run(tasks(3, tmp_path), joint(tmp_path), progress=False)
    assert (again.done_before, again.results) == (3, outcome.results)
    assert calls(tmp_path) == [1, 1, 1]


def test_records_of_two_stages_are_those_of_each_alone(tmp_path: Path) -> None:
    """A stage that is done alone later, as where only its settings changed, knows the blocks of the common pass."""
    blocks.run(tasks(3, tmp_path), joint(tmp_path), progress=False)
    alone = [Task(f"{i}", one, (i,), "of fuse") for i in range(4)]
    assert blocks.run(alone, Ledger(tmp_path / "fuse"), progress=False).done_before == 3
    assert blocks.run(tasks(3, tmp_path), joint(tmp_path, "of another fuse"), progress=False).done_before == 0


def test_kill_between_two_entries_means_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, entered = ledger.write_text, []

    def dying(path: Path, text: str) -> None:
        entered.append(path)
        if len(entered) == 4:  # the second entry of the second block
            raise Death
        write(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "write_text", dying)
        with pytest.raises(Death):
            blocks.run(tasks(3, tmp_path), joint(tmp_path), progress=False)
    assert [len(list((tmp_path / stage).glob("*.json"))) for stage in ("downscale", "fuse")] == [2, 1]
    assert blocks.run(tasks(3, tmp_path), joint(tmp_path), progress=False).done_before == 1
    assert calls(tmp_path) == [1, 2, 1]


def test_seconds_and_failures_of_a_common_task_count_once(tmp_path: Path) -> None:
    two = joint(tmp_path)
    two.enter(Task("a", both), {"downscale": 1, "fuse": 2}, 1.5, 2, "why")
    first, second = (json.loads((tmp_path / stage / "a.json").read_text()) for stage in ("downscale", "fuse"))
    assert (first["seconds"], first["failures"], first["failure"]) == (1.5, 2, "why")
    assert (second["seconds"], "failures" in second) == (0.0, False)


def test_results_can_stay_in_the_ledger(tmp_path: Path) -> None:
    blocks.run(tasks(2, tmp_path), joint(tmp_path), progress=False)
    outcome = blocks.run(tasks(4, tmp_path), joint(tmp_path), progress=False, in_memory=False)
    assert outcome.done_before == 2
    assert list(outcome.results) == ["0", "1", "2", "3"]
    assert [result["fuse"]["valid"] for result in outcome.results.values()] == [0, 10, 20, 30]
    (tmp_path / "fuse" / "1.json").unlink()
    with pytest.raises(KeyError):
        outcome.results["1"]


def test_records_of_other_blocks_can_be_cleared(tmp_path: Path) -> None:
    blocks.run(tasks(4, tmp_path), joint(tmp_path), progress=False)
    (tmp_path / "fuse" / "residuals.npz").write_bytes(b"no record")
    assert joint(tmp_path).keep_only(["1", "3", "new/block"]) == 4
    assert sorted(p.name for p in (tmp_path / "fuse").iterdir()) == ["1.json", "3.json", "residuals.npz"]
    assert Ledger(tmp_path / "none").keep_only([]) == 0


# -- a real disk, small or read-only ----------------------------------------------------------------

DISK = """
import json, subprocess, sys
from pathlib import Path
from smscale import block_task, blocks
from smscale.blocks import Ledger, Task
from smscale.errors import StoreError

root, what = Path(sys.argv[1]), sys.argv[2]
disk = root / "disk"
disk.mkdir()
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], check=True)
block_task.RETRY_AFTER = (0.05, 0.05)
tries = []

def write(i):
    tries.append(i)
    if what == "heals" and len(tries) == 4:
        (disk / "map-0").unlink()
    (disk / f"map-{i}").write_bytes(bytes(100_000))
    if what == "read-only" and i == 1:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    return {"written": i}

ledger = Ledger((root if what != "read-only" else disk) / "ledger")
if what == "ledger":
    (disk / "rest").write_bytes(bytes(252 * 1024))
    ledger, write = Ledger(disk / "ledger"), lambda i: {"long": "x" * 9000}
try:
    outcome = blocks.run([Task(f"b/{i}", write, (i,)) for i in range(3)], ledger, progress=False)
    print(json.dumps({"retried": outcome.retried, "tries": tries}))
except StoreError as error:
    names = sorted(p.name for p in ledger.folder.iterdir()) if ledger.folder.exists() else []
    print(json.dumps({"error": str(error), "code": error.exit_code, "tries": tries, "names": names}))
"""


def on_a_disk(root: Path, what: str) -> dict[str, Any]:
    """What a run says on a tmpfs of 256 KiB of its own, in a user namespace where that is allowed."""
    allowed = shutil.which("unshare") and not subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode
    if not allowed:
        pytest.skip("this machine lets no user mount a disk of his own")
    command = ["unshare", "-rm", sys.executable, "-c", DISK, str(root), what]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_full_disk_ends_in_one_line_after_the_tries(tmp_path: Path) -> None:
    told = on_a_disk(tmp_path, "full")
    assert "(No space left on device): free the disk and run again (block b/2; finished blocks" in told["error"]
    assert (told["code"], told["tries"], told["names"]) == (2, [0, 1, 2, 2, 2], ["b.0.json", "b.1.json"])


def test_full_disk_that_is_freed_is_survived(tmp_path: Path) -> None:
    told = on_a_disk(tmp_path, "heals")
    assert told["tries"] == [0, 1, 2, 2]
    assert told["retried"] == {"b/2": "1 time, OSError: [Errno 28] No space left on device"}


def test_full_disk_under_the_ledger_leaves_no_half_record(tmp_path: Path) -> None:
    told = on_a_disk(tmp_path, "ledger")
    assert f"{tmp_path}/disk/ledger: the record of block b/0 cannot be written (No space left" in told["error"]
    assert (told["code"], told["names"]) == (2, [])


def test_disk_that_turns_read_only_ends_at_once(tmp_path: Path) -> None:
    told = on_a_disk(tmp_path, "read-only")
    assert f"{tmp_path}/disk/ledger: the record of block b/1 cannot be written (Read-only file system)" in told["error"]
    assert "name another --workspace" in told["error"]
    assert (told["code"], told["tries"], told["names"]) == (2, [0, 1], ["b.0.json"])
