"""The files in runs/cluster/ are valid, their commands exist, and jobs of Slurm resume."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner

from repa_pipe.cli import cli
from repa_pipe.config import TrainConfig
from repa_pipe.pipeline.artifacts.checkpoints import load_checkpoint
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.artifacts.run_record import read_run_record

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


# --- Slurm -------------------------------------------------------------------------------------------------------

# `sbatch`, as far as the scripts depend on it: a job runs a copy of the script in the folder that it was submitted
# from; the time limit is near when a test says so, which sends the signal of --signal to the batch shell alone; after
# `scontrol requeue`, the test starts the job again with the same arguments.


def directives(script):
    """Return the options of a batch script, from its `#SBATCH` lines."""
    lines = re.findall(r"^#SBATCH --(\S+)$", script.read_text(), re.MULTILINE)
    return dict(line.partition("=")[::2] for line in lines)


class Slurm:
    def __init__(self, folder):
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir(parents=True)
        self.requeued = folder / "requeued"
        self._command("scontrol", f'[ "$1 $2" = "requeue 42" ] && touch {self.requeued}')
        for name, module in (("torchrun", "torch.distributed.run"), ("repa-pipe", "repa_pipe.cli")):
            self._command(name, f'exec {sys.executable} -m {module} "$@"')

    def _command(self, name, body):
        (self.bin / name).write_text(f"#!/bin/sh\n{body}\n")
        (self.bin / name).chmod(0o755)

    def start(self, script, *args, **variables):
        """Start a job, or start it again."""
        self.requeued.unlink(missing_ok=True)
        copied = self.folder / "slurm_script"
        shutil.copy(script, copied)
        environment = {"PATH": f"{self.bin}:{os.environ['PATH']}", "SLURM_JOB_ID": "42", "OMP_NUM_THREADS": "1"}
        mode = "a" if directives(script)["open-mode"] == "append" else "w"
        with (self.folder / "log").open(mode) as log:
            return subprocess.Popen(
                ["bash", copied, *args],
                cwd=self.folder,
                env=os.environ | environment | variables,
                stdout=log,
                stderr=log,
            )

    def send(self, job, script):
        """Send the signal that Slurm sends before the time limit."""
        target, name, seconds = re.fullmatch(r"(B):(\w+)@(\d+)", directives(script)["signal"]).groups()
        assert (target, int(seconds) >= 300) == ("B", True)
        os.kill(job.pid, getattr(signal, f"SIG{name}"))

    def log(self):
        return (self.folder / "log").read_text()


@pytest.fixture
def slurm(tmp_path):
    return Slurm(tmp_path / "cluster")


@pytest.fixture
def config_of(make_store, tmp_path):
    store, _ = make_store()

    def config(**changes):
        options = {
            "store": str(store),
            "output_dir": str(tmp_path / "runs"),
            "exp_name": "run",
            "model": "SiT-T/2",
            "encoder_depth": 2,
            "projector_embed_dims": 32,
            "batch_size": 8,
            "mixed_precision": "fp32",
            "device": "cpu",
        }
        return TrainConfig(**options | changes)

    return config


def wait_for(condition, job):
    for _ in range(1200):
        if condition():
            return
        assert job.poll() is None, "the job has ended"
        time.sleep(0.1)
    raise AssertionError("nothing happened")


@pytest.mark.parametrize("name", ["slurm-train.sh", "slurm-ablate.sh"])
def test_batch_scripts_are_valid_and_return_to_the_queue(name):
    script = CLUSTER / name
    subprocess.run(["bash", "-n", script], check=True)
    options = directives(script)
    assert {"requeue", "signal", "open-mode", "time", "nodes"} <= options.keys()
    assert options["nodes"] == "1"


@pytest.mark.slow
def test_a_training_job_saves_a_checkpoint_before_its_time_limit_and_resumes_after_requeueing(slurm, config_of):
    script = CLUSTER / "slurm-train.sh"
    options = {"max_train_steps": 60, "checkpointing_steps": 7}
    config, whole = config_of(**options), config_of(exp_name="whole", **options)
    run = RunFolder(Path(config.output_dir) / "run")
    job = slurm.start(script, *config.flags(), SLURM_GPUS_ON_NODE="2")
    wait_for(run.checkpoints, job)
    slurm.send(job, script)
    assert job.wait(timeout=120) != 0, slurm.log()
    assert slurm.requeued.exists()
    stopped = int(run.last_checkpoint().stem)
    assert 7 < stopped < 60
    job = slurm.start(script, *config.flags(), SLURM_GPUS_ON_NODE="2")
    assert job.wait(timeout=120) == 0, slurm.log()
    assert not slurm.requeued.exists()
    sessions = read_run_record(run).sessions
    assert [(each.start_step, each.state) for each in sessions] == [(0, "stopped"), (stopped, "finished")]
    assert slurm.start(script, *whole.flags(), SLURM_GPUS_ON_NODE="2").wait(timeout=120) == 0
    one, other = (load_checkpoint(RunFolder(run.path.parent / name).last_checkpoint()) for name in ("whole", "run"))
    assert all(torch.equal(value, other["model"][name]) for name, value in one["model"].items())


@pytest.mark.slow
def test_a_canceled_job_saves_a_checkpoint_and_does_not_return_to_the_queue(slurm, config_of):
    config = config_of(max_train_steps=100_000, checkpointing_steps=100_000)
    run = RunFolder(Path(config.output_dir) / "run")
    job = slurm.start(CLUSTER / "slurm-train.sh", *config.flags(), SLURM_GPUS_ON_NODE="1")
    wait_for(run.record_file.exists, job)
    job.terminate()
    assert job.wait(timeout=120) != 0
    assert len(run.checkpoints()) == 1, slurm.log()
    assert not slurm.requeued.exists()


@pytest.mark.slow
def test_a_pod_that_is_evicted_saves_a_checkpoint_although_its_launcher_would_kill_slow_ranks(slurm, config_of):
    job = yaml.safe_load((CLUSTER / "kubernetes-train.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["terminationGracePeriodSeconds"] > 30  # as long as torchrun would wait
    config = config_of(max_train_steps=100_000, checkpointing_steps=100_000)
    run = RunFolder(Path(config.output_dir) / "run")
    command = [word.replace("--nproc-per-node gpu", "--nproc-per-node 2") for word in container["command"]]
    assert command != container["command"]
    path = {"PATH": f"{slurm.bin}:{os.environ['PATH']}"}
    process = subprocess.Popen([*command, config.kind, *config.flags()], env=os.environ | path)
    wait_for(run.record_file.exists, process)
    time.sleep(2.0)
    process.terminate()
    assert process.wait(timeout=60) == 1
    assert len(run.checkpoints()) == 1


@pytest.mark.slow
def test_a_job_that_fails_does_not_return_to_the_queue(slurm, config_of):
    job = slurm.start(CLUSTER / "slurm-train.sh", *config_of(batch_size=64).flags(), SLURM_GPUS_ON_NODE="1")
    assert job.wait(timeout=120) != 0
    assert "batch size 64 is larger than" in slurm.log()
    assert not slurm.requeued.exists()


SWEEP = """
[train]
model = "SiT-T/2"
encoder_depth = 2
projector_embed_dims = 32
batch_size = 4
mixed_precision = "fp32"
device = "cpu"
report_to = "none"
log_steps = 1
max_train_steps = 60
checkpointing_steps = 7
[grid]
seed = [0, 1, 2]
"""


@pytest.mark.slow
def test_an_array_executes_a_sweep_and_its_jobs_resume_after_requeueing(slurm, config_of):
    script, out = CLUSTER / "slurm-ablate.sh", slurm.folder / "out"
    (slurm.folder / "sweep.toml").write_text(SWEEP)
    args = ["sweep.toml", "--store", config_of().store, "--out", str(out)]
    array = {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "2"}
    job = slurm.start(script, *args, SLURM_ARRAY_TASK_ID="1", **array)
    first = RunFolder(out / "seed=0")
    wait_for(first.checkpoints, job)
    slurm.send(job, script)
    assert job.wait(timeout=120) != 0
    assert slurm.requeued.exists(), slurm.log()
    stopped = int(first.last_checkpoint().stem)
    assert 7 < stopped < 60
    for number in ("1", "2"):
        job = slurm.start(script, *args, SLURM_ARRAY_TASK_ID=number, **array)
        assert job.wait(timeout=300) == 0, slurm.log()
        assert not slurm.requeued.exists()
    sessions = read_run_record(first).sessions
    assert [(each.start_step, each.state) for each in sessions] == [(0, "stopped"), (stopped, "finished")]
    results = json.loads((out / "results.json").read_text())
    assert [(row["run"], row["step"]) for row in results["runs"]] == [(f"seed={seed}", 60) for seed in range(3)]
