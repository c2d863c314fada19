"""The order of the rooms: ingest, match, train, downscale, fuse, evaluate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from smscale import blocks, cluster, store
from smscale.block_plan import Plan
from smscale.blocks import Ledger
from smscale.config import Recipe, read_yaml
from smscale.errors import RecipeError, StoreError
from smscale.observe import Observer, Record, Sink, about_machine, versions
from smscale.pipeline.layout import layout_of
from smscale.pipeline.run import Run, claim, inscribe, values_of
from smscale.pipeline.run_page import RunPage
from smscale.places import Place, given, is_remote, reach
from smscale.workspace import PRODUCTS, REPOSITORIES, Workspace, remove

Say = Callable[[str], Any]


def run(
    recipe: Recipe,
    workspace: Workspace,
    cluster: str | None = "local",
    only: str | None = None,
    fresh: bool = False,
    progress: bool = True,
    say: Say = lambda text: None,
    sinks: Sequence[Sink] = (),
) -> dict[str, Any]:
    """Run a recipe in a workspace; what an earlier run finished is not done again.

    Parameters
    ----------
    cluster : "local", the address of a scheduler, or None for this process alone
    only : one stage; those before it must be finished
    fresh : remove what the workspace holds first
    progress : whether bars are shown
    sinks : are told what is done, beside the run's own record in the workspace

    Returns
    -------
    the report of each stage that was asked for

    Raises
    ------
    SmscaleError
        in one line.
    """
    with workspace.held(say):
        if fresh:
            _clear(workspace)
        recipe = with_region(recipe)
        claim(recipe, workspace)
        stages = _stages(recipe)
        wanted = [only] if only else list(stages)
        if only and only not in stages:
            raise RecipeError(f"--only {only}: this recipe has no such stage; it has {', '.join(stages)}")
        for leftover in (workspace.cube, workspace.maps_path):
            store.sweep(leftover)
        # One BLAS thread here as on the workers: more would sum in another order, and give other last bits.
        watch = Observer([*sinks, Record(workspace.root), RunPage(workspace)], _about(recipe, cluster, only, fresh))
        with threadpool_limits(1), _workers(recipe, cluster, say) as connect, watch.running():
            client = watch.connecting(connect)
            going = Run(recipe, workspace, tuple(stages), tuple(wanted), client, progress, say, watch=watch)
            _check_models(recipe, workspace)
            if only:
                _require_earlier(going, stages, only)
            inscribe(recipe, workspace)
            if recipe.world and only in (None, "ingest"):
                _clear_other_world(_world_file(recipe), workspace.root / "world")
                _simulate(_world_file(recipe), workspace.root / "world", client, progress, say, watch)
            reports = {}
            for name in wanted:
                with watch.stage(name) as stage:
                    before = workspace.finished(name)
                    reports[name] = stages[name](going)
                    did = workspace.finished(name) != before or before is None
                    stage.state = "done" if did else "nothing to do"
                if did:
                    say(f"{name:<10} done in {stage.seconds:.0f} s\n")
        if "evaluate" in reports:
            _summarise(recipe, workspace, reports["evaluate"], say)
        return reports


def simulate(
    world: Path,
    out: Place,
    cluster: str | None = "local",
    progress: bool = True,
    say: Say = lambda text: None,
    sinks: Sequence[Sink] = (),
) -> None:
    """Write a nature run: product files in their real formats, with the truth beside them."""
    from smscale.config import Resources

    if _is_other_world(world, out):
        raise StoreError(f"{out} holds another nature run (see its world.yaml): name another folder, or remove it")
    resources = Resources()
    watch = Observer(sinks, {"versions": versions(), "machine": about_machine()})
    with _connect(cluster, resources.workers, resources.memory_per_worker, say) as connect, watch.running():
        _simulate(world, out, watch.connecting(connect), progress, say, watch)
    say(f"files      {out}\ntruth      {out / 'truth.zarr'}\n")


def _check_models(recipe: Recipe, workspace: Workspace) -> None:
    """Refuse settings that a model does not take before anything is done; not again for what the workspace was made from."""
    if workspace.finished("train") is not None and workspace.recipe["models"] == recipe.part("models")["models"]:
        return
    from smscale.models.zoo import build
    from smscale.pipeline.surroundings import patch_of

    for name, settings in recipe.models.items():
        build(name, settings, recipe.seed)
        if patch_of(name, settings) > 1 and recipe.recovery is not None:
            raise RecipeError(f"models.{name}.patch: a recovery trains on single cells; leave it out")


def _require_earlier(run: Run, stages: dict[str, Callable[[Run], dict[str, Any]]], only: str) -> None:
    """Refuse where a stage before `only` is not finished, or was made with other settings."""
    for name, stage in stages.items():
        if name == only:
            return
        run.report(name)
        stage(replace(run, check=True))


def _stages(recipe: Recipe) -> dict[str, Callable[[Run], dict[str, Any]]]:
    """The stages of a recipe, in order."""
    if recipe.recovery is not None:
        from smscale.pipeline import recovery

        return recovery.stages(recipe)
    if recipe.table is not None:
        from smscale.pipeline import tabular

        return tabular.stages(recipe)
    from smscale.pipeline.downscale import downscale
    from smscale.pipeline.evaluate import evaluate
    from smscale.pipeline.fuse import fuse
    from smscale.pipeline.ingest import ingest
    from smscale.pipeline.match import match
    from smscale.pipeline.plan import plan_of
    from smscale.pipeline.stations import station_count
    from smscale.pipeline.train import train

    layout = layout_of(recipe)
    plan_of(recipe, layout)  # refused before anything is done

    def plan(run: Run) -> Plan:
        return plan_of(recipe, layout, station_count(run.workspace))

    def inputs(run: Run) -> Place:
        if not recipe.inputs:
            return run.workspace.root / "world"
        found = given(recipe.inputs) if is_remote(recipe.inputs) else recipe.resolve(recipe.inputs)
        reach(found)
        return found

    def truth(run: Run) -> Place | None:
        return run.workspace.root / "world" / "truth.zarr" if recipe.world else None

    return {
        "ingest": lambda run: ingest(run, layout, inputs(run)),
        "match": lambda run: match(run, layout),
        "train": train,
        "downscale": lambda run: downscale(run, layout, plan(run)),
        "fuse": lambda run: fuse(run, layout, plan(run)),
        "evaluate": lambda run: evaluate(run, layout, plan(run), truth(run)),
    }


def _world_file(recipe: Recipe) -> Path:
    return recipe.resolve(str(recipe.world))


def with_region(recipe: Recipe) -> Recipe:
    """A recipe that names no region takes that of its outline or its world, and of that the period."""
    if recipe.outline:
        from smscale.sources import outline

        box = outline.bounds(outline.read_outline(recipe.resolve(recipe.outline)))
        recipe = replace(recipe, region=recipe.region or box)
    if not recipe.world:
        return recipe
    from smscale.simulate import World

    world = World.from_file(_world_file(recipe))
    return replace(recipe, region=recipe.region or world.region, period=recipe.period or (world.start, world.end))


def _simulate(world_file: Path, out: Place, client: Any, progress: bool, say: Say, watch: Observer) -> None:
    from smscale.simulate import World, phases

    store.sweep(out / "truth.zarr")
    with watch.stage("simulate") as stage:
        for name, tasks in phases(World.from_file(world_file), str(out)):
            blocks.run(tasks, Ledger(out / "ledger" / name), client, f"simulate {name}", progress, watch=watch)
        stage.state = "done" if stage.sum("done") else "nothing to do"
    say(f"{'simulate':<10} {f'done in {stage.seconds:.0f} s' if stage.sum('done') else 'nothing to do'}\n")


def _about(recipe: Recipe, cluster: str | None, only: str | None, fresh: bool) -> dict[str, Any]:
    """What a run's record says beside what was done. Of a cluster's address only how it is spoken to: no host."""
    where, _, host = (cluster or "this process").partition("://")
    return {
        "where": f"{where}://" if host else Path(where).stem,
        "only": only,
        "fresh": fresh,
        "versions": versions(),
        "machine": about_machine(),
        "recipe": values_of(recipe),
    }


def _workers(recipe: Recipe, where: str | None, say: Say) -> Any:
    return _connect(where, recipe.resources.workers, recipe.resources.memory_per_worker, say)


def _connect(where: str | None, workers: int | None, memory: str, say: Say) -> Any:
    return cluster.when_needed(where, workers, memory, say)


def _clear(workspace: Workspace) -> None:
    """Remove what a run makes, what says that it is finished first; nothing else in the folder, and no folder that holds no run."""
    recipe = workspace.root / "ledger" / "recipe.json"
    if not recipe.is_file():
        return
    for record in set(recipe.parent.glob("*")) - {recipe}:
        remove(record)
    for name in (
        *chain(*PRODUCTS.values()),
        "report",
        "cube.zarr/zarr.json",
        "cube.zarr",
        *REPOSITORIES,
    ):
        remove(workspace.root / name)
    _remove_world(workspace.root / "world")
    remove(workspace.root / "ledger")


def _clear_other_world(world_file: Path, out: Place) -> None:
    """Remove the workspace's own nature run if it is of another world: its files would be read beside the new ones."""
    if _is_other_world(world_file, out):
        _remove_world(out)


def _remove_world(out: Place) -> None:
    """Remove a nature run; world.yaml goes last, since it says whose files these are."""
    remove(out / "ledger")
    for part in set(out.iterdir()) - {out / "world.yaml"} if out.is_dir() else ():
        remove(part)
    remove(out)


def _is_other_world(world_file: Path, out: Place) -> bool:
    from smscale.simulate import World

    try:
        return read_yaml(out / "world.yaml") != World.from_file(world_file).to_mapping()
    except RecipeError:
        return False


def _summarise(recipe: Recipe, workspace: Workspace, report: dict[str, Any], say: Say) -> None:
    """The table of scores, and where things are."""
    from smscale.evaluate import format_table

    columns = ("rmse", "mae", "cc", "bias", "ubrmse", "n")
    for title, labels, key in (
        ("At held-out stations", ("source",), "scores"),
        ("Against the truth on the fine grid", ("source",), "truth"),
        ("On rows that no model was trained on", ("split", "model"), "splits"),
    ):
        if rows := report.get(key):
            say(f"\n{title}\n{format_table([{k: row[k] for k in (*labels, *columns)} for row in rows])}\n")
    if recipe.table is None:
        say(f"\nfinal map  {report['final']} in {workspace.maps_path}")
    else:
        say(f"\nbest model {report['best']} in {workspace.model(report['best'])}")
    say(f"\nreport     {workspace.report / 'index.html'}\n")
