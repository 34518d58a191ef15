"""What a cluster would be given is what KubeRay, Ray and Serve accept, and what this repository has."""

import copy
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import adamatch_ray
from adamatch_ray.cli import parse_command_line
from adamatch_ray.config import load_config
from adamatch_ray.specs import STAGES

ROOT = Path(__file__).resolve().parents[1]
CLUSTER = ROOT / "cluster"
SCHEMA = yaml.safe_load((ROOT / "tests" / "data" / "kuberay.yaml").read_text())
VERSIONS = {"Deployment": "apps/v1", "Service": "v1"}
KUBERNETES = ("raycluster.yaml", "rayjobs.yaml", "rayjob-pipeline.yaml", "rayservice.yaml", "redis.yaml")


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def resources() -> list[dict[str, Any]]:
    return [document for name in KUBERNETES for document in documents(name)]


def check(resource: dict[str, Any]) -> None:
    """Raises jsonschema.ValidationError where KubeRay would refuse or ignore a field."""
    kind = resource["kind"]
    assert resource.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert resource["apiVersion"] == VERSIONS.get(kind, "ray.io/v1")
    for part, schema in (("metadata", "metadata"), ("spec", kind)):
        jsonschema.validate(resource[part], {**SCHEMA, "$ref": f"#/$defs/{schema}"})


def cluster_specs() -> list[dict[str, Any]]:
    keys = {"RayCluster": "", "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
    specs = [(r["spec"], keys[r["kind"]]) for r in resources() if r["kind"] in keys]
    return [spec.get(key) if key else spec for spec, key in specs if not key or key in spec]


@pytest.mark.parametrize("resource", resources(), ids=lambda r: f"{r['kind']}-{r['metadata']['name']}")
def test_a_manifest_is_what_kuberay_accepts(resource: dict[str, Any]) -> None:
    check(resource)


def test_a_misspelt_field_and_a_root_user_are_refused() -> None:
    good = documents("raycluster.yaml")[0]
    spoiled = copy.deepcopy(good)
    spoiled["spec"]["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        check(spoiled)
    spoiled = copy.deepcopy(good)
    spoiled["spec"]["headGroupSpec"]["template"]["spec"]["securityContext"]["runAsUser"] = 0
    with pytest.raises(jsonschema.ValidationError):
        check(spoiled)


def test_heads_do_no_work_and_gpus_are_on_gpu_nodes_only() -> None:
    specs = cluster_specs()
    assert len(specs) == 3
    for spec in specs:
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        for group in spec["workerGroupSpecs"]:
            (container,) = group["template"]["spec"]["containers"]
            has_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
            assert has_gpu == (group["groupName"] == "gpu")
            assert container["resources"]["limits"] == container["resources"]["requests"]
    service = next(r for r in resources() if r["kind"] == "RayService")["spec"]["rayClusterConfig"]
    assert service["gcsFaultToleranceOptions"]["redisAddress"].split(":")[0] == "adamatch-redis"


def test_the_paper_s_workers_fit_one_gpu_node() -> None:
    scale = load_config("mimic_cxr").scale
    gpu = documents("raycluster.yaml")[0]["spec"]["workerGroupSpecs"][0]
    limits = gpu["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert scale.workers <= int(limits["nvidia.com/gpu"])
    assert scale.workers * (scale.cpus_per_worker + 0.25 * scale.loaders) <= int(limits["cpu"])


def test_there_is_one_job_a_stage_and_each_one_parses() -> None:
    named = [document["spec"]["entrypoint"].split() for document in documents("rayjobs.yaml")]
    assert [words[1] for words in named] == [f"jobs/{spec.job}.py" for spec in STAGES.values()]
    named.append(documents("rayjob-pipeline.yaml")[0]["spec"]["entrypoint"].split())
    for words in named:
        assert words[0] == "python" and (ROOT / words[1]).is_file()
        command = parse_command_line(words[2:], "")
        assert command.root == "s3://BUCKET/mimic" and command.config.scale.workers == 8


def test_reports_are_named_where_images_are() -> None:
    """MIMIC-CXR-JPG has none."""
    for document in (documents("rayjobs.yaml")[0], documents("rayjob-pipeline.yaml")[0]):
        command = parse_command_line(document["spec"]["entrypoint"].split()[2:], "")
        assert command.config.data.path and command.config.data.reports


def test_versions_are_those_of_the_project() -> None:
    pinned = re.search(r"^ray==(\S+)$", (CLUSTER / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert {spec["rayVersion"] for spec in cluster_specs()} == {pinned[1]}
    files = [*KUBERNETES, "ray-up-a100.yaml", "Dockerfile", "README.md"]
    tags = {tag for name in files for tag in re.findall(r"adamatch-ray:(\S+)", (CLUSTER / name).read_text())}
    assert tags == {adamatch_ray.__version__}


def test_ray_up_accepts_its_cluster() -> None:
    import ray.autoscaler

    config = yaml.safe_load((CLUSTER / "ray-up-a100.yaml").read_text())
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    types = config["available_node_types"]
    assert config["head_node_type"] in types and types["head"]["resources"]["CPU"] == 0
    assert sum(kind.get("max_workers", 0) for kind in types.values()) == config["max_workers"]


def test_the_runtime_environment_is_one() -> None:
    from ray.runtime_env import RuntimeEnv

    values = yaml.safe_load((CLUSTER / "runtime-env.yaml").read_text())
    assert RuntimeEnv(**values).env_vars() == values["env_vars"]


def test_the_service_is_what_serve_accepts() -> None:
    from ray.serve.schema import ServeDeploySchema

    from serve.settings import Settings

    spec = next(r for r in resources() if r["kind"] == "RayService")["spec"]
    deployed = ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"]))
    (application,) = deployed.applications
    assert application.import_path == "serve:config"
    assert Settings(**application.args).root.startswith("s3://")


def test_a_login_shell_of_the_image_finds_its_programs() -> None:
    """`/etc/profile` sets a PATH of its own and then reads the folder beside it."""
    written = re.search(r"echo '(.+)' > /etc/profile\.d/\w+\.sh", (CLUSTER / "Dockerfile").read_text())
    assert written is not None
    shell = ["bash", "--noprofile", "--norc", "-c", f"PATH=/usr/local/bin:/usr/bin:/bin; {written[1]}; echo $PATH"]
    path = subprocess.run(shell, capture_output=True, text=True, check=True).stdout.strip()
    assert path == "/opt/adamatch/bin:/usr/local/bin:/usr/bin:/bin"


def test_the_image_is_pinned_small_and_without_root() -> None:
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    assert all(re.search(r":\d+\.\d+\.\d+", line) for line in lines if line.startswith("FROM"))
    assert [line for line in lines if line.startswith("USER")] == ["USER 1000:1000"] == lines[-1:]
    copied = [word for line in lines if line.startswith("COPY") and "--from" not in line
              for word in line.split()[1:-1] if not word.startswith("--")]  # fmt: skip
    kept = {line[1:] for line in (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"}
    assert set(copied) == kept and all((ROOT / name).exists() for name in copied)
