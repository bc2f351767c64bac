"""Data set configs, the places of image files, and the facts that identify a data set."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from ofq.config.fields import Name
from ofq.config.files import Strict, suggest
from ofq.config.plugins import with_module
from ofq.console import printable
from ofq.errors import UserError
from ofq.registry import built_in_names

Layout = Literal["folder", "tar", "wds", "hfds"]
Unreadable = Literal["fail", "skip"]
SplitName = Literal["train", "val"]
SPLIT_NAMES: dict[SplitName, tuple[str, str]] = {
    "train": ("train", "training"),
    "val": ("val", "validation"),
}
"""Names that a split's folder, tar file or shards may have."""
Covers = Literal["contents", "names and sizes"]
RULE: Literal[2] = 2
"""Version of the fingerprint rule; fingerprints of different versions aren't compared."""
_SHOWN = 15  # characters of a fingerprint, in messages


def _address(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s@]+/", text):
        raise ValueError("expected the http(s) address of a folder, with a / at its end")
    return text


def _one_at_least(addresses: tuple[str, ...]) -> tuple[str, ...]:
    if not addresses:
        raise ValueError("give one address at least")
    return addresses


def _sha256(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError("expected a SHA-256: 64 digits of 0-9 and a-f")
    return text


class Download(Strict):
    """Public files of a data set, which ``ofq data fetch`` downloads.

    Attributes:
        address: Folders on the web, tried in order; a file's name is appended.
        files: SHA-256 of each file by its name; of a name that ends in ``.gz``, that of what it
            unpacks to, since the same content is packed differently in different places.
        debian: Debian's package that installs them at the data set's ``place``.
    """

    address: Annotated[
        tuple[Annotated[str, AfterValidator(_address)], ...], AfterValidator(_one_at_least)
    ]
    files: dict[Name, Annotated[str, AfterValidator(_sha256)]] = Field(min_length=1)
    debian: Name | None = None

    def missing(self, folder: Path) -> list[str]:
        """Return the names of the files that a folder has neither as they are nor unpacked."""
        return [
            name
            for name in self.files
            if not any((folder / n).is_file() for n in (name, name.removesuffix(".gz")))
        ]

    def ways(self, dataset: str, site: Path) -> list[str]:
        """Return the ways to get the files, as imperatives: packaged, named, downloaded.

        Args:
            dataset: The data set's name.
            site: File of the site's settings.
        """
        packaged = f"install Debian's package: apt install {self.debian}"
        return [
            *([packaged] if self.debian else []),
            f"name a folder that has them in {site}: `data: {{{dataset}: FOLDER}}`",
            f"download them: `ofq data fetch {dataset}`",
        ]


class Dataset(Strict):
    """Config of a data set: a file of ``config/datasets``, or one that comes with the package.

    Attributes:
        title: Its name for people.
        source: Its reader: ``images`` (image files in any layout), ``idx`` (gzipped IDX files,
            as of MNIST), ``digits``, ``toy_regression``, or the name of a function that ``module``
            registers (:func:`ofq.register_dataset`).
        task: ``classification``; or ``regression``, measured by its loss.
        classes: Number of classes that it must have; None for any number.
        size: Height and width that a model gets, where the recipe's ``model_args`` give no
            ``img_size``; None for the model's own.
        mean, std: Per-channel mean and deviation for normalization, of values 0 to 1; None for the
            model's own.
        train_images, test_images: Numbers of images that are used of each split, the first ones;
            None for all. Only for data that fit in memory.
        skip_images: Number of training images, the first ones, that are left out. Only for data
            that fit in memory.
        held_out: Number of training images, the last ones, that are evaluated on in place of the
            test set, which then isn't used; None to evaluate on the test set. Only for data that
            fit in memory.
        resplit: Number of evaluation images over that of training images, where each seed splits
            one set of images anew; None where the evaluation set is fixed, or drawn afresh. It
            widens intervals over seeds.
        place: Its place, if the site gives none; not part of a run's identity.
        part_of: Another data set whose files it consists of, so that it has that one's place.
        download: Its public files.
        module: A Python module of the user's own that registers the source.
    """

    cosmetic: ClassVar[frozenset[str]] = frozenset(
        {"title", "task", "classes", "resplit", "place", "part_of", "download", "module"}
    )

    title: str
    source: Name = "images"
    task: Literal["classification", "regression"] = "classification"
    classes: PositiveInt | None = None
    size: PositiveInt | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[PositiveFloat, ...] | None = None
    train_images: PositiveInt | None = None
    test_images: PositiveInt | None = None
    skip_images: NonNegativeInt = 0
    held_out: PositiveInt | None = None
    resplit: PositiveFloat | None = None
    place: str | None = None
    part_of: Name | None = None
    download: Download | None = None
    module: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _module_may_be_a_plugin(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return with_module(data, [data.get("source")], SOURCES)

    @property
    def of_files(self) -> bool:
        """Return whether its images are files, loaded as they are needed."""
        return self.source == "images"

    @property
    def needs_place(self) -> bool:
        """Return whether its place must be configured."""
        return self.source in ("images", "idx")

    @property
    def splits_anew(self) -> bool:
        """Return whether the evaluation set may differ between seeds."""
        return not self.needs_place

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.module is None and self.source not in SOURCES:
            raise ValueError(
                f"unknown source '{self.source}' ({suggest(self.source, list(SOURCES))}); for a "
                "function of your own, name the Python module that registers it as 'module'"
            )
        for key in ("train_images", "test_images", "skip_images", "held_out"):
            if self.of_files and getattr(self, key):
                raise ValueError(f"{key}: image files are all used; leave it out")
        if self.held_out and self.test_images:
            raise ValueError("'held_out' takes the place of the test set; leave out 'test_images'")
        if self.part_of and (self.place or self.download):
            raise ValueError(
                f"'part_of' takes the files of '{self.part_of}'; leave out 'place' and 'download'"
            )
        if (self.mean is None) != (self.std is None):
            raise ValueError("give both 'mean' and 'std', or neither")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ValueError(
                f"mean is of {len(self.mean)} channels, std of {len(self.std)}; give each one "
                "number for each channel"
            )
        return self


def any_of(ways: list[str]) -> str:
    """Return the end of an error: several things, each of which helps."""
    return f"do one of these: {'; '.join(ways)}" if len(ways) > 1 else ways[0]


SOURCES = ("images", *built_in_names("register_dataset", "training/data"))
"""Built-in sources of data sets."""

PACKAGED = {
    "digits": Dataset(
        title="scikit-learn's digits", source="digits", classes=10, resplit=900 / 897
    ),
    "imagenet": Dataset(title="ImageNet-1k"),
    "toy_regression": Dataset(title="Toy regression", source="toy_regression", task="regression"),
}
"""Data sets that come with the package and need no file, by name."""


@dataclass(frozen=True)
class Place:
    """Location of a data set of image files.

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
    """Return the place that a site's key or an environment variable names.

    Args:
        given: A folder, or ``wds/FOLDER``, or ``hfds/NAME`` or ``hfds/FOLDER``, as timm has it;
            a folder whose splits are tar files is recognized.
        root: Base of relative folders.
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
    """Return whether a file or folder is no data: hidden, or macOS's copy of attributes."""
    return name.startswith(".") or name == "__MACOSX"


def tars_in(folder: Path) -> list[Path]:
    """Return the tar files in a folder, sorted by name, without hidden ones."""
    return sorted(path for path in folder.glob("*.tar") if not hidden(path.stem))


class DataFacts(BaseModel):
    """Facts about a run's data, recorded in its provenance and in each checkpoint.

    Attributes:
        name: The data set.
        rule: Version of the fingerprint rule.
        classes: Number of classes; 0 for regression.
        class_names: Names of the classes in the order of their numbers.
        numbered: Whether the classes only have numbers, which then serve as names.
        class_digest: SHA-256 of the names.
        images: Number of images by split.
        images_by_class: Number of images of each class, by split.
        files: Number of images in all, for image files.
        examples: Number of examples in all, for data that come with the package.
        covers: Coverage of each split's fingerprint.
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
            raise ValueError("the class names don't match their digest")
        if not self.images.keys() == self.images_by_class.keys() == self.fingerprints.keys():
            raise ValueError("images, images_by_class and fingerprints have different splits")
        return self

    def record(self) -> dict[str, Any]:
        """Return plain data for JSON and checkpoints."""
        return self.model_dump(exclude_none=True)

    def difference(self, then: "DataFacts", images: bool = True) -> str | None:
        """Return how these data differ from those of an earlier time; None if they don't.

        Args:
            then: The earlier facts.
            images: Whether to compare the images, too, not the classes alone.
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
        data: The record's entry on its data.
        source: The record, for the error.

    Returns:
        The facts; None if the record predates them.

    Raises:
        UserError: The facts are damaged.
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
