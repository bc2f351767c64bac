"""Images in the rows of a Hugging Face dataset."""

import io
import os
import re
from typing import IO, Any

import numpy
from numpy.typing import NDArray
from timm.data.readers.reader import Reader

from ofq.config.datasets import SPLIT_NAMES, Place, SplitName
from ofq.console import printable
from ofq.errors import UserError, some
from ofq.training.data.listing import checked_classes


class Rows(Reader):
    """Reader of a Hugging Face dataset with an image and a label per row.

    Args:
        dataset: The split.
        place: Its location, for errors.
        split: Its name, for errors.

    Raises:
        UserError: A column for images or labels is missing, or rows lack an image or a label.
    """

    def __init__(self, dataset: Any, place: Place, split: SplitName) -> None:
        import datasets

        super().__init__()
        self.where = f"{place}: split '{split}'"
        self.root = place.at
        features = dataset.features
        columns = ", ".join(f"{printable(n)} ({_kind(f)})" for n, f in features.items())
        self.image = self._column(
            [name for name, kind in features.items() if isinstance(kind, datasets.Image)],
            "image",
            f"expected one column of images, or one named 'image'; columns are: {columns}",
        )
        named = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
        if "label" in features:
            named = ["label"]
        elif not named and "labels" in features:
            named = ["labels"]
        label = self._column(
            named,
            "label",
            f"expected one column of class labels, or one named 'label'; columns are: {columns}",
        )
        self.class_to_idx, self.labels, self.numbered = self._classes(
            dataset.data.column(label), label, features[label]
        )
        images = dataset.select_columns([self.image])
        self.dataset = images.cast_column(self.image, datasets.Image(decode=False))
        self._check_images()

    def _column(self, found: list[str], preferred: str, expected: str) -> str:
        if len(found) == 1:
            return found[0]
        if preferred in found:
            return preferred
        raise UserError(f"{self.where}: {expected}")

    def _classes(
        self, values: Any, column: str, kind: Any
    ) -> tuple[dict[str, int], NDArray[numpy.int32], bool]:
        """Return class numbers by name, each row's label, and whether classes have only numbers."""
        where = f"{self.where}: column '{printable(column)}'"
        if values.null_count:
            raise UserError(f"{where}: {values.null_count} rows without a label; remove them")
        names = getattr(kind, "names", None)
        if names is None and _kind(kind) in ("string", "large_string"):
            texts = values.to_pylist()
            names = checked_classes(set(texts), where, "a class for each text")
            numbers = {name: number for number, name in enumerate(names)}
            return numbers, numpy.array([numbers[text] for text in texts], numpy.int32), False
        if names is None and not re.fullmatch(r"u?int\d+", _kind(kind)):
            raise UserError(
                f"{where} is of type {_kind(kind)}; expected class labels, whole numbers or text"
            )
        labels = values.to_numpy()
        present = numpy.unique(labels).tolist()
        allowed = range(len(present) if names is None else len(names))
        if len(present) < 2 or not {*present} <= {*allowed}:
            extent = "without gaps" if names is None else f"to {allowed[-1]}"
            raise UserError(
                f"{where}: labels are {some([str(label) for label in present])}; expected two "
                f"classes or more, numbered from 0 {extent}"
            )
        numbers = {str(name): number for number, name in enumerate(names or allowed)}
        return numbers, labels.astype(numpy.int32), names is None

    def _check_images(self) -> None:
        """Refuse rows without an image, and image folders with class folders in several folders."""
        from pyarrow import compute

        column = self.dataset.data.column(self.image)
        content, paths = (compute.struct_field(column, part) for part in ("bytes", "path"))
        lacking = compute.and_(compute.is_null(content), compute.is_null(paths))
        count = compute.sum(lacking).as_py() or 0
        if count:
            first = compute.index(lacking, True).as_py()
            raise UserError(
                f"{self.where}: column '{printable(self.image)}': {count} rows without an image, "
                f"the first of them row {first}; remove them"
            )
        if content.null_count < len(content):
            return
        classes, above = list(self.class_to_idx), set[str]()
        for path, label in zip(paths.to_pylist(), self.labels.tolist(), strict=True):
            folder, name = os.path.split(os.path.dirname(path))
            if name == classes[label]:
                above.add(folder)
        if len(above) > 1:
            raise UserError(
                f"{self.where}: folders of classes lie in several folders ({some(sorted(above))}); "
                "expected SPLIT/CLASS/IMAGE"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        image, label = self.dataset[index][self.image], int(self.labels[index])
        if image["bytes"] is not None:
            return io.BytesIO(image["bytes"]), label
        return open(image["path"], "rb"), label

    def name(self, index: int) -> bytes:
        """Return an image's name within its data set; empty if it has none."""
        path = self._filename(index) or ""
        inside = os.path.isabs(path) and os.path.isdir(self.root)
        return os.fsencode(os.path.relpath(path, self.root) if inside else path)

    def sizes(self) -> NDArray[numpy.int64]:
        """Return the size of each image in bytes."""
        from pyarrow import compute

        column = self.dataset.data.column(self.image)
        lengths = compute.binary_length(compute.struct_field(column, "bytes")).to_pylist()
        return numpy.array(
            [
                os.stat(self._filename(index)).st_size if length is None else length
                for index, length in enumerate(lengths)
            ],
            numpy.int64,
        )

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return self.dataset[index][self.image]["path"]


def _kind(feature: Any) -> str:
    """Return the name of a column's type."""
    return str(getattr(feature, "dtype", type(feature).__name__))


def open_rows(place: Place, split: SplitName) -> Reader | None:
    """Open a split of a Hugging Face dataset; None if it has no such split.

    Raises:
        UserError: It can't be read, or its column of images or labels is missing or ambiguous.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{place}: needs the package datasets: pip install 'ofq[datasets]'"
        ) from None
    reason = ""
    for name in SPLIT_NAMES[split]:
        try:
            dataset = datasets.load_dataset(place.at, split=name)
        except (ValueError, OSError, KeyError, datasets.exceptions.DatasetsError) as error:
            reason = printable(str(error).partition("\n")[0])
        else:
            return Rows(dataset, place, split)
    if "split" in reason:
        return None
    raise UserError(f"{place}: not a readable data set of images: {reason}")
