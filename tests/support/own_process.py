"""The ``ofq`` command in processes of their own, forked from one that has loaded torch already.

Loading it takes seconds, each time, where a test's own work takes less.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from ofq.cli import main, trainings

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(
    [
        "tests.support.fast_start",
        "torch._dynamo",
        "sklearn.model_selection",
        "ofq.runs.job",
        "ofq.training.build",
        "ofq.cli",
    ]
)


class Forked:
    """A command under way, with what :class:`subprocess.Popen` has of it.

    Args:
        folder: Where it runs.
        arguments: The command's.
        env: Its whole environment; this process's, if left out.
        entry: What to call; it finds the arguments in ``sys.argv``.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: object,
        env: Mapping[str, str] | None = None,
        entry: Callable[[], None] = main,
    ) -> None:
        self._printed = tempfile.TemporaryDirectory(prefix="ofq-")
        texts = [Path(self._printed.name) / name for name in ("out", "err")]
        words, given = [*map(str, arguments)], dict(os.environ if env is None else env)
        self._process = FORKSERVER.Process(target=_run, args=(entry, folder, words, given, texts))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """What it left with, the negative number of the signal that ended it, or None so far."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """See :attr:`returncode`."""
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        assert self.returncode is not None, "it didn't end in time"
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it printed, once it has ended."""
        self.wait(timeout)
        out, err = [(Path(self._printed.name) / name).read_text() for name in ("out", "err")]
        return out, err


def _run(
    entry: Callable[[], None],
    folder: Path,
    arguments: list[str],
    env: Mapping[str, str],
    texts: list[Path],
) -> None:
    for descriptor, path in enumerate(texts, 1):
        with path.open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    sys.argv = ["ofq", *arguments]
    sys.path[:0] = [str(folder), *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    method = multiprocessing.get_all_start_methods()[0]  # Python's default, not that of its parent
    multiprocessing.set_start_method(method, force=True)
    trainings._STARTED = time.monotonic()  # when the command was loaded, otherwise
    entry()


def run_ofq(
    folder: Path,
    *arguments: object,
    env: Mapping[str, str] | None = None,
    entry: Callable[[], None] = main,
) -> "subprocess.CompletedProcess[str]":
    """Run it to its end (:class:`Forked`); what it left with and printed."""
    process = Forked(folder, *arguments, env=env, entry=entry)
    out, err = process.communicate()
    return subprocess.CompletedProcess(arguments, process.wait(), out, err)


def working_in(folder: Path, word: str) -> list[int]:
    """Ids of the processes that work in a folder and have a word in their command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is somebody else's
            words = (process / "cmdline").read_bytes().split(b"\0")
            if word.encode() in words and (process / "cwd").samefile(folder):
                found.append(int(process.name))
    return found


def main_out_of_time() -> None:
    """As the command of :func:`run_ofq`: its time limit has passed when its training begins."""
    trainings._STARTED -= 60
    main()
