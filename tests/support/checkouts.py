"""Checkouts whose jobs go to a cluster, with studies of seconds."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.cluster import Cluster

ROOT = Path(__file__).parents[2]

STUDY = """
title: A study
description: For tests.
recipe: {name}
models: [{model}]
bits: [{bits}]
methods: [{methods}]
seeds: [{seeds}]
figures: [{figure}]
"""
TOY = """
dataset: toy_regression
models: [{model}]
stages:
  qat: {{epochs: {epochs}, batch_size: 16, optimizer: sgd, lr: 0.05, min_lr: 0.05}}
resources:
  qat: {{{resources}}}
"""
DIGITS = """
dataset: digits
models: [micro_deit_patch2_8]
stages:
  fp: {epochs: 2, batch_size: 64, lr: 2.0e-3}
  qat: {epochs: 2, batch_size: 64, lr: 1.0e-3, distillation: true}
resources:
  fp: {gpu: 1}
  qat: {gpu: 1}
"""
METHODS = """
lsq: {label: LSQ, weight_quantizer: lsq}
statsq: {label: StatsQ, weight_quantizer: statsq}
gated: {label: Waits for its gate, weight_quantizer: gated, module: gated}
slow: {label: Takes a minute and more, weight_quantizer: slow, module: slow}
broken: {label: Fails when it trains, weight_quantizer: broken, module: broken}
"""
# A run of this method notes what its job was given, and goes on when the test opens the gate.
GATED = """
import json, os, time
from pathlib import Path
import ofq

@ofq.register_weight_quantizer("gated")
class Gated(ofq.StatsQ):
    def forward(self, weight):
        facts = {key: os.environ.get(key) for key in ("CUDA_VISIBLE_DEVICES", "SLURMD_NODENAME")}
        name = f"seen-{os.environ['SLURM_JOB_ID']}"
        if not Path(f"{name}.json").exists():
            Path(f"{name}.tmp").write_text(json.dumps(facts))
            os.replace(f"{name}.tmp", f"{name}.json")  # the test reads all of it or nothing
        while not Path("gate").exists():
            time.sleep(0.1)
        return super().forward(weight)
"""
SLOW = """
import time
from pathlib import Path
import ofq

@ofq.register_weight_quantizer("slow")
class Slow(ofq.StatsQ):
    def forward(self, weight):
        if not Path("fast").exists():
            time.sleep(0.5)
        return super().forward(weight)
"""
BROKEN = """
import ofq

@ofq.register_weight_quantizer("broken")
class Broken(ofq.StatsQ):
    def forward(self, weight):
        raise RuntimeError("this quantizer is broken")
"""


def _heed_interrupts() -> None:
    """Undo what a shell does to its background jobs, tests among them: they ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Checkout:
    """A checkout with studies of its own, whose jobs go to a cluster."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder = folder
        self.cluster = cluster
        self._started: list[subprocess.Popen[str]] = []
        for name in ("workflow", "profiles", "slurm"):
            shutil.copytree(ROOT / name, folder / name)
        shutil.copy(ROOT / "Snakefile", folder)
        profile = folder / "slurm/config.yaml"  # whose studies aren't in this checkout
        profile.write_text(re.sub(r"(?m)^config: .*studies=.*\n", "", profile.read_text()))
        self.write("config/methods/methods.yaml", METHODS)
        self.write("gated.py", GATED)
        self.write("slow.py", SLOW)
        self.write("broken.py", BROKEN)

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def digits(self, name: str) -> None:
        """Define a study of digits: a full-precision run, and one that builds on it."""
        self.write(f"config/recipes/{name}.yaml", DIGITS)
        self._study(name, model="micro_deit_patch2_8", bits="W2A2", methods="lsq", seeds="0",
                    figure="accuracy")  # fmt: skip

    def toy(
        self,
        name: str,
        resources: str,
        methods: str = "lsq",
        seeds: int = 1,
        model: str = "toy_regression_1",
    ) -> None:
        """Define a study of the toy regression: runs of seconds, which need no others."""
        recipe = TOY.format(model=model, epochs=2, resources=resources)
        self.write(f"config/recipes/{name}.yaml", recipe)
        self._study(name, model=model, bits="W3A32", methods=methods,
                    seeds=", ".join(map(str, range(seeds))), figure="loss")  # fmt: skip

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the workflow, as a user does, but with a shorter interval between looks."""
        command = [sys.executable, "-m", "snakemake", "--profile", "slurm"]
        command += ["--slurm-init-seconds-before-status-checks", "2", *arguments]
        environment = self.cluster.environment | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, cwd=self.folder, env=environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=_heed_interrupts,
        )  # fmt: skip
        self._started.append(process)
        return process

    def run(self, *arguments: str) -> tuple[int, str]:
        """Run the workflow to its end: its exit status, and what it printed."""
        process = self.start(*arguments)
        output, _ = process.communicate()
        return process.returncode, output

    def runs(self, study: str) -> list[str]:
        """A study's runs."""
        command = [sys.executable, "-m", "ofq", "runs", study]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=True)
        return [line.split()[0] for line in done.stdout.splitlines() if line.strip()]

    def submit_to_two_nodes(self, run: str) -> None:
        """Submit a run's training with a process on each node, as a user does."""
        command = ["sbatch", "--nodes=2", "--ntasks-per-node=1", "slurm/several-nodes.sh", run]
        # the nodes' names mean nothing to the network: both are this machine
        network = {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        environment = self.cluster.environment | network
        subprocess.run([*command, "--no-track"], cwd=self.folder, env=environment, check=True)

    def train_here(self, run: str) -> None:
        """Train a run at once, without workflow and cluster."""
        command = [sys.executable, "-m", "ofq", "train", run, "--no-track"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=self.folder, env=environment, check=True)

    def _study(self, name: str, **values: str) -> None:
        self.write(f"config/studies/{name}.yaml", STUDY.format(name=name, **values))
        self.write("config/config.yaml", f"studies: [{name}]\n")

    def clear(self) -> None:
        """End the workflows that were started here, and all jobs."""
        for process in self._started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        self.cluster.clear()

    def events(self) -> list[str]:
        """What happened to the only run so far, as its record has it."""
        [path] = [*self.folder.glob("results/runs/*/*/*/events.jsonl")] or [Path(os.devnull)]
        return [json.loads(line)["event"] for line in path.read_text().splitlines()]

    def results(self) -> list[Path]:
        """The results so far."""
        return sorted(self.folder.glob("results/runs/*/*/*/result.json"))
