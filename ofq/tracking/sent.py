"""How far a run's mirrors are, noted in its folder, so that a trainer can say what MLflow lacks.

The note only informs. What is in MLflow is looked up there.
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
    """What has been sent of a run to one store.

    Attributes:
        run_id: The run's id in MLflow.
        epoch: The last epoch.
        content: The digest of the ended run all of which is there, files included.
    """

    run_id: str = ""
    epoch: int = -1
    content: str = ""


def note_sent(folder: RunFolder, uri: str, sent: Sent) -> None:
    """Note what has been sent to the store at a tracking URI, if the folder can be written."""
    with suppress(OSError):
        write_json(folder.path / _NOTE, _notes(folder) | {redact_uri(uri): asdict(sent)})


def lacking(folder: RunFolder, uri: str) -> str:
    """What the store at a tracking URI lacks of a run, in words; empty if nothing."""
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
    """Ids of the runs in MLflow that mirror a run folder, one per store."""
    return [note["run_id"] for note in _notes(folder).values() if note.get("run_id")]


def copy_run_ids(folder: RunFolder, copy: RunFolder) -> None:
    """Note in a copy of a run folder what :func:`mlflow_runs` says, without the stores' addresses.

    A folder that was never mirrored leaves no note.
    """
    ids = mlflow_runs(folder)
    if ids:
        notes = {f"store {n}": {"run_id": run_id} for n, run_id in enumerate(ids, 1)}
        write_json(copy.path / _NOTE, notes)


def check_notes(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """Read a folder's notes, by store; none if there is no file of them.

    Raises:
        Damaged: They can't be read.
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
    """The notes; none, with a warning, if they can't be read: what is in MLflow isn't lost."""
    try:
        return check_notes(folder)
    except UserError as damage:
        folder.warn(str(damage))
        return {}
