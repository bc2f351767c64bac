"""The named figures that a study may ask for."""

from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

from matplotlib.figure import Figure

from ofq.report.collect import Records
from ofq.report.figures import (
    accuracy,
    changes,
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
    """A figure on disk.

    Attributes:
        name: Its name in the study's config.
        caption: What it shows.
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
        The figures, and by name why others have nothing to show; their files say so, since a
        workflow waits for them.
    """
    folder.mkdir()
    saved, absent = [], {}
    for name in records.study.figures:
        try:
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


def _notice(text: str) -> Figure:
    """A figure that says why there is none."""
    with styled():
        figure = new_figure(COLUMN, 1.0)
        figure.text(0.5, 0.5, fill(text, 56), ha="center", va="center", color=GREY)
    return figure
