"""Where the images of a data set lie, and the facts by which two data sets are told apart."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from ofq.config.fields import Name
from ofq.config.files import Strict, suggest
from ofq.config.plugins import module_of
from ofq.console import printable
from ofq.errors import UserError

Layout = Literal["folder", "tar", "wds", "hfds"]
Unreadable = Literal["fail", "skip"]
SplitName = Literal["train", "val"]
SPLIT_NAMES: dict[SplitName, tuple[str, str]] = {
    "train": ("train", "training"),
    "val": ("val", "validation"),
}
"""The names that a split's folder, tar file or shards may have."""
Covers = Literal["contents", "names and sizes"]
RULE: Literal[2] = 2
"""The rule by which fingerprints are made; those of another rule aren't compared."""
_SHOWN = 15  # characters of a fingerprint, in messages


class Dataset(Strict):
    """What a data set is: a file of ``config/datasets``, or one that comes with the package.

    Attributes:
        title: Its name for people.
        source: What reads it: ``images`` (image files in any layout), ``idx`` (gzipped IDX files,
            as of MNIST), ``digits``, ``toy_regression``, or the name of a function that ``module``
            registers (:func:`ofq.register_dataset`).
        task: ``classification``; or ``regression``, measured by its loss.
        classes: How many classes it must have; None for any number.
        size: Height and width that a model gets, where the recipe's ``model_args`` give no
            ``img_size``; None for the model's own.
        mean, std: What images are normalized by, for each channel, of values 0 to 1; None for the
            model's own.
        place: Where it lies, if the site doesn't say. Where it lies is no part of a run's identity.
        module: A Python module of the user's own that registers the source.
    """

    cosmetic: ClassVar[frozenset[str]] = frozenset({"title", "task", "classes", "place", "module"})

    title: str
    source: Name = "images"
    task: Literal["classification", "regression"] = "classification"
    classes: PositiveInt | None = None
    size: PositiveInt | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[PositiveFloat, ...] | None = None
    place: str | None = None
    module: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _module_may_be_a_plugin(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("module") is not None:
            return data
        source = data.get("source")
        if not isinstance(source, str) or source in SOURCES:
            return data
        module = module_of([source])
        return data if module is None else {**data, "module": module}

    @property
    def of_files(self) -> bool:
        """Whether its images are files, loaded as they are needed."""
        return self.source == "images"

    @property
    def needs_place(self) -> bool:
        """Whether it must be said where it lies."""
        return self.source in ("images", "idx")

    @property
    def splits_anew(self) -> bool:
        """Whether each seed may have another evaluation set."""
        return not self.needs_place

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.module is None and self.source not in SOURCES:
            raise ValueError(
                f"unknown source '{self.source}' ({suggest(self.source, list(SOURCES))}); for a "
                "function of your own, name the Python module that registers it as 'module'"
            )
        if (self.mean is None) != (self.std is None):
            raise ValueError("give both 'mean' and 'std', or neither")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ValueError(
                f"mean is of {len(self.mean)} channels, std of {len(self.std)}; give each one "
                "number for each channel"
            )
        return self


SOURCES = ("images", "idx", "digits", "toy_regression")
"""What reads a data set, without a module of the user's own."""

PACKAGED = {
    "digits": Dataset(title="scikit-learn's digits", source="digits", classes=10),
    "imagenet": Dataset(title="ImageNet-1k"),
    "toy_regression": Dataset(title="Toy regression", source="toy_regression", task="regression"),
}
"""The data sets that need no file, by name."""


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
    tars = any((folder / f"{name}.tar").exists() for both in SPLIT_NAMES.values() for name in both)
    tars = tars or any(tars_in(folder / name) for name in SPLIT_NAMES["val"])
    return Place("tar" if tars else "folder", str(folder))


def hidden(name: str) -> bool:
    """Whether a file or folder of this name is no data: hidden, or macOS's copy of attributes."""
    return name.startswith(".") or name == "__MACOSX"


def tars_in(folder: Path) -> list[Path]:
    """The tar files in a folder, hidden ones left out, in the order of their names."""
    return sorted(path for path in folder.glob("*.tar") if not hidden(path.stem))


class DataFacts(BaseModel):
    """What a run saw of its data, in its provenance and in each checkpoint.

    Attributes:
        name: The data set.
        rule: How the fingerprints are made.
        classes: Number of classes; 0 for regression.
        class_names: Names of the classes in the order of their numbers.
        numbered: Whether the classes have numbers only, which are their names here.
        class_digest: SHA-256 of the names.
        images: Number of images by split.
        images_by_class: The same for each class.
        files: Number of images in all, for image files.
        examples: Number of examples in all, for data that come with the package.
        covers: What each split's fingerprint is made of.
        fingerprints: SHA-256 by split.
        fingerprint: SHA-256 of all splits.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    name: str
    rule: Literal[2] = RULE
    classes: int
    class_names: list[str]
    numbered: bool = False
    class_digest: str
    images: dict[str, int]
    images_by_class: dict[str, list[int]]
    files: int | None = None
    examples: int | None = None
    covers: dict[str, Covers]
    fingerprints: dict[str, str]
    fingerprint: str

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.class_digest != digest_of(self.class_names):
            raise ValueError("the class names aren't those of their digest")
        if not self.images.keys() == self.images_by_class.keys() == self.fingerprints.keys():
            raise ValueError("images, images_by_class and fingerprints are of different splits")
        return self

    def record(self) -> dict[str, Any]:
        """Return plain data for JSON and checkpoints."""
        return self.model_dump(exclude_none=True)

    def difference(self, then: "DataFacts", images: bool = True) -> str | None:
        """Say how these data differ from those of an earlier time; None if they don't.

        Args:
            then: The earlier facts.
            images: Whether the images count, or the classes alone.
        """
        return self._other_classes(then) or (self._other_images(then) if images else None)

    def _other_classes(self, then: "DataFacts") -> str | None:
        if self.numbered == then.numbered:
            pairs = zip(self.class_names, then.class_names, strict=False)
            for number, (now, before) in enumerate(pairs):
                if now != before:
                    return f"class {number} is {_shown(now)}, not {_shown(before)}"
        if self.classes != then.classes:
            return f"there are {self.classes} classes, not {then.classes}"
        return None

    def _other_images(self, then: "DataFacts") -> str | None:
        for split in [split for split in self.fingerprints if split in then.fingerprints]:
            counts = zip(
                self.class_names, self.images_by_class[split], then.images_by_class[split],
                strict=False,
            )  # fmt: skip
            for name, now, before in counts:
                if now != before:
                    return f"{now} images of {_shown(name)} in split '{split}', not {before}"
            digests = self.fingerprints[split], then.fingerprints[split]
            if digests[0] != digests[1]:
                texts = [printable(text)[:_SHOWN] for text in digests]
                return f"the images of split '{split}' are others ({texts[0]}…, not {texts[1]}…)"
        return None


def digest_of(class_names: list[str]) -> str:
    """Return the SHA-256 of class names in their order."""
    return f"sha256:{hashlib.sha256(json.dumps(class_names).encode()).hexdigest()}"


def facts_in(data: object, source: str) -> DataFacts | None:
    """Read facts that were recorded.

    Args:
        data: What the record says of its data.
        source: The record, for the error.

    Returns:
        The facts; None if the record is older than they are.

    Raises:
        UserError: They are damaged.
    """
    if not isinstance(data, dict) or data.get("rule") != RULE:
        return None
    try:
        return DataFacts.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(("data", *map(str, first["loc"])))
        raise UserError(
            f"{source}: damaged: '{printable(key)}': {printable(first['msg'])}"
        ) from None


def _shown(name: str) -> str:
    return f"'{printable(name)}'"
