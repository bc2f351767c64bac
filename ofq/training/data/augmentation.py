"""Preprocessing and augmentation of images, by timm's transforms."""

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
    """Seed all random numbers inside by a key, and restore the generators' states afterwards.

    Args:
        key: Non-negative integers, such as a seed, an epoch and the number of an image.
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
    """Return the transform of evaluation, which resizes, crops the centre and normalizes.

    Arguments and errors are those of :func:`evaluation_settings`.
    """
    return create_transform(
        **evaluation_settings(name, classes, images, args, about), is_training=False
    )


def evaluation_settings(
    name: str,
    classes: int,
    images: Images | None,
    args: ModelArgs | None = None,
    about: Dataset | None = None,
) -> dict[str, Any]:
    """Return size, crop, interpolation, mean and deviation of evaluation, by timm's names.

    Args:
        name: Name of the timm model, by which timm knows size, mean and standard deviation.
        classes: Number of classes.
        images: Crop and interpolation; None for timm's of the model.
        args: Arguments of the model's constructor; ``img_size`` is the size of the images.
        about: The data set, whose mean and standard deviation override the model's.

    Raises:
        UserError: timm doesn't know the model's image size and normalization.
    """
    settings = _of_model(name, classes, args, about)
    if images is not None:
        settings |= {key: getattr(images, key) for key in _PREFERENCES}
    return settings


def training_transform(
    name: str,
    classes: int,
    images: Images,
    args: ModelArgs | None = None,
    about: Dataset | None = None,
) -> Transform:
    """Return the random transform of training images; without augmentation, that of evaluation.

    Args:
        name: As for :func:`evaluation_settings`.
        classes: Number of classes.
        images: The augmentation.
        args: As for :func:`evaluation_settings`.
        about: As for :func:`evaluation_settings`.

    Raises:
        UserError: As for :func:`evaluation_settings`.
    """
    augmentation = images.augmentation
    if augmentation is None:
        return evaluation_transform(name, classes, images, args, about)
    of_model = _of_model(name, classes, args, about)
    return create_transform(
        **{key: of_model[key] for key in ("input_size", "mean", "std")},
        is_training=True,
        scale=augmentation.scale,
        ratio=augmentation.ratio,
        hflip=augmentation.flip,
        color_jitter=0.0,  # which timm omits beside a policy
        auto_augment=augmentation.policy,
        interpolation=augmentation.interpolation,
        re_prob=augmentation.erasing,
        re_mode=augmentation.erasing_mode,
    )


def _of_model(
    name: str, classes: int, args: ModelArgs | None, about: Dataset | None
) -> dict[str, Any]:
    """Return timm's settings for the images that a model takes."""
    model = models.build(name, classes, args=args)
    if not getattr(model, "pretrained_cfg", None):
        raise UserError(f"timm says neither image size nor normalization of {name}")
    settings = resolve_model_data_config(model)
    size = (args or {}).get("img_size")
    if size is not None:
        settings["input_size"] = (settings["input_size"][0], size, size)
    if about is not None and about.mean is not None:
        settings |= {"mean": about.mean, "std": about.std}
    return settings


def mix(images: Tensor, labels: Tensor, classes: int, mixing: Mixing) -> tuple[Tensor, Tensor]:
    """Apply Mixup or CutMix to pairs of neighbours: the first image with the second, and so on.

    Neighbours lie on one rank for any number of ranks, so that the result depends on the batch
    alone; timm pairs the first image of a rank's part with its last. One share is drawn for the
    whole batch, by NumPy's generator.

    Args:
        images: (B, channels, H, W), B even.
        labels: (B,).
        classes: Number of classes.
        mixing: Parameters of Mixup and CutMix.

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
    """Return the rows with each pair of neighbours exchanged."""
    return rows.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
