"""What deploy/ holds: manifests that the operator's own schemas and Kubernetes' take, and that give no more rights than needed."""

import copy
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

import smscale

DEPLOY = Path(__file__).parents[1] / "deploy"
PACKAGED = Path(smscale.__file__).parent / "cluster" / "manifests" / "daskcluster.yaml"
FILES = [*sorted((DEPLOY / "kubernetes").glob("*.yaml")), PACKAGED]
DOCUMENTS = [
    pytest.param(one, id=f"{path.name}-{one['kind']}") for path in FILES for one in yaml.safe_load_all(path.read_text())
]


@cache
def operators_schema(kind: str) -> Any:
    """The dask operator's schema of a kind, from its package's files; every key that a server would drop is refused."""
    found = importlib.util.find_spec("dask_kubernetes")
    if found is None or found.origin is None:
        pytest.skip("dask-kubernetes is not installed")
    folder = Path(found.origin).parent / "operator" / "deployment" / "helm" / "dask-kubernetes-operator" / "crds"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    definition = yaml.load((folder / f"{kind.lower()}.yaml").read_text(), loader)
    assert definition["spec"]["names"]["kind"] == kind
    schema = strict(definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    text = {"type": "string"}
    schema["properties"] |= {"apiVersion": text, "kind": text, "metadata": {"type": "object"}}
    return schema


def strict(schema: Any) -> Any:
    """A structural schema of Kubernetes as plain JSON Schema that takes no key which a server would drop."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if made.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
    closed = isinstance(made.get("properties"), dict) and "additionalProperties" not in made
    if closed and not made.get("x-kubernetes-preserve-unknown-fields"):
        made["additionalProperties"] = False
    return made


def faults(document: dict[str, Any]) -> list[str]:
    jsonschema = pytest.importorskip("jsonschema")
    found = jsonschema.Draft7Validator(operators_schema(document["kind"])).iter_errors(document)
    return [f"{list(one.absolute_path)}: {one.message}" for one in found]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_manifest_is_as_its_schema_says(document: dict[str, Any]) -> None:
    if document["apiVersion"].startswith("kubernetes.dask.org/"):
        assert faults(document) == []
        return
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    validate.validate(document, "1.30", strict=True)


def test_schema_refuses_what_is_wrong() -> None:
    good = yaml.safe_load((DEPLOY / "kubernetes" / "cluster.yaml").read_text())
    for path, wrong in (
        (("worker", "replicas"), "two"),
        (("worker", "spec", "containers", 0, "imagePulPolicy"), "Always"),
        (("scheduler", "service", "ports", 0, "port"), "abc def"),
        (("scheduler", "spec", "containers", 0, "name"), 7),
    ):
        bad = copy.deepcopy(good)
        at = bad["spec"]
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = wrong
        assert faults(bad), path


def pods(document: Any) -> Iterator[dict[str, Any]]:
    """Pod specifications at any depth."""
    if isinstance(document, dict):
        if "containers" in document:
            yield document
        for value in document.values():
            yield from pods(value)
    elif isinstance(document, list):
        for value in document:
            yield from pods(value)


PODS = [pytest.param(pod, id=f"{one.id}-{i}") for one in DOCUMENTS for i, pod in enumerate(pods(one.values[0]))]


@pytest.mark.parametrize("pod", PODS)
def test_pod_has_no_more_rights_than_it_needs(pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] >= 10_000
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        rights = container["securityContext"]
        assert rights["allowPrivilegeEscalation"] is False
        assert rights["readOnlyRootFilesystem"] is True
        assert rights["capabilities"] == {"drop": ["ALL"]}
        assert set(container["resources"]["limits"]) >= {"cpu", "memory"}
        assert re.search(r":\d+\.\d+\.\d+-(cpu|cuda)$", container["image"]), "a version, not the latest"
        assert not [one for one in container.get("env", ()) if re.search("KEY|SECRET|TOKEN|PASSWORD", one["name"])]
        mounted = {one["name"] for one in container["volumeMounts"]}
        assert mounted == {one["name"] for one in pod["volumes"]}


def test_secrets_are_named_not_held() -> None:
    text = "".join(path.read_text() for path in FILES)
    assert "kind: Secret" not in text
    assert {"smscale-tls", "smscale-s3"} <= set(re.findall(r"(?:secretName|secretRef: {name): ([\w-]+)", text))


def test_names_of_the_parts_meet() -> None:
    held = {(one.values[0]["kind"], one.values[0]["metadata"]["name"]): one.values[0] for one in DOCUMENTS[:-1]}
    cluster = held["DaskCluster", "smscale"]
    assert held["DaskWorkerGroup", "smscale-gpu"]["spec"]["cluster"] == "smscale"
    run = held["ConfigMap", "smscale-run"]["data"]
    address = yaml.safe_load(run["cluster.yaml"])["address"]
    workers = [cluster["spec"]["worker"], held["DaskWorkerGroup", "smscale-gpu"]["spec"]["worker"]]
    for worker in workers:
        env = {one["name"]: one["value"] for one in worker["spec"]["containers"][0]["env"]}
        assert env["DASK_SCHEDULER_ADDRESS"] == address == "tls://smscale-scheduler:8786"
    assert "--resources=GPU=1" in workers[1]["spec"]["containers"][0]["args"]
    claims = {
        json.dumps(v["persistentVolumeClaim"])
        for worker in workers
        for v in worker["spec"]["volumes"]
        if "persistentVolumeClaim" in v
    }
    assert claims == {'{"claimName": "smscale-data"}'}
    assert ("PersistentVolumeClaim", "smscale-data") in held


def test_profile_and_recipe_of_the_job_are_read(tmp_path: Path) -> None:
    from smscale import config
    from smscale.cluster import profile

    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "run.yaml").read_text()))
    for name, text in documents[0]["data"].items():
        (tmp_path / name).write_text(text)
    assert profile.read(str(tmp_path / "cluster.yaml")).kind == "address"
    assert config.read(tmp_path / "recipe.yaml").name == "sichuan"
    arguments = documents[1]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert {"/config/recipe.yaml", "/config/cluster.yaml"} <= set(arguments)


def test_image_is_pinned_and_not_root() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    stages = [line.split() for line in lines if line.startswith("FROM")]
    assert {stage[3] for stage in stages} >= {"cpu", "cuda"}
    base = next(line for line in lines if line.startswith("ARG PYTHON="))
    assert re.fullmatch(r"ARG PYTHON=python:3\.11\.\d+-slim-\w+", base)
    for name in ("cpu", "cuda"):
        begin = next(i for i, line in enumerate(lines) if line.startswith("FROM") and line.endswith(f" AS {name}"))
        rest = lines[begin + 1 :]
        end = next((i for i, line in enumerate(rest) if line.startswith("FROM")), len(rest))
        assert [line for line in rest[:end] if line.startswith("USER")] == ["USER 10001:10001"]
    installs = [line for line in lines if "pip install" in line and "'." in line]
    assert installs
    assert all("--constraint constraints.txt" in line for line in installs)
    assert "--extra-index-url" not in "".join(lines), "a package of the same name there would be taken"
    for name in ("build-cpu", "build-cuda"):
        stage = lines[lines.index(f"FROM needs AS {name}") :]
        assert stage.index("COPY smscale ./smscale") > stage.index(
            next(line for line in stage if "--constraint" in line)
        )


def test_job_goes_on_after_what_may_pass_and_a_busy_scheduler_is_not_ended() -> None:
    held = {one.values[0]["kind"]: one.values[0] for one in DOCUMENTS[:-1]}
    rules = held["Job"]["spec"]["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["Ignore"], "exit code 2 is also that of a store that does not answer"
    alive = held["DaskCluster"]["spec"]["scheduler"]["spec"]["containers"][0]["livenessProbe"]
    assert alive["timeoutSeconds"] * alive["failureThreshold"] >= 60


def test_batch_script_is_bash_and_says_what_it_lacks() -> None:
    script = DEPLOY / "slurm" / "run.sbatch"
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("run.sbatch: give a recipe")


def test_batch_script_refuses_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    own = {"SMSCALE_PYTHON": sys.executable, "SMSCALE_FOLDER": str(tmp_path / "own"), "SLURM_JOB_ID": "7"}
    small = {"SLURM_MEM_PER_CPU": "1000", "SLURM_CPUS_ON_NODE": "1"}
    recipe = Path(__file__).parent / "recipes" / "tiny.yaml"
    done = subprocess.run(
        ["bash", DEPLOY / "slurm" / "run.sbatch", recipe, "--set", "resources.memory_per_worker=1.5GiB"],
        env={**os.environ, **own, **small},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.endswith("need 3328M: sbatch --mem-per-cpu=3328M, or fewer tasks on a node\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", [DEPLOY / "slurm" / "run.sbatch", DEPLOY / "README.md"], ids=lambda path: path.name)
def test_what_is_not_encrypted_is_for_its_own_machine_alone(text: Path) -> None:
    lines = text.read_text()
    starts = len(re.findall(r"dask[ _.]scheduler -|dask[ _.]worker (?:-|tls)", lines))
    assert starts >= 2
    assert len(re.findall(r"no_pages\[@\]|\$pages", lines)) == starts
    assert "--no-dashboard --dashboard-address 127.0.0.1:0" in lines


def test_readme_names_only_what_is_there() -> None:
    text = (DEPLOY / "README.md").read_text()
    named = set(re.findall(r"deploy/[\w./-]*\w", text))
    assert named >= {"deploy/Dockerfile", "deploy/slurm/run.sbatch", "deploy/profiles/slurm.yaml"}
    for name in named:
        assert (DEPLOY.parent / name).exists(), name
