"""The further processes of a run on several devices, which its first process starts and watches.

They are set up as torchrun sets up its workers, but not by torchrun: that turns every exit code
into 1, ends its workers 30 s after a signal, whether or not they have saved, and dies of SIGUSR1
without them.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from ofq.errors import RunFailed, TryAgain

_LOOK = 0.5  # seconds between two looks at the helpers
_DYING = 10.0  # seconds that one may take to end after its connection broke, or it was killed
_GRACE = 20.0  # seconds that the first process has to notice by itself that one is gone

_IN_GOOD_ORDER = (0, TryAgain.exit_code, RunFailed.exit_code)


class HelperLost(TryAgain):
    """A helper was killed; the run goes on from its last checkpoint."""


class Helpers:
    """The processes of ranks 1, 2, … on this machine.

    They keep no record and no state of their own, so they may be killed at any time; they end by
    themselves when the first process does.

    Args:
        run_id: The run.
        count: Number of the run's processes, the first one included.
        leased: Descriptors that hold the lease of the GPUs, so that it lasts until the last of them
            ends.
        on_loss: Told, from a thread, why the first process is about to be ended, when a helper was
            lost and the first process still waits for it.
    """

    def __init__(
        self, run_id: str, count: int, leased: Sequence[int], on_loss: Callable[[str], None]
    ) -> None:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        self._on_loss = on_loss
        self._over = threading.Event()
        # it finds a free port, and has it from then on
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        shared = {
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is there, nobody need open it
        }
        command = [sys.executable, "-m", "ofq", "assist", run_id, "--devices", str(count)]
        self._processes = [
            subprocess.Popen(
                command,
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.PIPE,  # which closes when this process ends, however it does
                pass_fds=leased,
                start_new_session=True,  # a terminal's Ctrl+C is for this process
            )
            for rank in range(1, count)
        ]
        os.environ.update(shared, RANK="0", LOCAL_RANK="0")
        threading.Thread(target=self._watch, daemon=True, name="helpers").start()

    def loss(self) -> Exception | None:
        """What became of the first helper that didn't end in good order, if there is one."""
        for rank, process in enumerate(self._processes, 1):
            code = process.poll()
            if code is None or code in _IN_GOOD_ORDER:
                continue
            if code < 0:
                return HelperLost(f"process {rank} was killed by {signal.Signals(-code).name}")
            return RuntimeError(f"process {rank} ended with exit code {code}")
        return None

    def awaited_loss(self) -> Exception | None:
        """The same after a connection broke, which may be before its process has ended."""
        until = time.monotonic() + _DYING
        while (loss := self.loss()) is None and time.monotonic() < until and self._any_lives():
            time.sleep(_LOOK / 10)
        return loss

    def _any_lives(self) -> bool:
        return any(process.poll() is None for process in self._processes)

    def end(self) -> None:
        """End them all, but for those that a file system or a device doesn't let go."""
        self._over.set()
        for process in self._processes:
            process.kill()
        until = time.monotonic() + _DYING
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))

    def _watch(self) -> None:
        """A process that waits for a lost one in NCCL may wait for ever; end it instead."""
        while not self._over.wait(_LOOK):
            loss = self.loss()
            if loss is not None and not self._over.wait(_GRACE):
                try:
                    self._on_loss(str(loss))
                    print(f"ended, since {loss}", file=sys.stderr, flush=True)
                finally:  # whatever a full disk says to that
                    os._exit(TryAgain.exit_code)


@contextmanager
def helpers(
    run_id: str, count: int, leased: Sequence[int], on_loss: Callable[[str], None]
) -> Iterator[None]:
    """Have helpers while the first process trains.

    Args:
        run_id: The run.
        count: Number of the run's processes, the first one included.
        leased: As of :class:`Helpers`.
        on_loss: As of :class:`Helpers`.

    Raises:
        HelperLost: One of them was killed.
        RuntimeError: One of them failed.
    """
    from ofq.training.devices import OthersGone

    started = Helpers(run_id, count, leased, on_loss)
    try:
        yield
    except OthersGone as broken:
        raise started.awaited_loss() or broken from None
    finally:
        started.end()


def end_with_first() -> None:
    """In a helper: end when the first process ends, even if that is killed."""

    def listen() -> None:
        sys.stdin.buffer.read()
        os._exit(TryAgain.exit_code)

    threading.Thread(target=listen, daemon=True, name="first process").start()
