"""The `ofq` command within this process, which saves loading MLflow each time."""

import io
import os
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from unittest import mock

from ofq.cli import main


def ofq(checkout, *arguments, **environment):
    """Run it in a checkout; what it left with and printed."""
    out, err = io.StringIO(), io.StringIO()
    with (
        chdir(checkout),
        mock.patch.dict(os.environ, environment),
        mock.patch.object(sys, "argv", ["ofq", *arguments]),
        mock.patch.object(sys, "path", list(sys.path)),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
            code = 0
        except SystemExit as left:
            code = left.code or 0
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())
