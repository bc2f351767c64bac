"""Tracking servers as real processes on loopback, and ports that only look like one."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

START = 240  # seconds, on a busy machine


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """An `mlflow server`, in a process group of its own.

    Args:
        store: Its store's URI.
        folder: Where its artifacts and its log lie.
        workers: Processes that answer.
    """

    def __init__(self, store, folder, workers=1):
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._log = folder / "server.log"
        self._environment = os.environ | {
            "MLFLOW_BACKEND_STORE_URI": store,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        self._command = [
            sys.executable, "-m", "mlflow", "server", "--port", str(self.port),
            "--artifacts-destination", str(folder / "artifacts"), "--workers", str(workers),
        ]  # fmt: skip

    def start(self):
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            await_health(self._process, self.port)
        except TimeoutError:
            self.kill()
            raise RuntimeError(self._log.read_text()) from None
        return self

    def kill(self):
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def await_health(process, port):
    """Wait until a server answers."""
    deadline = time.monotonic() + START
    while not _healthy(port):
        if time.monotonic() > deadline or process.poll() is not None:
            raise TimeoutError("no server came up")
        time.sleep(0.1)


def _healthy(port):
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
    except OSError:
        return False


@contextmanager
def hung_server():
    """The URI of a port that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def dead_port():
    """The address of a port where nobody listens."""
    return f"127.0.0.1:{free_port()}"
