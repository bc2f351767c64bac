"""Notes in a run's folder on what was sent to MLflow, so that a trainer can report what it lacks.

The notes only inform. Mirrors query MLflow itself for its content.
"""

from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from ofq.atomic import write_json
from ofq.errors import UserError
from ofq.redact import redact_uri
from ofq.runs.folder import RunFolder
from ofq.runs.record import Damaged, read_object
from ofq.tracking.snapshot import Snapshot

_NOTE = "mirror.json"


@dataclass(frozen=True)
class Sent:
    """Note of the part of a run that was sent to one store.

    Attributes:
        run_id: The run's id in MLflow.
        epoch: The last epoch sent; -1 for none.
        content: Digest of the ended run, if all of it was sent, files included; else empty.
    """

    run_id: str = ""
    epoch: int = -1
    content: str = ""


def note_sent(folder: RunFolder, uri: str, sent: Sent) -> None:
    """Note the part sent to the store at a tracking URI; ignore a folder that can't be written."""
    with suppress(OSError):
        write_json(folder.path / _NOTE, _notes(folder) | {redact_uri(uri): asdict(sent)})


def lacking(folder: RunFolder, uri: str) -> str:
    """Describe what the store at a tracking URI lacks of a run; empty if it lacks nothing."""
    snapshot = Snapshot.take(folder)
    if snapshot is None:
        return ""
    sent, last = Sent(**_notes(folder).get(redact_uri(uri), {})), snapshot.last_epoch
    parts = []
    if sent.epoch < last:
        first = sent.epoch + 1
        parts.append(f"epoch {last}" if first == last else f"epochs {first} to {last}")
    if sent.content != snapshot.digest():
        parts.append("the final files")
    return " and ".join(parts)


def mlflow_runs(folder: RunFolder) -> list[str]:
    """Return the ids of the runs in MLflow that mirror a run folder, one per store."""
    return [note["run_id"] for note in _notes(folder).values() if note.get("run_id")]


def copy_run_ids(folder: RunFolder, copy: RunFolder) -> None:
    """Copy the ids of :func:`mlflow_runs` to a copy of a run folder, without the stores' addresses.

    Writes no note for a folder that was never mirrored.
    """
    ids = mlflow_runs(folder)
    if ids:
        notes = {f"store {n}": {"run_id": run_id} for n, run_id in enumerate(ids, 1)}
        write_json(copy.path / _NOTE, notes)


def check_notes(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """Read a folder's notes, by store; empty if there is no file of them.

    Raises:
        Damaged: They can't be read, or are invalid.
    """
    path = folder.path / _NOTE
    try:
        notes = read_object(path)
    except FileNotFoundError:
        return {}
    if not all(isinstance(note, dict) and _fits(note) for note in notes.values()):
        raise Damaged(path, "isn't what a mirror notes")
    return notes


def _fits(note: dict[str, Any]) -> bool:
    return all(
        key in (types := {"run_id": str, "epoch": int, "content": str})
        and type(value) is types[key]
        for key, value in note.items()
    )


def _notes(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """Read a folder's notes; warn of damaged ones, which affect nothing in MLflow."""
    try:
        return check_notes(folder)
    except UserError as damage:
        folder.warn(str(damage))
        return {}
