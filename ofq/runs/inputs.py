"""Inputs of a run: weights, user-supplied files, data, cached teacher logits."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ofq.config import Run, RunConfig, TrainedRun, Workspace
from ofq.config.datasets import DataFacts, facts_in
from ofq.config.run import CgaRun, QuantizedTraining
from ofq.config.schema import HUB
from ofq.errors import UserError
from ofq.runs.attempt import run_folder
from ofq.runs.folder import TRACKER, WEIGHTS, RunFolder, sha256

if TYPE_CHECKING:
    from ofq.training.data.source import Data


def hashes(workspace: Workspace, run: Run) -> dict[str, str]:
    """Return the SHA-256 of each weights file that a run or its teacher starts from."""
    digests = {name: sha256(workspace.own_file(name)) for name in own_files(run.config).values()}
    for needed in run.needs():
        digests[needed.id] = sha256(run_folder(workspace, needed).path / WEIGHTS)
    return digests


def check_weights(workspace: Workspace, run: Run) -> None:
    """Verify the files that a run takes from the runs that it builds on against their records.

    Raises:
        Damaged: A file isn't what its run wrote.
    """
    for needed in run.needs():
        run_folder(workspace, needed).verify(WEIGHTS)
    if tracker(workspace, run) is not None:
        assert run.parent is not None
        run_folder(workspace, run.parent).verify(TRACKER)


def own_files(config: RunConfig) -> dict[str, str]:
    """Return the user-supplied files that a run starts from, by the config's key."""
    named = {key: getattr(config, key, None) for key in ("checkpoint", "pretrained")}
    return {key: name for key, name in named.items() if name and name != HUB}


def missing_files(workspace: Workspace, config: RunConfig, study: str) -> Iterator[str]:
    """Yield a line for each user-supplied file of a run that isn't there, with its key."""
    path = workspace.study_path(study)
    recipe = workspace.recipe_path(workspace.study(study).recipe)
    keys = {
        "checkpoint": f"{path}: key 'checkpoints.{config.model}.{config.bits}'",
        "pretrained": f"{recipe}: key 'pretrained'",
    }
    for key, name in own_files(config).items():
        try:
            there = workspace.own_file(name, keys[key]).is_file()
        except UserError as error:
            yield str(error)
        else:
            if not there:
                yield f"{keys[key]} is '{name}': no such file; put it there, or correct the path"


def missing_data(workspace: Workspace, config: RunConfig) -> Iterator[str]:
    """Yield a line if the data of a run aren't where they are configured; read none of them."""
    try:
        if config.data.of_files:
            place = workspace.data_place(config.dataset)
            if place.layout == "hfds" and not Path(place.at).is_absolute():
                return  # a name of Hugging Face's hub
            path: Path | None = Path(place.at)
        else:
            path = array_place(workspace, config)
    except UserError as error:
        yield str(error)
        return
    if path is not None and not path.exists():
        source = workspace.data_source(config.dataset)
        yield f"{source} is '{path}': no such folder or file; give the place of {config.dataset}"


def check_files(workspace: Workspace, run: Run, console: Console) -> None:
    """Read the user-supplied weights that a run starts from, and print which part is used.

    Raises:
        UserError: A file can't be read, or holds no weights.
    """
    from ofq.training.weights import read_weights

    for name in own_files(run.config).values():
        read_weights(
            workspace.own_file(name),
            lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True),
        )


def weights(workspace: Workspace, run: Run | None) -> Path | None:
    """Return the weights file of a run that another one builds on; None without a run."""
    return None if run is None else run_folder(workspace, run).path / WEIGHTS


def tracker(workspace: Workspace, run: Run) -> Path | None:
    """Return the tracker's history of the QAT run that a CGA run continues.

    None for other runs, and if the QAT run was recorded by a version that kept none.
    """
    if not isinstance(run.config, CgaRun) or run.parent is None:
        return None
    folder = run_folder(workspace, run.parent)
    record = folder.record()
    return folder.path / TRACKER if record is not None and record.has(TRACKER) else None


def pretrained(workspace: Workspace, config: RunConfig) -> Path | None:
    """Return the file of pretrained weights that a config names; None if it names none."""
    name = getattr(config, "pretrained", None)
    return None if name in (None, HUB) else workspace.own_file(name)


def checked_data(workspace: Workspace, run: Run, studies: list[str]) -> DataFacts:
    """Check the data of a run, before any file of the run is written.

    Args:
        workspace: The checkout.
        run: The run.
        studies: The studies that it belongs to.

    Returns:
        The facts of the data that its record and its checkpoints keep.

    Raises:
        UserError: The data can't be read, don't fit the recipe, or aren't those of the runs and
            weights that this one builds on.
    """
    from ofq.training.data import readers
    from ofq.training.data import source as data
    from ofq.training.data.images import files_of

    config = run.config
    files = files_of(workspace, run)
    if files is None:
        facts = data.describe(config.dataset, arrays(workspace, config))
    else:
        recipe = workspace.recipe(workspace.study(studies[0]).recipe)
        classes = recipe.classes or config.data.classes
        splits = readers.SPLITS if isinstance(config, TrainedRun) else ("val",)
        try:
            readers.examine(files.place, classes, *splits)
            facts = readers.describe(config.dataset, files.place, *splits)
        except UserError as error:
            raise UserError(f"{workspace.data_source(config.dataset)}: {error}") from None
    _compare(workspace, run, facts)
    return facts


def _compare(workspace: Workspace, run: Run, facts: DataFacts) -> None:
    """Refuse data other than those of the runs, or with other classes than the weights."""
    from ofq.training.weights import recorded_facts

    for needed in run.needs():
        folder = run_folder(workspace, needed)
        reference = recorded_facts(folder.path / WEIGHTS) or recorded_data(folder)
        difference = facts.difference(reference) if reference else None
        if difference:
            raise UserError(
                f"{run.id}: its data aren't those of {needed.id}, which it builds on: "
                f"{difference}; put those back, or move {folder.path} away and train it again"
            )
    for name in own_files(run.config).values():
        reference = recorded_facts(workspace.own_file(name))
        difference = facts.difference(reference, images=False) if reference else None
        if difference:
            raise UserError(
                f"{run.id}: its data have other classes than those of {name}: {difference}"
            )


def recorded_data(folder: RunFolder) -> DataFacts | None:
    """Return the facts of the data of a run's newest attempt; None for records without them.

    Raises:
        UserError: The record is damaged.
    """
    record = folder.provenance()
    attempts = record.get("attempts") or [{}]
    data = attempts[-1].get("origin", record).get("data")
    return facts_in(data, str(folder.path / "provenance.json"))


def arrays(workspace: Workspace, config: RunConfig) -> "Data":
    """Load the in-memory data of a run.

    Raises:
        UserError: The data can't be read.
    """
    from ofq.training.data.source import load

    return load(
        config.dataset, config.model, config.seed, config.data, array_place(workspace, config)
    )


def array_place(workspace: Workspace, config: RunConfig) -> Path | None:
    """Return the path that in-memory data are read from; None if they neither need nor name one."""
    about = config.data
    if not (about.needs_place or about.place or about.part_of):
        return None
    return Path(workspace.data_place(config.dataset).at)


def teacher_logits(workspace: Workspace, run: Run) -> Path | None:
    """Return the file of cached teacher logits, named by a hash of all that decides them.

    Runs share it. None for a run that caches none.

    Args:
        workspace: The checkout.
        run: A run whose current attempt is on record, with its inputs.
    """
    config = run.config
    if not isinstance(config, QuantizedTraining) or not config.training.teacher.cached:
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
