"""The `ofq` command in a process of its own."""

import subprocess
import sys
from pathlib import Path
from typing import Any


def run_ofq(folder: Path, *arguments: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run it in a folder; what it left with and printed."""
    command = [sys.executable, "-m", "ofq", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, **options)
