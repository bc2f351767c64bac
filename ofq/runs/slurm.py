"""Short jobs on a Slurm cluster by ``srun``, which waits and reports their end at once."""

import shlex
from collections.abc import Mapping
from typing import Any

# a resource, under the name that Snakemake's Slurm executor reads too, and srun's option
_OPTIONS = {
    "slurm_account": "--account",
    "slurm_partition": "--partition",
    "qos": "--qos",
    "constraint": "--constraint",
    "runtime": "--time",
    "mem_mb": "--mem",
}


def srun(resources: Mapping[str, Any], threads: int, comment: str) -> str:
    """Return the prefix that makes a command run as a job of its own, on one node.

    Args:
        resources: The job's resources, including the site's ``default-resources``.
        threads: Number of CPU cores.
        comment: Comment of the job, shown by ``squeue``.

    >>> srun({"runtime": 10, "mem_mb": 1500, "slurm_partition": "cpu"}, 1, "digits/run")
    'srun --quit-on-interrupt --job-name=ofq --nodes=1 --ntasks=1 --cpus-per-task=1 \
--comment=digits/run --partition=cpu --time=10 --mem=1500'
    """
    options = {
        "--job-name": "ofq",
        "--nodes": 1,
        "--ntasks": 1,
        "--cpus-per-task": threads,
        "--comment": comment,
    }
    for name, option in _OPTIONS.items():
        if (value := resources.get(name)) is not None:
            options[option] = value
    words = [f"{option}={shlex.quote(str(value))}" for option, value in options.items()]
    extra = str(resources.get("slurm_extra") or "")
    return " ".join(["srun", "--quit-on-interrupt", *words, extra]).strip()
