"""Decoders of images: Pillow, or the faster simplejpeg."""

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

_COLOURS = ("YCbCr", "RGB", "Gray")  # converted to RGB as Pillow does

_STEP_16 = 257  # 65535 / 255

Pixels = NDArray[numpy.uint8]


class Decoder(Protocol):
    """Decoder of images, with an adapter for transforms of Pillow images."""

    def decode(self, file: IO[bytes]) -> Any:
        """Decode an image to RGB; raise Pillow's errors if that fails."""

    def fitted(self, transform: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Adapt a transform of Pillow images to the results of :meth:`decode`."""


class NoClearRange(ValueError):
    """Error: the mode of an image doesn't define its range of values."""


class Plain:
    """Decoder by Pillow, for timm's transforms as they are."""

    def decode(self, file: IO[bytes]) -> Image.Image:
        """Decode an image to RGB; scale 16-bit grey values to 8 bits, where Pillow would clip."""
        image: Image.Image = Image.open(file)
        if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PNG"):
            grey = numpy.asarray(image).astype(numpy.uint32)
            image = Image.fromarray(((grey + _STEP_16 // 2) // _STEP_16).astype(numpy.uint8))
        elif image.mode in ("I", "F"):
            raise NoClearRange(f"pixels of mode {image.mode}; expected 8 or 16 bits")
        return image.convert("RGB")

    def fitted(self, transform: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return the transform unchanged."""
        return transform


class Fast:
    """Decoder of JPEGs by simplejpeg, with random crops resized by torch.

    Pixels equal those of :class:`Plain` up to rounding: they differ by at most 1 of 255 levels
    after the crop. Other formats are decoded by Pillow.
    """

    def decode(self, file: IO[bytes]) -> Pixels:
        """Decode an image to (H, W, 3), RGB."""
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
        """Adapt a transform to arrays; it makes the same random draws in the same order."""
        first, *others = getattr(transform, "transforms", [transform])
        if isinstance(first, RandomResizedCropAndInterpolation):
            return Compose([_Crop(first), *others])
        return Compose([Image.fromarray, first, *others])


class _Crop:
    """Random crop of an array with timm's parameters, resized by torch's kernel for bytes."""

    def __init__(self, crop: RandomResizedCropAndInterpolation) -> None:
        self.crop = crop

    def __call__(self, pixels: Pixels) -> Image.Image:
        crop, image = self.crop, torch.from_numpy(pixels).permute(2, 0, 1)
        top, left, height, width = crop.get_params(image, crop.scale, crop.ratio)
        mode = crop.interpolation
        if isinstance(mode, tuple | list):
            mode = random.choice(mode)
        part = image[:, top : top + height, left : left + width].unsqueeze(0)
        part = part.contiguous(memory_format=torch.channels_last)  # which the result inherits
        resized = nn.functional.interpolate(part, crop.size, mode=mode.value, antialias=True)
        return Image.fromarray(resized[0].permute(1, 2, 0).numpy())


_DECODERS: dict[Loader, type[Decoder]] = {"plain": Plain, "fast": Fast}


def decoder(loader: Loader) -> Decoder:
    """Return the decoder of a loader.

    Raises:
        UserError: It needs a package that isn't installed.
    """
    if loader == "fast" and importlib.util.find_spec("simplejpeg") is None:
        raise UserError(
            "loader: fast needs the package simplejpeg: pip install 'ofq[fast]'; or give "
            "loader: plain among the stage's resources"
        )
    return _DECODERS[loader]()
