"""The real workflow in a checkout of a test."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def lay_workflow(checkout: Path) -> None:
    """Copy the workflow's files beside a ``config/``."""
    for name in ("Snakefile", "workflow", "profiles"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, checkout / name)


def snakemake(checkout: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run ``snakemake`` on two cores to its end; what it left with and printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "2", *arguments],
        cwd=checkout, env=os.environ | {"PATH": path}, capture_output=True, text=True,
    )  # fmt: skip
