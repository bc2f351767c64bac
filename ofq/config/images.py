"""Preprocessing of image files: for evaluation, and, augmented, for training."""

import re
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from ofq.config.files import Strict

Share = Annotated[float, Field(ge=0, le=1)]
Interpolation = Literal["bicubic", "bilinear", "random"]


_NUMBER = r"\d{1,4}(?:\.\d{1,4})?"
_POLICY = re.compile(  # timm passes over what it doesn't know in one
    rf"rand(?:-(?:m\d{{1,2}}|n\d{{1,2}}|(?:p|mstd){_NUMBER}|mmax\d{{1,2}}|inc[01]|t[a-z0-9]+))+"
    rf"|augmix(?:-(?:[mwd]\d{{1,2}}|(?:a|mstd){_NUMBER}|b[01]))+"
    rf"|(?:originalr?|v0r?|3a)(?:-mstd{_NUMBER})?"
)


def _policy(text: str) -> str:
    if not _POLICY.fullmatch(text):
        raise ValueError(
            "allowed: a policy of timm's, such as rand-m9-mstd0.5-inc1 (RandAugment), "
            "augmix-m5-w4-d2, original, v0 or 3a"
        )
    return text


class Augmentation(Strict):
    """Random augmentation of each training image, by timm's transforms, in this order.

    Attributes:
        scale: Least and greatest share of the image's area that RandomResizedCrop takes.
        ratio: Least and greatest aspect ratio of that crop.
        interpolation: Resizing of the crop; ``random`` draws bilinear or bicubic for each image.
        flip: Probability of a horizontal flip.
        policy: timm's name of an automatic augmentation; None for none.
        erasing: Probability that a rectangle is erased.
        erasing_mode: Filling of the rectangle: ``pixel`` is noise for each pixel, ``const`` zero.
    """

    scale: tuple[PositiveFloat, PositiveFloat] = (0.08, 1.0)
    ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bicubic"
    flip: Share = 0.5
    policy: Annotated[str, AfterValidator(_policy)] | None = None
    erasing: Share = 0.0
    erasing_mode: Literal["pixel", "const"] = "pixel"

    @model_validator(mode="after")
    def _ranges_are_ranges(self) -> Self:
        for name in ("scale", "ratio"):
            least, greatest = getattr(self, name)
            if least > greatest:
                raise ValueError(f"{name} {least} to {greatest}; give the smaller number first")
        if self.scale[1] > 1:
            raise ValueError(f"scale ends at {self.scale[1]}; allowed: up to 1, the whole image")
        return self


class Mixing(Strict):
    """Mixup or CutMix of pairs of images of a batch, whose labels then are mixtures.

    One of the two is drawn for each batch, each with probability ½ where both are on.

    Attributes:
        mixup, cutmix: α of the beta distribution of the share of each image; 0 for off.
        smoothing: Label smoothing of the mixed labels.
    """

    mixup: NonNegativeFloat = 0.0
    cutmix: NonNegativeFloat = 0.0
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _something_is_mixed(self) -> Self:
        if not self.mixup and not self.cutmix:
            raise ValueError("mixup and cutmix are both 0; give one, or leave mixing out")
        return self


class Images(Strict):
    """Preprocessing of image files.

    Size, mean and deviation are those that timm has for the model.

    Attributes:
        crop_pct: Evaluation resizes the shorter side to size / crop_pct, and crops the centre.
        interpolation: Resizing in evaluation.
        augmentation: Random augmentation of training images; None: they are preprocessed as for
            evaluation, the same in every epoch.
        mixing: Mixup and CutMix of training images; None for neither.
        repeats: Repeated augmentation: how often an image is in an epoch, each time augmented
            anew; an epoch then covers a part of the images, and its length stays the same.
    """

    crop_pct: Annotated[float, Field(ge=0.1, le=1)] = 0.9  # less takes gigabytes for each image
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    augmentation: Augmentation | None = None
    mixing: Mixing | None = None
    repeats: PositiveInt = 1

    @property
    def deterministic(self) -> bool:
        """Return whether an image is the same each time it is trained on."""
        return self.augmentation is None and self.mixing is None
