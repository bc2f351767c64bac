"""The fast loader shows models what the plain one does, but for rounding."""

import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from ofq.config.datasets import locate
from ofq.config.images import Augmentation, Images
from ofq.errors import UserError
from ofq.training.data.augmentation import randomness_of, training_transform
from ofq.training.data.decoding import Fast, Plain, decoder
from ofq.training.data.images import ImageSource, open_images

from tests.support.pictures import NANO, make_folder

PHOTOS = [Image.fromarray(pixels) for pixels in load_sample_images().images]
LEVEL = 1 / 255 / 0.5  # one of 255 levels, after the model's normalization


def encoded(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return io.BytesIO(file.getvalue())


@pytest.mark.parametrize("photo", PHOTOS)
@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGB", "JPEG", {"quality": 90}),
        ("RGB", "JPEG", {"quality": 75, "subsampling": 2, "progressive": True}),
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),  # ImageNet has some of these, and one PNG
        ("RGB", "PNG", {}),
        ("P", "PNG", {}),
    ],
)
def test_images_are_decoded_to_the_same_pixels(photo, mode, kind, options):
    file = encoded(photo.convert(mode), kind, **options)
    plain = np.asarray(Plain().decode(file))
    file.seek(0)
    assert np.array_equal(Fast().decode(file), plain)


@pytest.mark.parametrize("content", [b"", b"no image", encoded(PHOTOS[0]).getvalue()[:900]])
def test_damaged_images_are_as_unreadable_as_for_pillow(content):
    for each in (Plain(), Fast()):
        with pytest.raises((OSError, SyntaxError, ValueError)):
            each.decode(io.BytesIO(content))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random"])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.0001, 0.001)], ids=["smaller", "larger"])
def test_crops_are_the_same_but_for_one_level(interpolation, scale):
    images = Images(augmentation=Augmentation(scale=scale, interpolation=interpolation))
    transform = training_transform(NANO, 3, images)
    gaps = []
    for number, photo in enumerate(PHOTOS * 6):
        made = []
        for each in (Plain(), Fast()):
            with randomness_of(0, number):
                made.append(each.fitted(transform)(each.decode(encoded(photo))))
        gaps.append((made[0] - made[1]).abs())
    gaps = torch.stack(gaps)
    assert gaps.max() < 1.01 * LEVEL
    assert gaps.mean() < 0.1 * LEVEL


def test_images_without_augmentation_are_the_same():
    transform = training_transform(NANO, 3, Images())
    made = [each.fitted(transform)(each.decode(encoded(PHOTOS[0]))) for each in (Plain(), Fast())]
    assert torch.equal(*made)


def test_batches_differ_by_rounding_alone(tmp_path):
    """The paper's augmentation, on top of the crop: the same random draws."""
    folder = make_folder(tmp_path / "images")
    wanted = Images(augmentation=Augmentation(policy="rand-m9-mstd0.5-inc1", erasing=0.25))
    (plain, labels, _), (fast, others, _) = (
        next(
            open_images(ImageSource(locate(str(folder), folder), 1, decoder=each), wanted, NANO, 0)
            .train_batches(0, 12)
        )
        for each in (Plain(), Fast())
    )  # fmt: skip
    assert torch.equal(labels, others)
    # posterizing or equalizing can make more of a level, in few pixels
    assert ((plain - fast).abs() < 1.01 * LEVEL).double().mean() > 0.97


def test_missing_package_is_a_clear_error(monkeypatch):
    assert isinstance(decoder("plain"), Plain)
    assert isinstance(decoder("fast"), Fast)
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'ofq\[fast\]'"):
        decoder("fast")


@pytest.mark.parametrize("each", [Plain(), Fast()])
def test_grey_of_16_bits_is_scaled_to_8(each):
    values = [0, 128, 129, 1000, 20000, 32768, 65534, 65535]
    file = encoded(Image.fromarray(np.array([values], np.uint16)), "PNG")
    pixels = np.asarray(each.decode(file))
    assert pixels.shape == (1, len(values), 3)
    for channel in range(3):  # 65535 / 255 = 257
        assert pixels[0, :, channel].tolist() == [0, 0, 1, 4, 78, 128, 255, 255]


@pytest.mark.parametrize("each", [Plain(), Fast()])
@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_without_a_clear_range_are_unreadable(each, kind):
    file = encoded(Image.fromarray(np.array([[0, 1, 70000]], kind)), "TIFF")
    with pytest.raises(ValueError, match=r"pixels of mode [IF]; expected 8 or 16 bits"):
        each.decode(file)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK"])
def test_other_modes_are_decoded_as_pillow_does(mode):
    image = PHOTOS[0].convert("RGBA").convert("L" if mode == "1" else mode if mode != "PA" else "P")
    image = image.convert(mode)
    for each in (Plain(), Fast()):
        kind = "TIFF" if mode in ("CMYK", "PA") else "PNG"
        decoded = np.asarray(each.decode(encoded(image, kind)))
        assert np.array_equal(decoded, np.asarray(image.convert("RGB")))
