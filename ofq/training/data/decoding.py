"""From an image's bytes to what a transform takes: by Pillow, or faster."""

import importlib.util
import random
from collections.abc import Callable
from typing import IO, Any, Protocol

import numpy
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import nn
from torchvision.transforms import Compose

from ofq.config.stage import Loader
from ofq.errors import UserError

_COLOURS = ("YCbCr", "RGB", "Gray")  # which it makes RGB of as Pillow does

_STEP_16 = 257  # 65535 / 255

Pixels = NDArray[numpy.uint8]


class Decoder(Protocol):
    """How images are decoded, and transforms made to fit."""

    def decode(self, file: IO[bytes]) -> Any:
        """An image in RGB; raises what Pillow raises if it can't be decoded."""

    def fitted(self, transform: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """A transform of Pillow's images as one of :meth:`decode`'s."""


class NoClearRange(ValueError):
    """An image's numbers don't say which of them is white."""


class Plain:
    """Pillow decodes, and timm's transforms do the rest."""

    def decode(self, file: IO[bytes]) -> Image.Image:
        """See :class:`Decoder`; grey of 16 bits is scaled to 8, which Pillow would cut off."""
        image: Image.Image = Image.open(file)
        if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PNG"):
            grey = numpy.asarray(image).astype(numpy.uint32)
            image = Image.fromarray(((grey + _STEP_16 // 2) // _STEP_16).astype(numpy.uint8))
        elif image.mode in ("I", "F"):
            raise NoClearRange(f"pixels of mode {image.mode}; expected 8 or 16 bits")
        return image.convert("RGB")

    def fitted(self, transform: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The transform itself."""
        return transform


class Fast:
    """simplejpeg decodes JPEGs, and torch resizes random crops.

    Pixels are those of :class:`Plain` but for rounding: at most one of 255 levels apart after the
    crop. What is no plain JPEG is left to Pillow.
    """

    def decode(self, file: IO[bytes]) -> Pixels:
        """See :class:`Decoder`; (H, W, 3)."""
        import simplejpeg

        content = file.read()
        try:
            if simplejpeg.decode_jpeg_header(content)[2] in _COLOURS:
                return simplejpeg.decode_jpeg(content)
        except ValueError:  # another format, or damaged
            pass
        file.seek(0)
        return numpy.array(Plain().decode(file))

    def fitted(self, transform: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The same random draws, in the same order."""
        first, *others = getattr(transform, "transforms", [transform])
        if isinstance(first, RandomResizedCropAndInterpolation):
            return Compose([_Crop(first), *others])
        return Compose([Image.fromarray, first, *others])


class _Crop:
    """timm's random crop of an array, resized by torch's kernel for bytes."""

    def __init__(self, crop: RandomResizedCropAndInterpolation) -> None:
        self.crop = crop

    def __call__(self, pixels: Pixels) -> Image.Image:
        crop, image = self.crop, torch.from_numpy(pixels).permute(2, 0, 1)
        top, left, height, width = crop.get_params(image, crop.scale, crop.ratio)
        mode = crop.interpolation
        if isinstance(mode, tuple | list):
            mode = random.choice(mode)
        part = image[:, top : top + height, left : left + width].unsqueeze(0)
        part = part.contiguous(memory_format=torch.channels_last)  # as the result then is
        resized = nn.functional.interpolate(part, crop.size, mode=mode.value, antialias=True)
        return Image.fromarray(resized[0].permute(1, 2, 0).numpy())


_DECODERS: dict[Loader, type[Decoder]] = {"plain": Plain, "fast": Fast}


def decoder(loader: Loader) -> Decoder:
    """The decoder of a loader.

    Raises:
        UserError: It needs a package that isn't installed.
    """
    if loader == "fast" and importlib.util.find_spec("simplejpeg") is None:
        raise UserError(
            "loader: fast needs the package simplejpeg: pip install 'ofq[fast]'; or give "
            "loader: plain among the stage's resources"
        )
    return _DECODERS[loader]()
