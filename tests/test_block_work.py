"""What the stages give to the engine: small tasks, whatever is large by reference; the same bytes whatever the order."""

import functools
import pickle
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from distributed import Client, Scheduler, SpecCluster, Worker
from sklearn.ensemble import RandomForestRegressor

from smscale import block_plan, blocks, config, pipeline
from smscale.blocks import Task
from smscale.ledger import Joint
from smscale.models import save_model
from smscale.pipeline import plan as planning
from smscale.pipeline.downscale import downscale
from smscale.pipeline.layout import layout_of
from smscale.pipeline.run import Run
from smscale.verify import verify
from smscale.workspace import Workspace


class Enough(Exception):
    """What a test wanted to see has been seen."""


def test_bytes_of_a_task_do_not_grow_with_the_model(
    tmp_path: Path, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"lst": rng.normal(290, 10, 400), "ndvi": rng.random(400)})
    recipe = replace(
        config.read(tiny_recipe),
        models={"rf": {}},
        region=(100.0, 29.0, 101.0, 30.0),
        period=("2017-06-01", "2017-06-04"),
    )
    sent: dict[str, list[int]] = {"small": [], "large": []}
    stored = {}
    for size, trees in (("small", 1), ("large", 200)):
        workspace = Workspace(tmp_path / size)
        forest = RandomForestRegressor(trees, random_state=0).fit(table.to_numpy(np.float32), rng.random(400))
        folder = save_model(workspace.model("rf"), forest, list(table), table, {}, {})
        stored[size] = sum(path.stat().st_size for path in folder.rglob("*"))
        workspace.finish("train", "0123456789abcdef", {"best": "rf"})

        def weigh(todo: list[Task], *args: Any, size: str = size, **how: Any) -> None:
            sent[size] += [len(pickle.dumps((task.call, task.args))) for task in todo]
            raise Enough

        monkeypatch.setattr(blocks, "run", weigh)
        layout = layout_of(recipe)
        with pytest.raises(Enough):
            downscale(Run(recipe, workspace, ("train", "downscale")), layout, planning.plan_of(recipe, layout))
    assert stored["large"] > 20 * stored["small"]
    assert sent["large"] == sent["small"]
    assert 0 < max(sent["large"]) < 5000


class Death(BaseException):
    """What no handler of errors catches."""


def remake(
    recipe: Path,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    client: Client | None = None,
    lives: int = 10**6,
) -> list[str]:
    """Make the maps of a finished run again, the blocks in another order, dying with a block's entry; keys in that order."""
    run, enter, keys = blocks.run, Joint.enter, []

    def shuffled(tasks: Sequence[Task], ledger: Any, *args: Any, **how: Any) -> blocks.Outcome:
        other = random.Random(seed).sample(tasks, len(tasks))
        keys.extend(task.key for task in other)
        if isinstance(ledger, Joint):
            assert all(len(pickle.dumps((t.call, t.args))) < 10_000 for t in tasks), "models and residuals by reference"
        return run(other, ledger, *args, **how)

    def dying(self: Joint, *args: Any) -> Any:
        nonlocal lives
        lives -= 1
        if not lives:
            raise Death
        return enter(self, *args)

    stages = pipeline._stages
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "run", shuffled)
        patch.setattr(Joint, "enter", dying)
        patch.setattr(pipeline, "_connect", lambda *_: nullcontext(lambda: client))
        patch.setattr(pipeline, "_stages", lambda given: {k: s for k, s in stages(given).items() if k != "evaluate"})
        pipeline.run(config.read(recipe), Workspace(root), None, progress=False)
    return keys


@pytest.fixture
def without_maps(tiny_run: Path, tmp_path: Path, copy_run: Callable[..., Path]) -> Path:
    root = copy_run(tiny_run, tmp_path / "run")
    for stage in ("fuse", "downscale"):
        Workspace(root).forget(stage)
    assert not (root / "maps.zarr").exists()
    return root


def maps_of(digests: dict[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in digests.items() if name.startswith("maps.zarr/")}


def test_order_of_blocks_and_a_worker_change_no_byte_of_the_maps(
    tiny_recipe: Path,
    tiny_run: Path,
    without_maps: Path,
    digests: Callable[[Path], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = {0: {"cls": Worker, "options": {"nthreads": 1}}}
    scheduler = {"cls": Scheduler, "options": {"dashboard": False, "dashboard_address": "127.0.0.1:0"}}
    with SpecCluster(workers=one, scheduler=scheduler, silence_logs=50) as cluster, Client(cluster) as client:
        keys = remake(tiny_recipe, without_maps, monkeypatch, 1, client)
    assert keys != sorted(keys)
    assert maps_of(digests(without_maps)) == maps_of(digests(tiny_run))
    for stage in ("downscale", "fuse"):
        assert Workspace(without_maps).finished(stage) == Workspace(tiny_run).finished(stage)


def test_maps_begun_with_one_plan_and_finished_with_another_are_the_same_and_whole(
    tiny_recipe: Path, tiny_run: Path, without_maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the user gives workers more memory between two runs: larger blocks, other keys, no record twice."""
    with pytest.raises(Death):
        remake(tiny_recipe, without_maps, monkeypatch, 2, lives=5)
    begun = {p.name for p in (without_maps / "ledger" / "downscale").iterdir()}
    assert len(begun) == 4
    larger = functools.partial(block_plan.plan, least_blocks=1)
    monkeypatch.setattr(planning, "plan", larger)
    remake(tiny_recipe, without_maps, monkeypatch, 3)
    kept = {p.name for p in (without_maps / "ledger" / "downscale").iterdir()}
    assert kept.isdisjoint(begun)
    assert all(name.startswith("0+12-") for name in kept)
    ours, theirs = Workspace(without_maps).maps, Workspace(tiny_run).maps
    assert set(ours.data_vars) == set(theirs.data_vars)
    for name, values in ours.data_vars.items():
        if (
            values.dtype.kind == "f"
        ):  # other products of matrices may round otherwise: a few units of float32's last place
            np.testing.assert_allclose(values.values, theirs[name].values, rtol=2e-6, atol=1e-7, err_msg=str(name))
        else:
            np.testing.assert_array_equal(values.values, theirs[name].values, err_msg=str(name))
    assert verify(Workspace(without_maps)).defects == ()
