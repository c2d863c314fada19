"""Workers in Kubernetes: a DaskCluster that the dask operator makes from a manifest, through dask-kubernetes."""

from __future__ import annotations

import atexit
import copy
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from smscale.cluster.profile import Kubernetes, seconds, size
from smscale.cluster.start import Need, Started, wanted
from smscale.errors import RecipeError

#: Where a pod finds who it is.
INSIDE = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
GROUP = "DaskWorkerGroup"
#: Annotation of a DaskCluster that says which run made it.
RUN = "smscale/run"
#: For a cluster to end.
END_SECONDS = 60.0


@contextmanager
def create(profile: Kubernetes, need: Need) -> Iterator[Started]:
    """Make the cluster of the profile's manifest, and its worker groups; they end with the context.

    Raises
    ------
    RecipeError
        in one line, where there is no Kubernetes, no operator, or a manifest of which a worker is too small.
    """
    from distributed import Client

    where = f"cluster {profile.name}"
    main, groups = manifests(profile, need)
    _require_access(where)
    try:
        import kr8s
        from dask_kubernetes.operator.kubecluster.kubecluster import CreateMode, KubeCluster, reap_clusters
    except ImportError:
        raise RecipeError(f"{where}: dask-kubernetes is not installed: pip install 'smscale[cluster]'") from None
    atexit.unregister(reap_clusters)  # this context ends what it made; that tries again, and prints what it meets
    workers = wanted(profile, need)
    limit = seconds(profile.start_timeout)
    run = secrets.token_hex(8)
    main["metadata"]["annotations"] = {**(main["metadata"].get("annotations") or {}), RUN: run}
    _within(limit, where, lambda: kr8s.api().version())
    with ExitStack() as stack:
        stack.enter_context(_deleted(main, run, profile, where))
        cluster = _within(
            limit,
            where,
            lambda: KubeCluster(
                custom_cluster_spec=main,
                namespace=profile.namespace,
                create_mode=CreateMode.CREATE_ONLY,
                shutdown_on_close=False,
                resource_timeout=int(limit),
                quiet=True,
            ),
        )
        stack.callback(_quietly, lambda: _within(END_SECONDS, where, cluster.close))
        for group in groups:
            name = group["metadata"]["name"].removeprefix(f"{main['metadata']['name']}-")
            _within(limit, where, lambda n=name, g=group: cluster.add_worker_group(n, custom_spec=g["spec"]["worker"]))  # type: ignore[misc]
        if workers.max > workers.min:
            _within(limit, where, lambda: cluster.adapt(minimum=workers.min, maximum=workers.max))
        # A client's own time-out is also how long it looks for a scheduler that went away.
        client = _within(
            seconds(profile.connect_timeout),
            where,
            lambda: Client(cluster, timeout=seconds(profile.lost_timeout)),
            "connect_timeout",
        )
        stack.enter_context(client)
        state = "see kubectl describe pods --selector dask.org/cluster-name=" + main["metadata"]["name"]
        yield Started(client, workers.min, lambda: state)


@contextmanager
def _deleted(main: dict[str, Any], run: str, profile: Kubernetes, where: str) -> Iterator[None]:
    """Delete the cluster when the block ends, however it does: also one that was not yet there in time; never another run's.

    Raises
    ------
    RecipeError
        where the block ended well, and the cluster stays.
    """
    from kr8s import NotFoundError
    from kr8s.objects import new_class

    kind, name = new_class(main["kind"], main["apiVersion"]), main["metadata"]["name"]

    def delete() -> None:
        try:
            found = kind.get(name, namespace=profile.namespace)
            if (found.metadata.get("annotations") or {}).get(RUN) == run:
                found.delete()
                while found.exists():
                    time.sleep(1)
        except NotFoundError:
            pass

    try:
        yield
    except BaseException:
        _quietly(lambda: _within(END_SECONDS, where, delete))
        raise
    still = f"{where}: DaskCluster {name} may still be there (kubectl delete daskcluster {name})"
    _within(END_SECONDS, still, delete, "the time to end")


def _quietly(call: Callable[[], Any]) -> None:
    """Call where something else is told already."""
    with suppress(RecipeError):
        call()


def manifests(profile: Kubernetes, need: Need) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The DaskCluster and the groups of a profile's manifest, with the number and the memory of workers that a run asks for."""
    path = profile.resolve(profile.manifest)
    try:
        found = [one for one in yaml.safe_load_all(path.read_text()) if one]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        told = " ".join(str(error).split())
        raise RecipeError(f"cluster {profile.name}: key manifest: {path} cannot be read: {told}") from None
    main = [one for one in found if isinstance(one, dict) and one.get("kind") == "DaskCluster"]
    groups = [one for one in found if isinstance(one, dict) and one.get("kind") == GROUP]
    if len(main) != 1:
        raise RecipeError(f"cluster {profile.name}: {path} holds {len(main)} of kind DaskCluster, expected one")
    cluster = copy.deepcopy(main[0])
    try:
        if profile.cluster:
            cluster["metadata"]["name"] = profile.cluster
            cluster["spec"]["scheduler"]["service"]["selector"]["dask.org/cluster-name"] = profile.cluster
        cluster["spec"]["worker"]["replicas"] = wanted(profile, need).min
        _give_memory(cluster["spec"]["worker"]["spec"], need.memory, profile, path)
        for group in groups:
            _own_memory(group["spec"]["worker"]["spec"], need.memory, profile, path)
    except (KeyError, TypeError, IndexError) as error:
        raise RecipeError(
            f"cluster {profile.name}: {path} is no DaskCluster as the operator wants it: {error!r}"
        ) from None
    return cluster, groups


def _give_memory(pod: dict[str, Any], memory: str, profile: Kubernetes, path: Path) -> None:
    """Workers hold what the recipe says: no more, so that a plan is true, and their pod has room for it."""
    worker = _own_memory(pod, memory, profile, path)
    told = {"--nthreads": "1", "--memory-limit": memory.replace(" ", "")}
    kept = [str(one) for one in worker["args"]]
    for option in told:
        if option in kept:  # with its value behind it
            at = kept.index(option)
            del kept[at : at + 2]
    kept = [one for one in kept if one.split("=")[0] not in told]
    worker["args"] = kept + [f"{option}={value}" for option, value in told.items()]


def _own_memory(pod: dict[str, Any], memory: str, profile: Kubernetes, path: Path) -> dict[str, Any]:
    """The worker's container, if its limit leaves a worker of the recipe room."""
    worker: dict[str, Any] = pod["containers"][0]
    limit = str(worker["resources"]["limits"]["memory"])
    if _quantity(limit) < size(memory):
        raise RecipeError(
            f"cluster {profile.name}: {path.name}: a worker's limits.memory is {limit}, the recipe's resources.memory_per_worker {memory}: raise the limit, or lower the recipe's"
        )
    return worker


def _quantity(text: str) -> int:
    """Bytes of Kubernetes' quantities, as 2Gi or 500M."""
    return size(text if text.isdigit() else f"{text}B")


def _require_access(where: str) -> None:
    named = os.environ.get("KUBECONFIG", "")
    files = [Path(one) for one in named.split(os.pathsep) if one] or [Path.home() / ".kube" / "config"]
    if not INSIDE.exists() and not any(file.is_file() for file in files):
        raise RecipeError(f"{where}: no Kubernetes here: {files[0]} is not there (set KUBECONFIG), and this is no pod")


def _within(limit: float, where: str, call: Callable[[], Any], what: str = "start_timeout") -> Any:
    """What a call to Kubernetes returns; its errors, and its silence, in one line."""
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(call())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work, daemon=True)  # what never returns ends with the process
    thread.start()
    thread.join(limit)
    if not found:
        raise RecipeError(
            f"{where}: Kubernetes gave no answer within {what} ({limit:g} s): is the dask operator installed?"
        )
    if isinstance(found[0], BaseException):
        told = " ".join(str(found[0]).split()) or "no reason is given"
        raise RecipeError(f"{where}: Kubernetes says {type(found[0]).__name__}: {told}"[:500])
    return found[0]
