"""A store kept as an Icechunk repository: what a stage makes becomes visible in one commit, and what was there before stays readable.

A stage lays its arrays out in a session that is not committed. Its bytes lie beside the repository's own files, in
`staged/state.json`, with those of a fork of it that every writer starts from. A shard goes to its final place at once; that
it is there stands in a change set of some 400 bytes under `staged/changes`, until the commit merges all of these. So an
interrupted stage is invisible, goes on where it stopped, and no chunk is written twice. Nothing is pickled, and the bytes
hold no credentials: as everywhere these come from the environment.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import WrapperStore

from smscale import __version__
from smscale.errors import StoreError
from smscale.places import Place, Remote, place, read_many, remove, walk, write_bytes
from smscale.store import sessions, staged
from smscale.store.keys import Inside
from smscale.store.kinds import METADATA, Overlaid, Telling, document_of, lies_in
from smscale.store.sessions import session_of, store_of, told
from smscale.store.staged import Stage

#: The branch that readers see, and one that is there for a moment: only from a branch can a session begin that writes.
MAIN, FORKED = "main", "staged"
#: In the repository's folder: what is not committed yet.
STATE, CHANGES = "staged/state.json", "staged/changes"
Result = TypeVar("Result")


class Repository:
    """A store kept as an Icechunk repository."""

    def __init__(self, where: Place) -> None:
        self._where = where
        #: As sessions and repositories know it, from whichever folder they are asked.
        self._url = str(where if isinstance(where, Remote) else Path(str(where)).resolve())

    # -- what is seen ---------------------------------------------------------------------------

    def finished(self) -> Store:
        return self._telling(sessions.reading(self._url, self._tip()))

    def published(self) -> Store:
        stage = self._stage()
        return self.finished() if stage is None else Overlaid(self._laid_out(stage), stage.hidden)

    def unfinished(self) -> Store:
        stage = self._stage()
        return Staged(self.finished() if stage is None else self._laid_out(stage), self, stage is not None)

    def state(self, path: str) -> tuple[Any, ...]:
        return staged.mark_of(self._where / STATE) or (self._tip(),)

    def _laid_out(self, stage: Stage) -> Store:
        return self._telling(store_of(session_of(stage.fork)))

    def _telling(self, store: Store) -> Store:
        return Telling(store, self._where, told)

    def _tip(self) -> str:
        with told(self._where):
            return str(sessions.repository(self._url).lookup_branch(MAIN))

    # -- what is begun --------------------------------------------------------------------------

    def make(self) -> None:
        """Make the repository, where it is not there yet."""
        sessions.make(place(self._url))

    def _stage(self) -> Stage | None:
        mark = staged.mark_of(self._where / STATE)
        return None if mark is None else staged.read(self._url, str(self._where / STATE), mark)

    def _begun(self) -> Stage:
        """What is begun; begun now where nothing is. Of several who try at once one succeeds."""
        while (stage := self._stage()) is None:
            staged.write_first(self._where / STATE, self._new().encode())
        return stage

    def _new(self) -> Stage:
        with told(self._where):
            session = sessions.repository(self._url).writable_session(MAIN)._session
            held = session.as_bytes()
            return Stage(self._url, uuid.uuid4().hex, session.snapshot_id, held, held, {})

    def _keep(self, stage: Stage) -> None:
        write_bytes(self._where / STATE, stage.encode())

    @contextmanager
    def laying_out(self, paths: Sequence[str]) -> Iterator[Store]:
        stage = self._stage() or self._new()
        session = session_of(stage.layout)
        store = self._telling(store_of(session))
        known = {path: _text(store, document_of(path)) for path in paths if path not in stage.hidden}
        yield store
        self._keep_layout(replace(stage, hidden={**stage.hidden, **known}), session)

    def _keep_layout(self, stage: Stage, session: Any) -> None:
        """Keep what was laid out, and a fork of it whose bytes do not hold all of that."""
        with told(self._where):
            layout = session.as_bytes()
            fork = layout
            if session.has_uncommitted_changes:
                repository, snapshot = sessions.repository(self._url), session.flush("laid out, not committed")
                if FORKED in repository.list_branches():  # of a run that was killed here
                    repository.reset_branch(FORKED, snapshot)
                else:
                    repository.create_branch(FORKED, snapshot)
                fork = repository.writable_session(FORKED)._session.as_bytes()
                repository.delete_branch(FORKED)
        self._keep(replace(stage, layout=layout, fork=fork))

    def remove(self, paths: Sequence[str]) -> None:
        if "" in paths:
            self.drop()
        stage = self._stage() or self._new()
        session = session_of(stage.layout)
        store = self._telling(store_of(session))
        there = [path for path in paths if sync(store.exists(document_of(path)))]
        if not there:
            return
        for path in there:
            remove(self._where / CHANGES / path)
            sync(store.delete_dir(path))
        hidden = {path: text for path, text in stage.hidden.items() if not any(lies_in(path, gone) for gone in there)}
        self._keep_layout(replace(stage, hidden=hidden), session)

    def put(self, key: str, content: bytes | None) -> None:
        sync(self.write(key, None if content is None else default_buffer_prototype().buffer.from_bytes(content)))

    async def write(self, key: str, content: Buffer | None) -> None:
        """Write a chunk, or remove it, and keep its change set."""
        fork, change = b"", b""
        while fork != (now := (await self.aside(self._begun)).fork):  # laid out anew meanwhile?
            fork, idle = now, _idle(now)
            session = idle.pop() if idle else session_of(fork)
            store = self._telling(store_of(session))
            await (store.delete(key) if content is None else store.set(key, content))
            change = session.as_bytes()
            session.discard_changes()
            idle.append(session)
        await self.aside(write_bytes, self._where / CHANGES / _name_of(key), change)

    def changed(self, key: str) -> bytes | None:
        """The change set of a chunk that is written and not committed."""
        if key.rpartition("/")[2] == METADATA:
            return None
        try:
            return (self._where / CHANGES / _name_of(key)).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def changes(self, prefix: str = "") -> list[str]:
        """Keys of the chunks that are written and not committed."""
        folder = self._where / CHANGES
        found = []
        for here, _, names in walk(folder):
            path = here.relative_to(folder).as_posix()
            found += [_key_of(path, name) for name in names if not name.startswith(".")]
        return [key for key in found if key.startswith(prefix)]

    async def aside(self, call: Callable[..., Result], *args: Any) -> Result:
        """Call what may wait for an object store, beside the loop of Zarr's own calls."""
        return await asyncio.to_thread(call, *args) if isinstance(self._where, Remote) else call(*args)

    # -- what is done ---------------------------------------------------------------------------

    def publish(self, paths: Sequence[str]) -> None:
        stage = self._stage()
        if stage is not None and (hidden := {k: v for k, v in stage.hidden.items() if k not in paths}) != stage.hidden:
            self._keep(replace(stage, hidden=hidden))

    def discard(self, group: str) -> None:
        stage = self._stage()
        longer = {p: d for p, d in stage.hidden.items() if d and p.rpartition("/")[0] == group} if stage else {}
        if stage is None or not longer:
            return
        session = session_of(stage.layout)
        store = self._telling(store_of(session))
        for path, document in longer.items():
            sync(store.set(document_of(path), default_buffer_prototype().buffer.from_bytes(document.encode())))
        hidden = {path: document for path, document in stage.hidden.items() if path not in longer}
        self._keep_layout(replace(stage, hidden=hidden), session)

    def commit(self, recipe: str, stage: str, fingerprint: str) -> str:
        held = self._stage()
        if held is None:
            return ""
        one = (recipe, stage, fingerprint)
        held = replace(held, done=(*(other for other in held.done if other[1] != stage), one))
        self._keep(held)
        if held.hidden:
            return ""
        snapshot = self._committed(held.token) or self._merged(held)
        self.drop()
        return snapshot

    def _committed(self, token: str) -> str:
        """The commit of what is staged, where a killed run made it."""
        return next((one["snapshot"] for one in self.history() if one["token"] == token), "")

    def _merged(self, stage: Stage) -> str:
        """Merge all change sets into what was laid out, and commit it."""
        session, keys = session_of(stage.layout), self.changes()
        files = (self._where / CHANGES / _name_of(key) for key in keys)
        for key, content in zip(keys, read_many(files), strict=True):
            self._merge(session, key, session_of(content or b""))
        if not session.has_uncommitted_changes:
            return ""
        stages = {name: fingerprint for _, name, fingerprint in stage.done}
        recipe = stage.done[-1][0]
        message = f"{', '.join(stages)} of {recipe} (smscale {__version__}, {stages[stage.done[-1][1]][:12]})"
        metadata = {
            "recipe": recipe,
            "stages": list(stages),
            "fingerprints": stages,
            "smscale": __version__,
            "staged": stage.token,
        }
        with told(self._where):
            snapshot, conflicts = sessions.commit(session, message, metadata)
        if not snapshot:
            raise StoreError(self._conflict(stage, conflicts))
        return snapshot

    def _merge(self, session: Any, key: str, change: Any) -> None:
        with told(self._where / key):
            if not sessions.merge(session, change):  # its array was made longer since: the chunk is copied
                content = sync(store_of(change).get(key, default_buffer_prototype()))
                store = store_of(session)
                sync(store.delete(key) if content is None else store.set(key, content))

    def _conflict(self, stage: Stage, paths: Sequence[str]) -> str:
        what = f" ({', '.join(paths[:3])}{', …' * (len(paths) > 3)})" if paths else ""
        return (
            f"{self._where}: another writer committed {self._tip()} meanwhile, which does not go together with what stage "
            f"{stage.done[-1][1]} wrote{what}: put branch {MAIN} back to {stage.base} with icechunk and run again; finished blocks stay finished"
        )

    def drop(self) -> None:
        remove(self._where / CHANGES)  # first: without a state there are no changes
        (self._where / STATE).unlink(missing_ok=True)

    def sweep(self) -> int:
        stage = self._stage()
        if stage is not None and self._committed(stage.token):  # by a run that was killed before it said so
            self.drop()
        changes = self._where / CHANGES
        halves = [path for path in changes.rglob(".*") if path.is_file()] if isinstance(changes, Path) else []
        for path in halves:
            path.unlink(missing_ok=True)
        return len(halves)

    def history(self) -> list[dict[str, Any]]:
        with told(self._where):
            return [
                {
                    "snapshot": one.id,
                    "time": one.written_at.isoformat(timespec="seconds"),
                    "stages": (one.metadata or {}).get("stages", []),
                    "recipe": (one.metadata or {}).get("recipe", ""),
                    "message": one.message,
                    "token": (one.metadata or {}).get("staged", ""),
                }
                for one in sessions.repository(self._url).ancestry(branch=MAIN)
            ]

    # -- what lies in it ------------------------------------------------------------------------

    def files(self, store: Store) -> Place:
        return Inside(self._where, store)

    def inside(self) -> Place:
        return Inside(self._where, self.unfinished())

    def members(self, group: str) -> list[str]:
        async def listed() -> list[str]:
            return [name async for name in self.unfinished().list_dir(group)]

        return sorted(name for name in sync(listed()) if name != METADATA)

    def document(self, path: str) -> tuple[bytes, bool] | None:
        stage, text = self._stage(), _text(self.unfinished(), document_of(path))
        return (text.encode(), stage is None or path not in stage.hidden) if text else None


class Staged(WrapperStore[Store]):
    """What is laid out, with the chunks that are written and not committed; a chunk that is written becomes one of these.

    Parameters
    ----------
    begun : whether there may be such chunks
    """

    def __init__(self, store: Store, repository: Repository, begun: bool) -> None:
        super().__init__(store)
        self._repository, self._begun = repository, begun

    def _with_store(self, store: Store) -> Staged:
        return Staged(store, self._repository, self._begun)

    @property
    def read_only(self) -> bool:
        return False

    def with_read_only(self, read_only: bool = False) -> Staged:
        return self

    async def _of(self, key: str) -> Store:
        """The store in which a key is to be looked up."""
        change = await self._repository.aside(self._repository.changed, key) if self._begun else None
        return self._store if change is None else self._repository._telling(_seen(change))

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        return await (await self._of(key)).get(key, prototype or default_buffer_prototype(), byte_range)

    async def exists(self, key: str) -> bool:
        return await (await self._of(key)).exists(key)

    async def getsize(self, key: str) -> int:
        return await (await self._of(key)).getsize(key)

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        changed = set(await self._repository.aside(self._repository.changes, prefix)) if self._begun else set()
        node = prefix.rstrip("/")  # icechunk lists what lies in groups and arrays alone
        while node and not await self._store.exists(document_of(node)):
            node = node.rpartition("/")[0]
        async for key in self._store.list_prefix(node):
            if key.startswith(prefix):
                changed.discard(key)
                yield key
        for key in sorted(changed):
            yield key

    async def set(self, key: str, value: Buffer) -> None:
        await self._repository.write(key, value)

    async def delete(self, key: str) -> None:
        await self._repository.write(key, None)


@lru_cache(maxsize=16)
def _seen(change: bytes) -> Store:
    """What is seen with a change set; a chunk is often read in several pieces."""
    return store_of(session_of(change))


@lru_cache(maxsize=2)
def _idle(fork: bytes) -> list[Any]:
    """Sessions of a fork that nobody uses: they know its snapshot already."""
    return []


def _name_of(key: str) -> str:
    """Of a chunk's change set: one folder for each array."""
    path, within, at = key.rpartition("/c/")
    return f"{path}/c.{at.replace('/', '.')}" if within else key


def _key_of(path: str, name: str) -> str:
    """The chunk that a change set in an array's folder is of."""
    return f"{path}/c/{name[2:].replace('.', '/')}" if name.startswith("c.") else f"{path}/{name}"


def _text(store: Store, key: str) -> str:
    """A document; empty where there is none."""
    found = sync(store.get(key, default_buffer_prototype()))
    return "" if found is None else found.to_bytes().decode()
