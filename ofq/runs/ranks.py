"""Start and supervise ranks 1 to N - 1 of a multi-device run.

torch's own starter (``torch.distributed.elastic.multiprocessing`` of 2.13, tried) hands on no
descriptors, so the GPUs' lease would not cover the ranks, replaces rank 0's handlers of SIGTERM and
SIGINT, and leaves the ranks running when rank 0 is killed. When one rank exits with 75, it ends the
others by SIGTERM, and 30 s later by SIGKILL, whether or not they have saved.
"""

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from ofq.errors import RunFailed, TryAgain

_POLL = 0.5  # seconds between two polls of the ranks
_DYING = 10.0  # seconds that a rank may take to end after its connection broke, or it was killed
_GRACE = 20.0  # seconds that rank 0 has to notice by itself that another is lost

_IN_GOOD_ORDER = (0, TryAgain.exit_code, RunFailed.exit_code)


class RankLost(TryAgain):
    """Error: a rank was killed, or ended before training began; the last checkpoint is valid."""


class Ranks:
    """Processes of ranks 1 to N - 1 on this machine; this process becomes rank 0.

    They write no record and keep no state, so they may be killed at any time; they end by
    themselves when rank 0 does.

    Args:
        run_id: The run.
        count: Number of ranks N.
        leased: Descriptors that hold the lease of the GPUs; the ranks inherit them, so that the
            lease lasts until the last rank ends.
        on_loss: Called from a thread with the reason, before the thread ends a rank 0 that still
            waits for a lost rank.
    """

    def __init__(
        self, run_id: str, count: int, leased: Sequence[int], on_loss: Callable[[str], None]
    ) -> None:
        from ofq.training.rendezvous import serve

        self._on_loss = on_loss
        self._over = threading.Event()
        self._store = serve("127.0.0.1", 0)  # binds a free port, and keeps it
        shared = {
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is open already
            "TORCHELASTIC_RUN_ID": secrets.token_hex(),  # separates its keys from other runs'
        }
        command = [sys.executable, "-m", "ofq", "assist", run_id]
        command += ["--devices", str(count), "--parent", str(os.getpid())]
        self._processes = [
            subprocess.Popen(
                command,
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.DEVNULL,
                pass_fds=leased,
                start_new_session=True,  # a terminal's Ctrl+C is for this process
            )
            for rank in range(1, count)
        ]
        os.environ.update(shared, RANK="0", LOCAL_RANK="0")
        threading.Thread(target=self._watch, daemon=True, name="ranks").start()

    def loss(self) -> Exception | None:
        """Return the error for the first rank that ended abnormally; None if none did."""
        for rank, process in enumerate(self._processes, 1):
            code = process.poll()
            if code is None or code in _IN_GOOD_ORDER:
                continue
            if code < 0:
                return RankLost(f"rank {rank} was killed by {signal.Signals(-code).name}")
            return RuntimeError(f"rank {rank} ended with exit code {code}")
        return None

    def awaited_loss(self) -> Exception | None:
        """Return :meth:`loss` after a broken connection, waiting for the lost process to end."""
        until = time.monotonic() + _DYING
        while (loss := self.loss()) is None and time.monotonic() < until and self._any_lives():
            time.sleep(_POLL / 10)
        return loss

    def check(self) -> None:
        """Raise if any rank has ended; to be called before training begins."""
        if any(process.poll() is not None for process in self._processes):
            raise self.loss() or RankLost("a rank left before training began")

    def end(self) -> None:
        """Kill all ranks with their loader workers, and wait a limited time for their end."""
        self._over.set()
        for process in self._processes:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        until = time.monotonic() + _DYING
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))

    def _any_lives(self) -> bool:
        return any(process.poll() is None for process in self._processes)

    def _watch(self) -> None:
        """End this process if it waits for a lost rank in NCCL, which has no time limit."""
        while not self._over.wait(_POLL):
            loss = self.loss()
            if loss is not None and not self._over.wait(_GRACE):
                try:
                    self._on_loss(str(loss))
                    print(f"ended, since {loss}", file=sys.stderr, flush=True)
                finally:  # even if a full disk makes these fail
                    os._exit(TryAgain.exit_code)


@contextmanager
def ranks(
    run_id: str, count: int, leased: Sequence[int], on_loss: Callable[[str], None]
) -> Iterator[Ranks]:
    """Run ranks 1 to N - 1 while the body of the ``with`` statement trains as rank 0.

    Args:
        run_id: The run.
        count: Number of ranks N.
        leased: As for :class:`Ranks`.
        on_loss: As for :class:`Ranks`.

    Raises:
        RankLost: A rank was killed.
        RuntimeError: A rank failed.
    """
    from ofq.training.rendezvous import OthersGone

    started = Ranks(run_id, count, leased, on_loss)
    try:
        yield started
    except OthersGone as broken:
        raise started.awaited_loss() or broken from None
    finally:
        started.end()
