"""Small IDX files, as MNIST and its successors have them."""

import gzip
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits


def write_idx(path: Path, array, packed: bool = True) -> Path:
    """Write bytes as an IDX file, by the format's own description.

    Args:
        path: The file, without ``.gz``.
        array: Whole numbers 0 to 255.
        packed: Whether to gzip it, and add ``.gz`` to its name.

    Returns:
        The file that was written.
    """
    array = np.asarray(array, dtype=np.uint8)
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    content = head + array.tobytes()
    path = path.with_name(f"{path.name}.gz") if packed else path
    path.write_bytes(gzip.compress(content) if packed else content)
    return path


def write_digits(folder: Path, train: int, test: int) -> None:
    """Write scikit-learn's digits as the four files of a data set of 28 x 28 pixels.

    Args:
        folder: A folder to make.
        train, test: Numbers of images of the two splits; 1,797 together at most.
    """
    digits = load_digits()
    larger = np.kron(digits.images, np.ones((3, 3)))  # 24 x 24
    images = np.pad(larger, ((0, 0), (2, 2), (2, 2))) * (255 / 16)
    folder.mkdir(parents=True)
    for split, rows in (("train", slice(train)), ("t10k", slice(train, train + test))):
        write_idx(folder / f"{split}-images-idx3-ubyte", images[rows])
        write_idx(folder / f"{split}-labels-idx1-ubyte", digits.target[rows])
