"""Several runs in one command: a process for each, forked from one that has imported torch.

A forked process is as a fresh one, only sooner: torch's random numbers begin anew, and no GPU is in
use. A run ends with the same weights, and its memory is freed with its process; one that is killed
takes no other with it.
"""

import os
import signal
import sys
import time
from collections.abc import Sequence

from ofq.errors import TryAgain
from ofq.runs.provenance import code_sha256
from ofq.starting import started
from ofq.stopping import StopRequest, passed

_POLL = 0.2  # seconds between two looks at the process of a run
_KILLED = 128  # a shell's exit code for a process that a signal ended, less the signal's number


def fork_for_each(run_ids: Sequence[str], stop: StopRequest, deadline: float | None) -> str:
    """Fork a process for each run, one after the other, and return the run's id there.

    The first process waits for them and passes a stop request on. It exits with 0 after the last
    run; or, as soon as a run doesn't end well, with the exit code of that one.

    Args:
        run_ids: The runs.
        stop: The stop request, which listens to signals.
        deadline: Time by which the last run must have ended, by ``time.monotonic``.

    Raises:
        SystemExit: This is the first process, and the runs have ended.
        TryAgain: This is the first process; a stop is requested between two runs, or the code has
            changed since it was imported.
    """
    import ofq.runs.job
    import ofq.training.build  # noqa: F401 - with all that it imports

    started()
    code = code_sha256()
    for done, run_id in enumerate(run_ids):
        left = f"`ofq train {' '.join(run_ids[done:])}` goes on from here"
        cause = stop.cause or ("the time limit" if passed(deadline) else None)
        if cause is not None:
            raise TryAgain(f"stopped by {cause}; {left}")
        if code_sha256() != code:
            raise TryAgain(f"the code has changed since this command began; {left}")
        sys.stdout.flush()
        sys.stderr.flush()
        first = os.getpid()
        process = os.fork()
        if process == 0:
            stop.follow(first)
            return run_id
        status = _wait(process, stop)
        if status < 0:
            name = signal.Signals(-status).name
            print(f"{run_id}: its process was killed by {name}; {left}", file=sys.stderr)
            raise SystemExit(_KILLED - status)
        if status:
            raise SystemExit(status)
    raise SystemExit(0)


def _wait(process: int, stop: StopRequest) -> int:
    """Wait for a process, and pass a stop request on to it.

    Returns:
        Its exit code; the negative number of the signal that killed it.
    """
    asked = False
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if stop.cause is not None and not asked:
            os.kill(process, signal.Signals[stop.cause])
            asked = True
        time.sleep(_POLL)
