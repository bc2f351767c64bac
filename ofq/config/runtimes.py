"""Measured time limits of jobs, which replace the recipes': ``config/runtimes.yaml``.

They depend on the site's hardware, unlike recipes; no run's identity depends on them.
"""

from pathlib import Path

import yaml
from pydantic import PositiveInt, RootModel

from ofq.atomic import write_file
from ofq.config.fields import Stage
from ofq.config.files import parse, read_yaml, suggest
from ofq.errors import UserError

_HEAD = (
    "# Minutes that a job of each recipe, model and stage may take: from `ofq plan STUDY\n"
    "# --write-runtime`. They stand in for the recipes' `runtime`. May be edited or deleted;\n"
    "# nothing re-runs.\n"
)

Minutes = dict[str, dict[Stage, PositiveInt]]
"""Time limits in minutes by model and stage."""


class Runtimes(RootModel[dict[str, Minutes]]):
    """Time limits in minutes by recipe, model and stage."""


def read(path: Path, recipes: list[str]) -> dict[str, Minutes]:
    """Return the file's content, or an empty dict if there is no file.

    Args:
        path: The file.
        recipes: Names of all recipes.

    Raises:
        UserError: It isn't valid, or names an unknown recipe.
    """
    if not path.exists():
        return {}
    runtimes = parse(Runtimes, read_yaml(path), str(path)).root
    for name in runtimes:
        if name not in recipes:
            raise UserError(f"{path}: unknown recipe '{name}' ({suggest(name, recipes)})")
    return runtimes


def check_models(path: Path, minutes: Minutes, recipe: str, models: list[str]) -> None:
    """Refuse minutes for models that a recipe lacks.

    Raises:
        UserError: It lacks one.
    """
    for name in minutes:
        if name not in models:
            hint = suggest(name, models)
            raise UserError(f"{path}: key '{recipe}': its recipe has no model '{name}' ({hint})")


def update(path: Path, recipes: list[str], recipe: str, minutes: Minutes) -> None:
    """Set the minutes of some models and stages of a recipe; the rest stays as it is.

    Raises:
        UserError: The existing file isn't valid.
    """
    content = {name: dict(models) for name, models in read(path, recipes).items()}
    models = content.setdefault(recipe, {})
    for model, stages in minutes.items():
        models[model] = {**models.get(model, {}), **stages}

    def write(to: Path) -> None:
        with to.open("w", encoding="utf-8") as file:
            file.write(_HEAD)
            yaml.safe_dump(content, file, sort_keys=False)

    write_file(path, write)
