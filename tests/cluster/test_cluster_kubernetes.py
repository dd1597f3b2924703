"""The manifests hold to the published schemas, agree with each other, and share storage."""

import copy
import importlib
import re
import shlex
import tomllib
import typing
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

from glm_dist.train.settings import PretrainSettings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cluster/kubernetes"
SCHEMA = yaml.safe_load((Path(__file__).parent / "schemas/kuberay_v1.yaml").read_text())
MANIFESTS = sorted(FOLDER.glob("*.yaml"))


def documents(path):
    return list(yaml.safe_load_all(path.read_text()))


def load(name):
    [document] = documents(FOLDER / name)
    return document


def refusals(document):
    return list(jsonschema.Draft202012Validator(SCHEMA).iter_errors(document))


@pytest.fixture(params=["pretrain.rayjob.yaml", "serve.rayservice.yaml"])
def cluster(request):
    spec = load(request.param)["spec"]
    return spec.get("rayClusterSpec") or spec["rayClusterConfig"]


def pods(cluster):
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_the_schema_itself_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_every_manifest_holds_to_the_published_schema(path):
    for document in documents(path):
        best = jsonschema.exceptions.best_match(refusals(document))
        assert best is None, f"{'/'.join(map(str, best.absolute_path))}: {best.message}"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "backofLimit"), 3),
        (("spec", "backoffLimit"), "3"),
        (("spec", "submissionMode"), "HttpMode"),
        (("spec", "shutdownAfterJobFinishes"), False),
        (("spec", "rayClusterSpec", "authOptions"), {"mode": "tokens"}),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams"), {"num-cpus": 0}),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers"), []),
        (("spec", "rayClusterSpec", "workerGroupSpecs"), [{"groupName": "gpu"}]),
        (("apiVersion",), "ray.io/v1alpha1"),
    ],
)
def test_a_wrong_manifest_is_refused(path, value):
    document = copy.deepcopy(load("pretrain.rayjob.yaml"))
    *parents, last = path
    inner = document
    for key in parents:
        inner = inner[key]
    inner[last] = value
    assert refusals(document)


def test_clusters_have_token_authentication_and_the_pinned_ray(cluster):
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == ray.__version__


def test_every_node_mounts_the_shared_folder_as_its_home_and_runs_as_no_root(cluster):
    claim = load("home.pvc.yaml")["metadata"]["name"]
    for pod in pods(cluster):
        [container] = pod["containers"]
        home = {one["name"]: one["value"] for one in container["env"]}["GLM_DIST_HOME"]
        [mount] = [one for one in container["volumeMounts"] if one["mountPath"] == home]
        [volume] = [one for one in pod["volumes"] if one["name"] == mount["name"]]
        assert volume["persistentVolumeClaim"]["claimName"] == claim
        assert pod["securityContext"]["runAsNonRoot"]
        assert {one["name"] for one in container["volumeMounts"]} <= {
            one["name"] for one in pod["volumes"]
        }


def test_all_nodes_run_one_image_and_ask_for_no_more_than_their_limits(cluster):
    containers = [pod["containers"][0] for pod in pods(cluster)]
    assert len({container["image"] for container in containers}) == 1
    for container in containers:
        assert container["resources"]["requests"] == container["resources"]["limits"]


def test_a_lost_head_is_retried_and_a_finished_cluster_goes_away():
    spec = load("pretrain.rayjob.yaml")["spec"]
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"]


def test_the_job_asks_for_the_workers_that_the_cluster_has_and_leaves_row_tasks_a_processor():
    spec = load("pretrain.rayjob.yaml")["spec"]
    shell, flag, script = shlex.split(spec["entrypoint"])
    assert (shell, flag) == ("sh", "-c")
    overrides = dict(re.findall(r"(\S+)=(\S+)", script))
    [group] = spec["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    num_workers = int(overrides["workers.num_workers"])
    assert num_workers == group["replicas"] * limits["nvidia.com/gpu"]
    cpus = group["replicas"] * int(limits["cpu"])
    assert num_workers * PretrainSettings().workers.cpus_per_worker + 1 <= cpus
    for job in re.findall(r"python (\S+)", script):
        assert (ROOT / job).is_file()


def test_the_served_application_is_described_as_serve_expects():
    from ray.serve.schema import ServeDeploySchema

    text = load("serve.rayservice.yaml")["spec"]["serveConfigV2"]
    [application] = ServeDeploySchema.model_validate(yaml.safe_load(text)).applications
    module, name = application.import_path.split(":")
    builder = getattr(importlib.import_module(module), name)
    [(_, kind)] = list(typing.get_type_hints(builder).items())[:1]
    assert kind(**application.args).model == "runs/sample"


def test_the_image_has_a_target_for_processors_and_one_for_gpus():
    text = (ROOT / "cluster/Dockerfile").read_text()
    stages = re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE)
    assert {"cpu", "cuda"} <= set(stages)
    copied = re.findall(r"^COPY (.+) \./$", text, re.MULTILINE)
    assert all((ROOT / name).is_file() for line in copied for name in line.split())
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert f"FROM python:{python.removeprefix('>=')}-" in text
