"""What a run starts from: weights, files of the user's own, data, a teacher's kept answers."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ofq.attempt import run_folder
from ofq.errors import UserError
from ofq.study import Run, RunConfig, Workspace
from ofq.study.config import HUB
from ofq.tracking.folder import WEIGHTS, sha256


def hashes(workspace: Workspace, run: Run) -> dict[str, str]:
    """SHA-256 of each file that a run starts from or is taught by, by file or run."""
    found = {name: sha256(workspace.own_file(name)) for name in own_files(run.config)}
    for needed in run.needs():
        found[needed.id] = sha256(run_folder(workspace, needed).path / WEIGHTS)
    return found


def check_weights(workspace: Workspace, run: Run) -> None:
    """Make sure that the weights of the runs that a run builds on are those that they ended with.

    Raises:
        Damaged: They aren't.
    """
    for needed in run.needs():
        run_folder(workspace, needed).verify(WEIGHTS)


def own_files(config: RunConfig) -> list[str]:
    """The files of the user's own that a run starts from."""
    return [name for name in (config.checkpoint, config.pretrained) if name and name != HUB]


def check_files(workspace: Workspace, config: RunConfig) -> None:
    """Refuse files of the user's own that aren't weights, by their first bytes.

    Raises:
        UserError: It names what a file seems to be.
    """
    from ofq.training.weights import check_weights_file

    for name in own_files(config):
        check_weights_file(workspace.own_file(name))


def weights(workspace: Workspace, run: Run | None) -> Path | None:
    """The weights of a run that another one builds on."""
    return None if run is None else run_folder(workspace, run).path / WEIGHTS


def pretrained(workspace: Workspace, config: RunConfig) -> Path | None:
    """The file of pretrained weights that a config names, if it names one."""
    if config.pretrained in (None, HUB):
        return None
    return workspace.own_file(str(config.pretrained))


def checked_data(workspace: Workspace, run: Run, studies: list[str]) -> dict[str, Any]:
    """Check the data of a run, before anything of it is written.

    Args:
        workspace: The checkout.
        run: The run.
        studies: Those that it belongs to.

    Returns:
        What its record says of them: ``name``, numbers of examples, files or classes, and
        ``fingerprint``.

    Raises:
        UserError: They can't be had, or aren't what the recipe is for.
    """
    from ofq.training import data, readers
    from ofq.training.images import files_of

    config, name = run.config, {"name": run.config.dataset}
    files = files_of(workspace, run)
    if files is None:
        return name | data.fingerprint(config.dataset, config.model, config.seed)
    classes = workspace.recipe(workspace.study(studies[0]).recipe).classes
    splits: tuple[readers.SplitName, ...] = ("val",) if config.training is None else readers.SPLITS
    try:
        census = readers.examine(files.place, classes, *splits)
    except UserError as error:
        raise UserError(f"{workspace.data_source(config.dataset)}: {error}") from None
    return {**name, **asdict(census), **readers.fingerprint(files.place)}


def answers(workspace: Workspace, run: Run) -> Path | None:
    """The file of the teacher's answers, named after all that decides them; runs share it.

    Args:
        workspace: The checkout.
        run: A run whose attempt is on record, with what it is made from now.
    """
    config = run.config
    if config.training is None or not config.training.teacher.cached:
        return None
    record = run_folder(workspace, run).provenance()
    record = record["attempts"][-1].get("origin", record)
    teacher = run.teacher.id if run.teacher else str(config.pretrained)
    about = {
        "model": config.model,
        "weights": record["inputs"].get(teacher, teacher),
        "precision": config.training.teacher.precision,
        "data": record["data"]["fingerprint"],
        "images": config.training.images.model_dump() if config.training.images else None,
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return workspace.results / "teacher" / f"{config.model}-{digest[:12]}.npy"
