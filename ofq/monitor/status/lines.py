"""Status of a study as plain lines, for logs, pipes and grep."""

from collections.abc import Iterator, Mapping

from ofq.monitor import span
from ofq.monitor.status.figures import duration, progress, significant, tally, words
from ofq.monitor.status.remaining import time_left
from ofq.monitor.status.runs import STATES, Row, RunStatus, StudyStatus
from ofq.runs.own_code import told

_NONE = "-"
_COLUMNS = ("study", "model", "bits", "method", "runs", *STATES, "percent", "steps/s", "left")


def lines(watch: StudyStatus) -> Iterator[str]:
    """Yield a line of column names and one per cell, then failures, runs by other code, totals."""
    statuses = watch.read()
    table = [_COLUMNS, *(_words(watch, row, statuses) for row in watch.rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        yield "  ".join(f"{word:{n}}" for word, n in zip(row, widths, strict=True)).rstrip()
    for name, status in statuses.items():
        if status.failure is not None:
            yield f"failed {name}: {status.failure.error}"
            log = watch.log(name)
            yield f"  log: {log if log.exists() else 'none'}; {status.failure.todo}"
        if status.changed:
            yield f"changed {name}: made by another version of {', '.join(status.changed)}"
    changed = {name: [*status.changed] for name, status in statuses.items() if status.changed}
    if changed:
        yield told(watch.grid.study, changed)
    counts, remaining = tally(statuses.values()), time_left(watch.runs, statuses)
    left = f"; {span.duration(remaining)} left" if remaining else ""
    yield f"{watch.grid.study}: {len(statuses)} runs: {words(counts, STATES)}{left}"


def _words(watch: StudyStatus, row: Row, statuses: Mapping[str, RunStatus]) -> tuple[str, ...]:
    mine = [statuses[run.id] for run in row.runs]
    now, counts = progress(mine), tally(mine)
    return (
        watch.grid.study,
        row.cell.model,
        row.cell.bits,
        row.cell.method,
        str(len(mine)),
        *(str(counts[state]) for state in STATES),
        f"{100 * now.share:.0f}" if now else _NONE,
        significant(now.rate) if now and now.rate else _NONE,
        duration(now.left) if now and now.left is not None else _NONE,
    )
