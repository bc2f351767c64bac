"""Models, quantizations and techniques that a study's runs construct, each distinct one once."""

from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from typing import Any

from ofq.config.method import Annealing, QatTechnique, Quantization
from ofq.config.run import (
    Cell,
    CgaRun,
    PretrainedRun,
    QatRun,
    Run,
    RunConfig,
    quantization_of,
    training_of,
)
from ofq.config.schema import HUB
from ofq.config.workspace import Workspace


@dataclass(frozen=True)
class Way:
    """Quantization of a model, with the techniques of its training.

    Attributes:
        source: Place in the config, for errors.
        quantization: The quantization.
        techniques: Techniques that check their options themselves; those of the others are checked
            with their config.
        cells: Number of cells that it stands for.
    """

    source: str
    quantization: Quantization
    techniques: tuple[QatTechnique | Annealing, ...]
    cells: int = 1

    def payload(self) -> dict[str, Any]:
        """Return what decides whether it can be constructed, as plain JSON data."""
        return {
            "quantization": self.quantization.model_dump(),
            "techniques": [technique.model_dump() for technique in self.techniques],
        }


@dataclass(frozen=True)
class Construction:
    """Model as a study's runs construct it.

    Attributes:
        source: Place of the model's name in the config, for errors.
        model, dataset: Their names.
        drop_path: Highest rate of stochastic depth of its stages.
        args: Further arguments of its constructor.
        modules: Modules of the user's own that register the model and its data set, with the places
            of their keys.
        hub: Place of the key that asks for timm's weights, for errors; None if none does.
        classes: Number of classes that the config asks of the data; None for any.
        ways: Its quantizations.
    """

    source: str
    model: str
    dataset: str
    drop_path: float = 0.0
    args: dict[str, Any] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)
    hub: str | None = None
    classes: int | None = None
    ways: tuple[Way, ...] = ()

    def payload(self) -> dict[str, Any]:
        """Return what decides whether the model can be constructed, as plain JSON data."""
        keys = ("model", "dataset", "drop_path", "args", "classes")
        values = {key: getattr(self, key) for key in keys}
        return {**values, "modules": [*self.modules], "hub": self.hub is not None}


def constructions(
    workspace: Workspace, study: str, wanted: Container[str] | None = None
) -> list[Construction]:
    """Return what a study's runs construct, one entry per model.

    Args:
        workspace: The checkout's config.
        study: The study's name.
        wanted: Ids of the runs that count, with the cells that build on them; None for all.

    Raises:
        UserError: The study's config is wrong.
    """
    cells: dict[str, list[Cell]] = {}
    for cell in workspace.grid(study).cells:
        if wanted is None or any(link.id in wanted for run in cell.runs for link in run.chain()):
            cells.setdefault(cell.model, []).append(cell)
    return [_construction(workspace, study, mine) for mine in cells.values()]


def constructions_of(workspace: Workspace, study: str, run: Run) -> list[Construction]:
    """Return what a run, and the cells of a study that build on it, construct.

    All cells of a model start from its pretrained weights, whose evaluation no run names as its
    parent.
    """
    shared = isinstance(run.config, PretrainedRun)
    wanted = None if shared else (run.id,)
    found = constructions(workspace, study, wanted)
    return [each for each in found if each.model == run.config.model]


def _construction(workspace: Workspace, study: str, cells: list[Cell]) -> Construction:
    recipe, path = workspace.recipe_of(study), workspace.recipe_path(workspace.study(study).recipe)
    configs = [link.config for cell in cells for run in cell.runs[:1] for link in run.chain()]
    config = configs[0]
    trainings = [training for each in configs if (training := training_of(each)) is not None]
    about = f"{workspace.root / 'config' / 'datasets' / recipe.dataset}.yaml"
    homes = ((config.data.module, about), (config.model_module, path))
    modules = {module: f"{home}: key 'module'" for module, home in homes if module is not None}
    return Construction(
        source=f"{path}: key 'models'",
        model=config.model,
        dataset=config.dataset,
        drop_path=max((training.drop_path for training in trainings), default=0.0),
        args=config.constructor_args,
        modules=modules,
        hub=f"{path}: key 'pretrained'" if recipe.pretrained == HUB else None,
        classes=recipe.classes or config.data.classes,
        ways=tuple(_ways(cells, str(workspace.study_path(study)))),
    )


def _ways(cells: list[Cell], source: str) -> Iterator[Way]:
    """Yield each distinct way once, with its first cell as its source."""
    found: dict[str, list[Way]] = {}
    for cell in cells:
        chain = [link.config for link in cell.runs[0].chain()]
        quantization = quantization_of(chain[0])
        if quantization is not None:
            own = tuple(part for config in chain for part in _techniques_to_make(config))
            way = Way(f"{source}: '{cell.method}' at {cell.bits}", quantization, own)
            found.setdefault(repr(way.payload()), []).append(way)
    for first, *others in found.values():
        yield Way(first.source, first.quantization, first.techniques, 1 + len(others))


def _techniques_to_make(config: RunConfig) -> list[QatTechnique | Annealing]:
    parts: tuple[QatTechnique | Annealing, ...] = ()
    if isinstance(config, QatRun):
        parts = config.techniques
    elif isinstance(config, CgaRun):
        parts = (config.annealing,)
    return [part for part in parts if part.needs_model]
