"""Start and supervise ranks 1 to N - 1 of a multi-device run.

torch's own starter (``torch.distributed.elastic.multiprocessing`` of 2.13, tried) hands on no
descriptors, so the GPUs' lease would not cover the ranks, takes SIGTERM and SIGINT away from the
first process, and leaves the ranks running when that is killed. When one rank exits with 75, it
ends the others by SIGTERM, and 30 s later by SIGKILL, whether or not they have saved.
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

_LOOK = 0.5  # seconds between two looks at the ranks
_DYING = 10.0  # seconds that one may take to end after its connection broke, or it was killed
_GRACE = 20.0  # seconds that the first process has to notice by itself that one is gone

_IN_GOOD_ORDER = (0, TryAgain.exit_code, RunFailed.exit_code)


class RankLost(TryAgain):
    """A rank was killed, or left before training began; the last checkpoint is good."""


class Ranks:
    """The processes of ranks 1, 2, … on this machine; this process becomes rank 0.

    They keep no record and no state of their own, so they may be killed at any time; they end by
    themselves when the first process does.

    Args:
        run_id: The run.
        count: Number of the run's processes, the first one included.
        leased: Descriptors that hold the lease of the GPUs, so that it lasts until the last of them
            ends.
        on_loss: Called from a thread with the reason, before it ends a first process that still
            waits for a lost rank.
    """

    def __init__(
        self, run_id: str, count: int, leased: Sequence[int], on_loss: Callable[[str], None]
    ) -> None:
        from ofq.training.meeting import serve

        self._on_loss = on_loss
        self._over = threading.Event()
        self._store = serve("127.0.0.1", 0)  # it finds a free port, and has it from then on
        shared = {
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is there, nobody need open it
            "TORCHELASTIC_RUN_ID": secrets.token_hex(),  # apart from the keys of anyone else
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
        """Return the error to raise for the first rank that did not end in good order, if any."""
        for rank, process in enumerate(self._processes, 1):
            code = process.poll()
            if code is None or code in _IN_GOOD_ORDER:
                continue
            if code < 0:
                return RankLost(f"rank {rank} was killed by {signal.Signals(-code).name}")
            return RuntimeError(f"rank {rank} ended with exit code {code}")
        return None

    def awaited_loss(self) -> Exception | None:
        """Return the same after a connection broke, which may be before its process has ended."""
        until = time.monotonic() + _DYING
        while (loss := self.loss()) is None and time.monotonic() < until and self._any_lives():
            time.sleep(_LOOK / 10)
        return loss

    def check(self) -> None:
        """Raise if a rank has ended, in whatever order: before training begins, none may."""
        if any(process.poll() is not None for process in self._processes):
            raise self.loss() or RankLost("a rank left before training began")

    def end(self) -> None:
        """End them all with their loader workers, except those that the kernel does not let go."""
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
        """End a process that waits for a lost rank in NCCL, which it may do for ever."""
        while not self._over.wait(_LOOK):
            loss = self.loss()
            if loss is not None and not self._over.wait(_GRACE):
                try:
                    self._on_loss(str(loss))
                    print(f"ended, since {loss}", file=sys.stderr, flush=True)
                finally:  # whatever a full disk says to that
                    os._exit(TryAgain.exit_code)


@contextmanager
def ranks(
    run_id: str, count: int, leased: Sequence[int], on_loss: Callable[[str], None]
) -> Iterator[Ranks]:
    """Have the further ranks while the first process trains.

    Args:
        run_id: The run.
        count: Number of the run's processes, the first one included.
        leased: As of :class:`Ranks`.
        on_loss: As of :class:`Ranks`.

    Raises:
        RankLost: One of them was killed.
        RuntimeError: One of them failed.
    """
    from ofq.training.meeting import OthersGone

    started = Ranks(run_id, count, leased, on_loss)
    try:
        yield started
    except OthersGone as broken:
        raise started.awaited_loss() or broken from None
    finally:
        started.end()
