"""Named figures that a study may request."""

from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

from matplotlib.figure import Figure

from ofq.config import Workspace
from ofq.config.modules import import_module
from ofq.errors import UserError
from ofq.report.collect import Records
from ofq.report.figures import (
    accuracy,
    changes,
    claims,
    heat_maps,
    noise,
    oscillation,
    relations,
    toy,
    weights,
)
from ofq.report.figures.registry import FIGURES, NothingToDraw
from ofq.report.figures.style import COLUMN, GREY, new_figure, save, styled

__all__ = [
    "FIGURES",
    "Saved",
    "accuracy",
    "changes",
    "claims",
    "heat_maps",
    "noise",
    "oscillation",
    "relations",
    "toy",
    "weights",
    "write_figures",
]


@dataclass(frozen=True)
class Saved:
    """Figure on disk.

    Attributes:
        name: Its name in the study's config.
        caption: Its caption.
        svg: Its vector file; the 200 dpi PNG lies beside it.
        width: Its width in inches.
    """

    name: str
    caption: str
    svg: Path
    width: float


def write_figures(folder: Path, records: Records) -> tuple[list[Saved], dict[str, str]]:
    """Draw a study's figures into a folder that doesn't exist yet.

    Returns:
        The figures, and the reasons why others have nothing to show, by name; their files show the
        reason, since the workflow requires them.
    """
    folder.mkdir()
    saved, absent = [], {}
    missing = _import_own(records)
    for name in records.study.figures:
        try:
            if name not in FIGURES:
                raise NothingToDraw(missing or f"no figure '{name}' is registered")
            with styled():
                drawn = FIGURES[name](records)
                save(drawn.figure, folder / name)
        except NothingToDraw as reason:
            absent[name] = str(reason)
            save(_notice(f"{name}: {reason}"), folder / name)
        else:
            width = float(drawn.figure.get_figwidth())
            saved.append(Saved(name, drawn.caption, folder / f"{name}.svg", width))
    return saved, absent


def _import_own(records: Records) -> str:
    """Import the study's own module; return why it isn't, in an unpacked bundle.

    Raises:
        UserError: It can't be imported in a checkout, or lacks a figure.
    """
    module = records.study.module
    if module is None:
        return ""
    if Workspace().is_bundle:
        return f"module '{module}' draws it, and nothing in an unpacked bundle is run"
    import_module(module, f"study '{records.name}'")
    unknown = [name for name in records.study.figures if name not in FIGURES]
    if unknown:
        raise UserError(
            f"study '{records.name}': key 'figures': its module '{module}' registers no "
            f"figure '{unknown[0]}'"
        )
    return ""


def _notice(text: str) -> Figure:
    """Return a figure that shows why there is none."""
    with styled():
        figure = new_figure(COLUMN, 1.0)
        figure.text(0.5, 0.5, fill(text, 56), ha="center", va="center", color=GREY)
    return figure
