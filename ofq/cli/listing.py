"""Listing what config files may name: built in, of the checkout's own modules, and of plugins."""

from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ofq.cli.common import say
from ofq.config import Workspace
from ofq.console import printable
from ofq.errors import UserError

app = typer.Typer()


class Kind(StrEnum):
    """Kinds of things that a config file names."""

    quantizers = "quantizers"
    techniques = "techniques"
    datasets = "datasets"
    figures = "figures"
    models = "models"


@app.command("list", rich_help_panel="Studies")
def list_parts(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
) -> None:
    """List the quantizers, techniques, data sets, figures or models that config files may name.

    Those of one's own are among them: of the modules that methods, recipes, data sets and studies
    name, and of installed packages. A module that can't be imported has a line below.
    """
    workspace = Workspace()
    faults = list(_import_own(workspace))
    table = Table("name", "from", "what it is", box=None)
    for name, home, text in sorted(_LISTS[kind](workspace)):
        table.add_row(name, home, printable(text))
    Console().print(table, soft_wrap=True)
    for fault in faults:
        say(fault)


def _import_own(workspace: Workspace) -> Iterator[str]:
    """Import all modules that the config names; yield why one can't be."""
    from ofq.config.modules import import_module

    modules: dict[str, str] = {}
    for name, method in workspace.methods.items():
        modules.setdefault(method.module or "", f"method '{name}'")
    for name in workspace.dataset_names:
        modules.setdefault(workspace.dataset(name).module or "", f"data set '{name}'")
    for kind, names, read in (
        ("recipe", workspace.recipe_names, workspace.recipe),
        ("study", workspace.study_names, workspace.study),
    ):
        for name in names:
            try:
                modules.setdefault(read(name).module or "", f"{kind} '{name}'")
            except UserError as error:
                yield str(error)
    modules.pop("", None)
    for module, whose in modules.items():
        try:
            import_module(module, whose)
        except UserError as error:
            yield str(error)


def _rows(registry: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    for name, made in registry.items():
        yield name, _home(made.__module__), prefix + _summary(made)


def _home(module: str) -> str:
    return "built in" if module.partition(".")[0] == "ofq" else module


def _summary(made: object) -> str:
    return (getattr(made, "__doc__", None) or "").strip().partition("\n")[0]


def _quantizers(workspace: Workspace) -> Iterator[tuple[str, str, str]]:
    import ofq.quantization  # noqa: F401 - registers those that are built in
    from ofq.quantization.activations import activation_quantizers
    from ofq.quantization.quantizers.base import weight_quantizers

    yield from _rows(weight_quantizers, "weights: ")
    yield from _rows(activation_quantizers, "activations: ")


def _techniques(workspace: Workspace) -> Iterator[tuple[str, str, str]]:
    import ofq.quantization  # noqa: F401
    from ofq.quantization.techniques.base import techniques

    yield from _rows(techniques)


def _datasets(workspace: Workspace) -> Iterator[tuple[str, str, str]]:
    for name in workspace.dataset_names:
        about = workspace.dataset(name)
        yield name, about.module or "built in", f"{about.title} (source: {about.source})"


def _figures(workspace: Workspace) -> Iterator[tuple[str, str, str]]:
    from ofq.report.figures import FIGURES

    yield from _rows(FIGURES)


def _models(workspace: Workspace) -> Iterator[tuple[str, str, str]]:
    from ofq.training import models

    seen: set[str] = set()
    for recipe in workspace.recipe_names:
        try:
            names = workspace.recipe(recipe).models
        except UserError:
            continue  # told by _import_own
        for name in names:
            if name not in seen:
                seen.add(name)
                yield name, *models.home_and_summary(name)


_LISTS: dict[Kind, Callable[[Workspace], Iterator[tuple[str, str, str]]]] = {
    Kind.quantizers: _quantizers,
    Kind.techniques: _techniques,
    Kind.datasets: _datasets,
    Kind.figures: _figures,
    Kind.models: _models,
}
