"""The ``ofq`` command in a terminal of its own."""

import os
import pty
import subprocess
import sys
from pathlib import Path


def start_in_terminal(
    *arguments: object, cwd: Path | None = None, columns: int = 120, lines: int | None = None
) -> "tuple[subprocess.Popen[bytes], int]":
    """Start the command; its process, and the descriptor that :func:`read_terminal` reads."""
    main, other = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(columns)}
    if lines is not None:
        environment["LINES"] = str(lines)
    process = subprocess.Popen(
        [sys.executable, "-m", "ofq", *map(str, arguments)],
        cwd=cwd, stdout=other, stderr=other, env=environment,
    )  # fmt: skip
    os.close(other)
    return process, main


def read_terminal(main: int, until: bytes | None = None) -> str:
    """What is shown, until something is, or until the end."""
    shown = b""
    while until is None or until not in shown:
        try:
            shown += os.read(main, 4096)
        except OSError:  # the terminal's other end is closed
            assert until is None, shown
            return shown.decode()
    return shown.decode()
