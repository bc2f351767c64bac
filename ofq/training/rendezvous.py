"""Rendezvous of the ranks of a run, with a time limit and interruptible waits."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from ipaddress import ip_address

from torch import distributed
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from ofq.errors import TryAgain, UserError

_PATIENCE = 300.0  # seconds in which all ranks must have joined
_POLL = 0.2  # seconds between two polls for them
_NETWORKS = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


class OthersGone(TryAgain):
    """Error: this rank can't reach the others of its run."""


def serve(host: str, port: int) -> TCPStore:
    """Open the store for the rendezvous of ranks.

    If the host is the loopback interface, only this machine can connect to it; torch's own
    listener accepts connections on every interface.

    Args:
        host: This machine's name for the ranks.
        port: Port to listen on; 0 for any free port.

    Raises:
        OthersGone: The port is in use.
    """
    try:
        if not _loopback(host):
            return TCPStore(host, port, is_master=True, wait_for_workers=False)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family) as listening:
            port = listening.getsockname()[1]
            return TCPStore(
                host,
                port,
                is_master=True,
                wait_for_workers=False,
                master_listen_fd=listening.detach(),
            )
    except (OSError, distributed.DistError) as error:
        raise OthersGone(f"the ranks can't meet at {host}, port {port}: {_line(error)}") from None


def join(backend: str, check: Callable[[], None]) -> None:
    """Join the process group of a run's ranks, by torchrun's environment variables.

    Args:
        backend: As for ``torch.distributed.init_process_group``.
        check: Called while this rank waits for others; raises to stop waiting.

    Raises:
        UserError: A variable is missing or isn't a number.
        OthersGone: The others didn't join in time, or have ended.
    """
    rank, count, port = (_number(name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    host = _variable("MASTER_ADDR")
    if _loopback(host) or os.environ.get("LOCAL_WORLD_SIZE") == str(count):
        loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        for variable in _NETWORKS:
            os.environ.setdefault(variable, loopback)
    until = time.monotonic() + _PATIENCE
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    with _rendezvous():
        if rank == 0 and not served:
            server: Store = serve(host, port)
        else:
            server = _reached(host, port, until, check)
        store = PrefixStore(_name(), server)
        store.set(f"rank {rank}", "")
        ranks = [f"rank {number}" for number in range(count)]
        while not store.check(ranks):
            absent = [name for name in ranks if not store.check([name])]
            _wait(f"{', '.join(absent)} didn't come", until, check)
        try:
            left = timedelta(seconds=max(1.0, until - time.monotonic()))
            distributed.init_process_group(
                backend, store=store, rank=rank, world_size=count, timeout=left
            )
        except ValueError as error:
            raise UserError(f"several ranks, but {error}") from None
    patient = distributed.constants.default_pg_timeout
    distributed.distributed_c10d._set_pg_timeout(patient)


def _reached(host: str, port: int, until: float, check: Callable[[], None]) -> Store:
    """Connect to the store; poll without torch, whose own connecting can't be interrupted."""
    while True:
        with suppress(OSError), socket.create_connection((host, port), timeout=1.0):
            break
        _wait(f"rank 0 isn't there at {host}, port {port}", until, check)
    return TCPStore(host, port, wait_for_workers=False)


def _wait(reason: str, until: float, check: Callable[[], None]) -> None:
    check()
    if time.monotonic() > until:
        raise OthersGone(
            f"the ranks of this run didn't meet within {_PATIENCE / 60:g} minutes: {reason}"
        )
    time.sleep(_POLL)


@contextmanager
def _rendezvous() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of the store, and of gloo
        raise OthersGone(f"the ranks of this run didn't meet: {_line(error)}") from None


def _name() -> str:
    """Return a prefix that separates this start's keys in a store from those of other starts."""
    variables = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
    return "/".join(["ofq", *(os.environ.get(name, "0") for name in variables)])


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _variable(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise UserError(f"several ranks, but the environment variable {name} isn't set")
    return value


def _number(name: str) -> int:
    value = _variable(name)
    if not value.isdecimal():
        raise UserError(f"several ranks, but {name} is {value!r}; expected a number from 0")
    return int(value)


def _line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) else None
    return text or str(error).partition("\n")[0]
