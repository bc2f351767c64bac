"""Errors of compilers that were interrupted while a training compiled."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ofq.errors import TryAgain
from ofq.stopping import Interrupted, StopRequest


@contextmanager
def interruptible(stop: StopRequest) -> Iterator[None]:
    """Convert errors of interrupted compilers, which are no failures of the run.

    Args:
        stop: The stop request.

    Raises:
        Interrupted: A stop was requested; its signal may have killed compilers too.
        TryAgain: A compiler was killed, or a killed process left an incomplete compiled header,
            which is removed.
        OSError: Torch's cache can't be written.
    """
    try:
        yield
    except torch._dynamo.exc.BackendCompilerFailed as error:
        if stop.cause is not None:
            raise Interrupted(stop.cause) from error
        if isinstance(error.inner_exception, OSError):
            raise error.inner_exception from None
        if "Killed signal terminated program" in str(error):
            raise TryAgain("a compiler was killed, perhaps for want of memory") from error
        match = re.search(r" -include (\S+)", str(error))
        if match is None or "cannot read PCH file" not in str(error):
            raise
        header = Path(f"{match[1]}.gch")
        header.unlink(missing_ok=True)
        raise TryAgain(
            f"{header}, in torch's cache, was left half-written by a process that was killed; it "
            "is removed"
        ) from error
