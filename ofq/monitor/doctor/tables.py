"""Checks of tables: no row missing or duplicated, and the final ones as they grew."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from ofq.errors import some
from ofq.monitor.doctor.examined import ExaminedRun
from ofq.monitor.doctor.finding import Finding, ok, problem, warning
from ofq.runs.folder import RESULT, TABLES, Table, same_rows
from ofq.runs.record import Damaged

_MOST_MISSING = 1000  # epochs that may be missing before a later one counts as misplaced

Rows = list[dict[str, Any]]

_KEYS: dict[Table, tuple[str, ...]] = {
    "metrics": ("epoch",),
    "layers": ("epoch", "layer", "role"),
    "trajectories": ("step", "weight"),
    "histograms": ("epoch", "role", "weight_bits"),
    "sign_changes": ("epoch", "role", "boundary_range"),
    "joint_flips": ("epoch", "layer"),
    "activations": ("epoch", "layer", "role"),
    "noise": ("step",),
}
_FIRST: dict[Table, int] = {
    "metrics": 0, "layers": 0, "sign_changes": 1, "joint_flips": 1,
    "activations": 1, "noise": 0,
}  # fmt: skip
"""First epoch or step of the tables that have each one; the others have only some."""


def check_tables(examined: ExaminedRun) -> Iterator[Finding]:
    """Check that each epoch, layer and recorded step has one row, up to the last one."""
    for table in TABLES:
        if examined.done:
            yield from _final(examined, table)
        elif (examined.path / f"{table}.jsonl").exists():
            yield from _growing(examined, table)


def faults(table: Table, rows: Rows) -> list[str]:
    """Return the faults of a table's rows: missing, duplicated, or without a valid key."""
    keys = _KEYS[table]
    found = Counter(tuple(_value(row.get(key)) for key in keys) for row in rows)
    most = len(rows) + _MOST_MISSING
    strange = [key for key in found if not (isinstance(key[0], int) and 0 <= key[0] <= most)]
    doubled = [key for key, count in found.items() if count > 1]
    known = found.keys() - set(strange)
    last = max((key[0] for key in known), default=-1)
    rest = {key[1:] for key in known}
    gapless = range(_FIRST[table], last + 1) if table in _FIRST else {key[0] for key in known}
    wanted = ((n, *parts) for n in gapless for parts in rest)
    missing = [key for key in wanted if key not in known]
    kinds = {"missing": missing, "standing twice": doubled, "without its place": strange}
    return [f"{_named(keys, found)} {kind}" for kind, found in kinds.items() if found]


def _value(value: Any) -> Any:
    """Return a value as a part of a row's key; a damaged row may have an unhashable one."""
    return value if isinstance(value, str | int | float | None) else repr(value)


def _growing(examined: ExaminedRun, table: Table) -> Iterator[Finding]:
    """Check a table of a run that isn't complete."""
    name = f"{table}.jsonl"
    torn, wrong = examined.folder.torn(name), faults(table, examined.folder.rows(table))
    for fault in wrong:
        yield problem(f"{name}: {fault}", examined.anew)
    if torn:
        yield warning(f"{name}: a line torn by a crash, which is left out", examined.train)
    if not torn and not wrong:
        yield ok(f"{name}: nothing missing, nothing twice")


def _final(examined: ExaminedRun, table: Table) -> Iterator[Finding]:
    """Check a table of a complete run."""
    name, rows = f"{table}.parquet", _parquet(examined, table)
    if rows is None:
        return  # the checks of the final files report it
    wrong = faults(table, rows)
    epochs = (examined.read(RESULT) or {}).get("epochs")
    last = rows[-1].get("epoch") if rows else None
    if table == "metrics" and epochs is not None and last != epochs:
        wrong.append(f"ends at epoch {last}, but {RESULT} tells of {epochs}")
    for fault in wrong:
        yield problem(f"{name}: {fault}", examined.anew)
    if not same_rows(rows, examined.folder.rows(table)):
        text = f"{table}.jsonl isn't as {name}, which is what reports are made from"
        yield warning(text, f"nothing: only {name} is read")
    elif not wrong:
        yield ok(f"{name}: nothing missing, nothing twice; as {table}.jsonl")


def _parquet(examined: ExaminedRun, table: Table) -> Rows | None:
    """Return a final table's rows; None if the run has none, or damaged ones."""
    try:
        record = examined.folder.record()
        if record is None or not record.has(f"{table}.parquet"):
            return None
        return record.written_table(table).to_pylist()
    except Damaged:
        return None


def _named(keys: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> str:
    pairs = [", ".join(f"{k} {v}" for k, v in zip(keys, row, strict=True)) for row in rows]
    return some([f"({pair})" if len(keys) > 1 else pair for pair in pairs])
