"""Small data sets shaped like ImageNet, and a small model for them."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from timm.models import VisionTransformer, register_model

CLASSES, TRAIN, VAL = ("n01", "n02", "n10"), 7, 3
NANO = "nano_deit_patch8_32"


@register_model
def nano_deit_patch8_32(pretrained: bool = False, **options: object) -> VisionTransformer:
    """A DeiT for 32 × 32 colour images."""
    model = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3,
        num_classes=int(str(options.get("num_classes", 1000))), drop_path_rate=0.1,
    )  # fmt: skip
    model.pretrained_cfg = {
        "input_size": (3, 32, 32), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5),
        "interpolation": "bicubic", "crop_pct": 0.9,
    }  # fmt: skip
    return model


def make_folder(root: Path, train: int = TRAIN, val: int = VAL) -> Path:
    """SPLIT/CLASS/IMAGE with JPEGs of several sizes; each class has a colour, each image a grey."""
    rng = np.random.default_rng(0)
    for split, each in (("train", train), ("val", val)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(each):
                pixels = rng.integers(0, 120, (40 + 3 * i, 36 + 5 * label, 3), dtype=np.uint8)
                pixels[..., label] += 120
                Image.fromarray(pixels).save(folder / f"{split}_{label}_{i}.JPEG", quality=95)
    return root


def make_tars(folder: Path, root: Path) -> Path:
    """train.tar with CLASS/IMAGE, and val/CLASS.tar, of a folder's images."""
    (root / "val").mkdir(parents=True)
    with tarfile.open(root / "train.tar", "w") as tar:
        for name in CLASSES:
            tar.add(folder / "train" / name, arcname=name)
    for name in CLASSES:
        with tarfile.open(root / f"val/{name}.tar", "w") as tar:
            for path in sorted((folder / "val" / name).iterdir()):
                tar.add(path, arcname=path.name)
    return root


def make_shards(folder: Path, root: Path) -> Path:
    """WebDataset shards of a folder's images, five images each."""
    root.mkdir(parents=True)
    for split in ("train", "val"):
        images = sorted((folder / split).rglob("*.JPEG"))
        for number, first in enumerate(range(0, len(images), 5)):
            with tarfile.open(root / f"tiny-{split}-{number:04d}.tar", "w") as tar:
                for path in images[first : first + 5]:
                    label = str(CLASSES.index(path.parent.name)).encode()
                    tar.add(path, arcname=f"{path.stem}.jpeg")
                    member = tarfile.TarInfo(f"{path.stem}.cls")
                    member.size = len(label)
                    tar.addfile(member, io.BytesIO(label))
    return root
