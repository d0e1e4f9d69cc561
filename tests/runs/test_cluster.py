"""The files in runs/cluster/ are valid, and their commands exist."""

import shlex
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from repa_pipe.cli import cli

CLUSTER = Path(__file__).parents[2] / "runs/cluster"


def test_the_kuberay_job_runs_an_existing_command():
    job = yaml.safe_load((CLUSTER / "kuberay-job.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:2] == ["repa-pipe", "encode"]
    parsed = CliRunner().invoke(cli, [*words[1:], "--help"])
    assert parsed.exit_code == 0
    command = cli.commands["encode"]
    options = command.make_context("encode", words[2:]).params
    assert (options["ray"], options["device"], options["actors"]) == (True, "cuda", 8)
    cluster = job["spec"]["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_the_ray_cluster_defines_the_node_types_it_uses():
    cluster = yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text())
    assert cluster["head_node_type"] in cluster["available_node_types"]
    assert cluster["available_node_types"]["gpu"]["resources"]["GPU"] == 1


def test_the_ray_cluster_matches_rays_schema():
    jsonschema = pytest.importorskip("jsonschema")
    import json

    import ray

    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    jsonschema.validate(yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text()), schema)
