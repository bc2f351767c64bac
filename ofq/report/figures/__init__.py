"""The named figures that a study may ask for."""

from dataclasses import dataclass
from pathlib import Path

from ofq.report.collect import Records
from ofq.report.figures import accuracy, changes, noise, oscillation, relations, toy, weights
from ofq.report.figures.registry import FIGURES, NothingToDraw
from ofq.report.figures.style import save, styled

__all__ = [
    "FIGURES",
    "Saved",
    "accuracy",
    "changes",
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
        The figures, and by name why others have nothing to show.
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
        else:
            width = float(drawn.figure.get_figwidth())
            saved.append(Saved(name, drawn.caption, folder / f"{name}.svg", width))
    return saved, absent
