"""What every stage stands on: the recipe, the workspace, the workers, and how a stage is done once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from smscale import blocks, store
from smscale.blocks import Joint, Ledger, Task
from smscale.config import Recipe
from smscale.errors import RecipeError, StoreError
from smscale.observe import Observer
from smscale.places import Place, is_remote, place, together, write_text
from smscale.redaction import redacted_values
from smscale.store_inspection import file_checksum, small_files
from smscale.workspace import Workspace

if TYPE_CHECKING:
    from distributed import Client


#: Bytes of a file's head, and of its tail, that its fingerprint reads.
ENDS = 65536


@dataclass(frozen=True)
class Run:
    """One run of a recipe in a workspace.

    `order` names its stages from first to last, `wanted` those that are to be done. Where `check` is set, stages do nothing: they report, or refuse if they are
    not finished with this recipe's settings. `watch` is told what is done.
    """

    recipe: Recipe
    workspace: Workspace
    order: tuple[str, ...] = ()
    wanted: tuple[str, ...] = ()
    client: Client | Callable[[], Client | None] | None = None
    progress: bool = True
    say: Callable[[str], Any] = lambda text: None
    check: bool = False
    watch: Observer = field(default_factory=Observer)

    def stage(
        self,
        name: str,
        fingerprint: str,
        prepare: Callable[[], Any],
        work: Callable[[], dict[str, Any]],
        base: str = "",
        extend: Callable[[str], bool] | None = None,
    ) -> dict[str, Any]:
        """Do a stage once.

        Parameters
        ----------
        fingerprint : of everything that the stage is made from, the stages before it included
        prepare : clears what an older run left and lays out the empty arrays; done once per fingerprint
        work : does the blocks that the ledger does not hold, publishes, returns the report
        base, extend : where blocks have fingerprints of their own: what all of them share is `base`. `extend` is given that of the
            last time; it makes room for what is new, and finished blocks are kept, or says False, and the stage begins anew

        Returns
        -------
        the stage's report: counts, problems, scores
        """
        done = self.workspace.finished(name)
        if done is not None and done["fingerprint"] == fingerprint:
            if not self.check:
                self.say(f"{name:<10} nothing to do\n")
            return done["report"]
        if self.check:
            raise StoreError(
                f"stage {name} was done with other settings or files in {self.workspace.root}: run without --only, or with --only {name} first"
            )
        self.begin(name, fingerprint, prepare, base, extend)
        report = work()
        commits = self.workspace.commit(self.recipe.name, name, fingerprint)
        self.workspace.finish(name, fingerprint, report, commits)
        return report

    def begin(
        self,
        name: str,
        fingerprint: str,
        prepare: Callable[[], Any],
        base: str = "",
        extend: Callable[[str], bool] | None = None,
    ) -> None:
        """Clear and lay out what a stage fills, unless that stands already; see `stage`."""
        self.watch.works()
        if not self.workspace.begin(name, fingerprint):
            return
        later = self.order[self.order.index(name) + 1 :]
        for stage in reversed(later):  # what was made from an older state goes with it
            self.workspace.forget(stage)
        self.workspace.unfinish(name)
        held = self.workspace.base(name)
        if extend is None or not held or not extend(held):
            self.workspace.forget(name)
            prepare()
        self.workspace.prepared(name, fingerprint, base)

    def blocks(self, stage: str, tasks: Sequence[Task], label: str = "", in_memory: bool = True) -> Mapping[str, Any]:
        """Results of a stage's tasks by key; not `in_memory`: read from the ledger when asked for."""
        return self._run(tasks, self.workspace.ledger(stage), label or stage, in_memory)

    def jointly(self, parts: Mapping[str, str], tasks: Sequence[Task], label: str) -> Mapping[str, Any]:
        """Tasks that do the work of several stages at once; `parts` are the fingerprints of their blocks, by stage."""
        ledgers = Joint({name: (self.workspace.ledger(name), fp) for name, fp in parts.items()})
        return self._run(tasks, ledgers, label, in_memory=False)

    def _run(self, tasks: Sequence[Task], ledger: Ledger | Joint, label: str, in_memory: bool) -> Mapping[str, Any]:
        return blocks.run(tasks, ledger, self.client, label, self.progress, self.say, in_memory, self.watch).results

    def here(self, stage: str, tasks: Sequence[Task], label: str) -> Mapping[str, Any]:
        """Results of tasks done in this process, with the workers at hand for what they themselves fan out."""
        ledger = self.workspace.ledger(stage)
        client = None
        if any(record is None for _, record in ledger.records(tasks)):
            client = self.client() if callable(self.client) else self.client
        with client.as_current() if client is not None else nullcontext():
            return blocks.run(tasks, ledger, None, label, self.progress, watch=self.watch).results

    def upstream(self, stage: str) -> str:
        """Fingerprint of a finished earlier stage."""
        return str(self._finished(stage)["fingerprint"])

    def report(self, stage: str) -> dict[str, Any]:
        """Report of a finished earlier stage."""
        return self._finished(stage)["report"]

    def _finished(self, stage: str) -> dict[str, Any]:
        done = self.workspace.finished(stage)
        if done is None:
            raise StoreError(
                f"stage {stage} is not finished in {self.workspace.root}: run without --only, or with --only {stage} first"
            )
        return done


def file_fingerprints(paths: Sequence[str | Place]) -> dict[str, str]:
    """Path -> fingerprint of a file by name, size, head and tail: the same in a copy, and quick for a year of them."""
    names = [str(path) for path in paths]
    return dict(zip(names, together(_file_fingerprint, names, next(filter(is_remote, names), "")), strict=True))


def _file_fingerprint(path: str) -> str:
    found = place(path)
    return store.fingerprint(found.name, *_size_and_ends(found))


def files_fingerprint(paths: Sequence[str | Place]) -> str:
    """Of input files together."""
    return store.fingerprint(sorted(file_fingerprints(paths).values()))


def _size_and_ends(path: Place) -> tuple[int, str]:
    size = path.stat().st_size
    with path.open("rb") as file:
        ends = file.read(ENDS)
        file.seek(max(size - ENDS, ENDS))
        ends += file.read(ENDS)
    return size, hashlib.blake2b(ends, digest_size=16).hexdigest()


def sealed(workspace: Workspace, *parts: str) -> dict[str, str]:
    """Checksums of files of a workspace that no block's receipt covers, for `smscale verify`.

    `parts` are files, folders of them, or groups of a store ("cube.zarr/fine": metadata and coordinates).
    """
    found: list[Place] = []
    for part in parts:
        path, (root, _, group) = workspace.file(part), part.partition("/")
        if root in workspace.stores:
            found += small_files(workspace.root / root, group) if path.is_dir() else []
        else:
            found += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return {p.relative_to(workspace.root).as_posix(): file_checksum(p) for p in found if p.is_file()}


def claim(recipe: Recipe, workspace: Workspace) -> None:
    """Refuse a workspace that belongs to another recipe.

    Raises
    ------
    RecipeError
        if the workspace holds another recipe's run, or keeps its arrays otherwise.
    """
    path = workspace.root / "ledger" / "recipe.json"
    if not path.is_file():
        return
    try:
        found = json.loads(path.read_text())
        held, kept = found.get("name"), found.get("store", "zarr")
    except ValueError:
        held, kept = recipe.name, recipe.store
    if held != recipe.name:
        raise RecipeError(
            f"{workspace.root} holds the run of recipe {held!r}, not {recipe.name!r}: name another --workspace, or --fresh to replace it"
        )
    if kept != recipe.store:
        raise RecipeError(
            f"{workspace.root} was begun with store: {kept}, the recipe says {recipe.store}: set store: {kept}, name another --workspace, or --fresh to replace it"
        )


def inscribe(recipe: Recipe, workspace: Workspace) -> None:
    """Write down the recipe that the workspace belongs to, and make what is to hold its arrays."""
    path = workspace.root / "ledger" / "recipe.json"
    write_text(path, json.dumps(values_of(recipe), sort_keys=True, indent=1))
    if recipe.table is None:  # after what says so: of a run that is killed in between the next one knows
        workspace.keep(recipe.store)


def values_of(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain values, as it is written down and shown: without secrets that a URL in it may hold."""
    return redacted_values(recipe.part(*(f for f in recipe.__dataclass_fields__ if f != "path")))
