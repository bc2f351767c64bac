"""What is done to images before a model sees them, by timm's transforms."""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.data.mixup import cutmix_bbox_and_lam, one_hot
from torch import Tensor

from ofq.config.datasets import Dataset
from ofq.config.images import Images, Mixing
from ofq.errors import UserError
from ofq.training import models

Transform = Callable[[Image.Image], Tensor]
ModelArgs = Mapping[str, bool | int | float | str]

_PREFERENCES = ("crop_pct", "interpolation")


@contextmanager
def randomness_of(*key: int) -> Iterator[None]:
    """Make all random numbers inside a function of a key, and leave those outside as they were.

    Args:
        key: Numbers from 0, such as a seed, an epoch and the number of an image.
    """
    before = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    seeds = numpy.random.SeedSequence(key).generate_state(3)
    random.seed(int(seeds[0]))
    numpy.random.seed(seeds[1])
    torch.default_generator.manual_seed(int(seeds[2]))  # torch.manual_seed would seed GPUs too
    try:
        yield
    finally:
        random.setstate(before[0])
        numpy.random.set_state(before[1])
        torch.set_rng_state(before[2])


def evaluation_transform(
    name: str,
    classes: int,
    images: Images | None,
    args: ModelArgs | None = None,
    about: Dataset | None = None,
) -> Transform:
    """Resize, crop the centre and normalize: the same whenever it is done.

    Args:
        name: The timm model's name, by which timm knows size, mean and deviation.
        classes: Number of classes.
        images: Crop and interpolation; None for those that timm has for the model.
        args: What the model's constructor gets; its ``img_size`` is the size of the images.
        about: The data set, whose mean and deviation stand before the model's.

    Raises:
        UserError: timm doesn't know the model's image size and normalization.
    """
    wanted = _of_model(name, classes, args, about)
    if images is not None:
        wanted |= {key: getattr(images, key) for key in _PREFERENCES}
    return create_transform(**wanted, is_training=False)


def training_transform(
    name: str,
    classes: int,
    images: Images,
    args: ModelArgs | None = None,
    about: Dataset | None = None,
) -> Transform:
    """The random transform of training images; without augmentation, that of evaluation.

    Args:
        name: As of :func:`evaluation_transform`.
        classes: Number of classes.
        images: What is to be done.
        args: As of :func:`evaluation_transform`.
        about: As of :func:`evaluation_transform`.

    Raises:
        UserError: As of :func:`evaluation_transform`.
    """
    wanted = images.augmentation
    if wanted is None:
        return evaluation_transform(name, classes, images, args, about)
    of_model = _of_model(name, classes, args, about)
    return create_transform(
        **{key: of_model[key] for key in ("input_size", "mean", "std")},
        is_training=True,
        scale=wanted.scale,
        ratio=wanted.ratio,
        hflip=wanted.flip,
        color_jitter=0.0,  # which timm leaves out beside a policy
        auto_augment=wanted.policy,
        interpolation=wanted.interpolation,
        re_prob=wanted.erasing,
        re_mode=wanted.erasing_mode,
    )


def _of_model(
    name: str, classes: int, args: ModelArgs | None, about: Dataset | None
) -> dict[str, Any]:
    """Return timm's settings for the images that a model takes."""
    model = models.build(name, classes, args=args)
    if not getattr(model, "pretrained_cfg", None):
        raise UserError(f"timm says neither image size nor normalization of {name}")
    wanted = resolve_model_data_config(model)
    size = (args or {}).get("img_size")
    if size is not None:
        wanted["input_size"] = (wanted["input_size"][0], size, size)
    if about is not None and about.mean is not None:
        wanted |= {"mean": about.mean, "std": about.std}
    return wanted


def mix(images: Tensor, labels: Tensor, classes: int, mixing: Mixing) -> tuple[Tensor, Tensor]:
    """Mixup or CutMix of each image with its neighbour: the first with the second, and so on.

    Neighbours stay together on any number of devices, so that the result depends on the batch
    alone; with timm's pairs, first and last of a device's part, it wouldn't. One share is drawn for
    the whole batch, from NumPy's random numbers.

    Args:
        images: (B, channels, H, W), B even.
        labels: (B,).
        classes: Number of classes.
        mixing: How.

    Returns:
        Mixed images, and labels (B, classes) that sum to 1.
    """
    cut = bool(mixing.cutmix) and (not mixing.mixup or numpy.random.rand() < 0.5)
    alpha = mixing.cutmix if cut else mixing.mixup
    share = float(numpy.random.beta(alpha, alpha))
    partners = _swapped(images)
    if cut:
        (top, bottom, left, right), share = cutmix_bbox_and_lam(images.shape, share)
        images = images.clone()
        images[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
    else:
        images = images * share + partners * (1 - share)
    off = mixing.smoothing / classes
    targets = one_hot(labels, classes, on_value=1 - mixing.smoothing + off, off_value=off)
    return images, targets * share + _swapped(targets) * (1 - share)


def _swapped(rows: Tensor) -> Tensor:
    """Each row in its neighbour's place."""
    return rows.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
