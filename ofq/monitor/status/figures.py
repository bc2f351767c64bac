"""Numbers and words in a row of the status table."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ofq.monitor.status.runs import RunStatus


@dataclass(frozen=True)
class Progress:
    """Progress of a row's running runs.

    Attributes:
        share: Share of all of their steps that is done.
        rate: Mean steps per second of a run.
        left: Seconds until the last of them has made its steps.
    """

    share: float
    rate: float | None
    left: float | None


def progress(statuses: Iterable[RunStatus]) -> Progress | None:
    """Return the progress of the running ones; None before their first heartbeat."""
    running = [status for status in statuses if status.state == "running" and status.total]
    if not running:
        return None
    rates = [1 / status.pace for status in running if status.pace]
    return Progress(
        sum(status.step for status in running) / sum(status.total for status in running),
        sum(rates) / len(rates) if rates else None,
        max((status.left for status in running if status.left is not None), default=None),
    )


def tally(statuses: Iterable[RunStatus]) -> Counter[str]:
    """Count the runs in each state."""
    return Counter(status.state for status in statuses)


def words(counts: Mapping[str, int], states: Iterable[str]) -> str:
    """Format counts of some states, such as ``2 running, 1 failed``, without zeros."""
    return ", ".join(f"{counts[state]} {state}" for state in states if counts[state])


def duration(seconds: float) -> str:
    """Format a time as hours, minutes and seconds, such as ``51:03:04``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def significant(number: float) -> str:
    """Format a number to two or three digits, without an exponent: ``0.042``, ``7.5``, ``120``."""
    digits = 3 if number < 0.1 else 2 if number < 1 else 1 if number < 100 else 0
    return f"{number:.{digits}f}"
