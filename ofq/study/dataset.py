"""Where the images of a data set lie, in any of the layouts that can be read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Layout = Literal["folder", "tar", "wds", "hfds"]
Unreadable = Literal["fail", "skip"]


@dataclass(frozen=True)
class Place:
    """A data set of image files.

    Attributes:
        layout: ``folder``: SPLIT/CLASS/IMAGE; ``tar``: SPLIT.tar with CLASS/IMAGE, or a folder
            SPLIT of CLASS.tar; ``wds``: WebDataset shards SPLIT*.tar with KEY.jpg beside KEY.cls;
            ``hfds``: a Hugging Face dataset.
        at: The folder; of ``hfds``, the dataset's name, or its folder.
    """

    layout: Layout
    at: str

    def __str__(self) -> str:
        return self.at if self.layout in ("folder", "tar") else f"{self.layout}/{self.at}"


def locate(given: str, root: Path) -> Place:
    """What a site's key, or a variable, names.

    Args:
        given: A folder, or ``wds/FOLDER``, or ``hfds/NAME`` or ``hfds/FOLDER``, as timm has it;
            a folder whose splits are tar files is seen by them.
        root: What a relative folder is relative to.
    """
    prefix, _, rest = given.partition("/")
    if prefix.lower() == "wds" and rest:
        return Place("wds", str(root / rest))
    if prefix.lower() == "hfds" and rest:
        return Place("hfds", str(root / rest) if (root / rest).exists() else rest)
    folder = root / given
    tars = any(folder.glob("*.tar")) or any(folder.glob("val*/*.tar"))
    return Place("tar" if tars else "folder", str(folder))
