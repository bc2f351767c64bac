"""Class folders, tar files and shards of all sorts: numbered by their names alone, or refused.

Found by it and mended:

- names that tie in timm's natural order (``A``/``a``, ``1``/``01``) were numbered by the hash seed;
- a class named ``²`` ended the reader with a ValueError;
- ``train/CLASS/images``, images directly in a split, and one class were read as one class, and
  ``train/dog/small`` beside ``train/cat/small`` as the same one;
- hidden folders became classes, and hidden files images;
- class folders that are links weren't part of the fingerprint;
- links in tar files, and images that lay twice in one, were left out or counted twice;
- gaps in the labels of shards shifted classes, and labels below 0 were taken;
- a hidden ``._train.tar`` beside folders made them a data set of tar files.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

import ofq.quantization  # noqa: F401 - lets timm be imported beside a CPU build of torch
from ofq.config.datasets import locate
from ofq.errors import UserError
from ofq.training.data.readers import describe, open_split

from tests.support.fuzzing import _LONG, fuzzed

TIES = ["A", "a", "1", "01", "001", "n1", "N1", "n01", "n1a", "N01A"]
OTHERS = [
    "dog",
    "dog-big",
    "dog.big",
    "cat 2",
    "cat 10",
    "é",
    "E",
    "²",
    "x²",
    "٣",
    "train",
    "val",
    "a\nb",
]
HIDDEN = ["._{}", ".{}", ".ipynb_checkpoints/{}", "__MACOSX/{}", "{}/._1.png", "{}/.x/1.png",
          "{}/__MACOSX/1.png", ".DS_Store"]  # fmt: skip
QUIRKS = ["none", "deep", "flat", "empty", "merging", "dangling", "loop", "twice"]
SEEDS = ["1", "2", "3", "4", "5"] if _LONG else ["1", "2"]

names = st.sampled_from(TIES + OTHERS) | st.text("aA01", min_size=1, max_size=3)
data_sets = st.fixed_dictionaries(
    {
        "classes": st.dictionaries(names, st.integers(1, 3), min_size=1, max_size=5),
        "hidden": st.sets(st.sampled_from(HIDDEN)),
        "links": st.sets(st.sampled_from(["class", "image", "split"])),
        "quirk": st.sampled_from(["none"] * 5 + QUIRKS),
        "layout": st.sampled_from(["folder", "tar", "tars", "around", "shards"]),
    }
)


def files_of(spec):
    """Content of each file of a split by its name, and of each that isn't data."""
    classes = list(spec["classes"])
    images = {f"{c}/{i}.png": f"{c}|{i}" for c, n in spec["classes"].items() for i in range(n)}
    others = {pattern.format(classes[0]): "hidden" for pattern in spec["hidden"]}
    others["labels.txt"] = "no image"
    quirk = {
        "deep": {f"{classes[0]}/images/0.png": "deep"},
        "flat": {"0.png": "flat"},
        "merging": {f"{c}/small/0.png": "small" for c in classes},
    }.get(spec["quirk"], {})
    return images | quirk, others


def write_folder(root, spec, reverse=False):
    """Write a data set of folders; links are to what lies elsewhere."""
    images, others = files_of(spec)
    aside = root.with_name(f"{root.name}-aside")
    for split in ("train", "val"):
        written = [*images.items(), *others.items()]
        for name, text in reversed(written) if reverse else written:
            path = root / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        first = next(iter(spec["classes"]))
        if spec["quirk"] == "empty":
            (root / split / "nothing").mkdir()
        if spec["quirk"] == "dangling":
            (root / split / first / "gone.png").symlink_to("nowhere")
        if spec["quirk"] == "loop":
            (root / split / first / "loop").symlink_to("..")
    linked = {"split": "train", "class": f"train/{first}", "image": f"train/{first}/0.png"}
    for kind in ("image", "class", "split"):
        if kind in spec["links"]:
            path = aside / kind
            path.parent.mkdir(exist_ok=True)
            (root / linked[kind]).rename(path)
            (root / linked[kind]).symlink_to(path)
    return str(root)


def add(tar, name, text):
    member = tarfile.TarInfo(name)
    member.size = len(text.encode())
    tar.addfile(member, io.BytesIO(text.encode()))


def write_tars(root, spec, reverse=False):
    """Write train.tar and val.tar, or a tar file for each class."""
    images, others = files_of(spec)
    written = [*images.items(), *others.items()]
    written = written[::-1] if reverse else written
    for split in ("train", "val"):
        if spec["layout"] == "tars":
            (root / split).mkdir(parents=True)
            parts = [(name.partition("/"), text) for name, text in written]
            for own in {top for (top, _, rest), _ in parts if rest}:
                with tarfile.open(root / split / f"{own}.tar", "w") as tar:
                    for (top, _, rest), text in parts:
                        if top == own and rest:
                            add(tar, rest, text)
            (root / split / "._x.tar").write_text("attributes")
            continue
        root.mkdir(exist_ok=True)
        with tarfile.open(root / f"{split}.tar", "w") as tar:
            top = f"{split}/" if spec["layout"] == "around" else "./" if reverse else ""
            for name, text in written:
                add(tar, top + name, text)
            first = next(iter(images))
            if spec["quirk"] == "twice":
                add(tar, top + first, "again")
            if spec["quirk"] in ("dangling", "loop"):
                member = tarfile.TarInfo(f"{top}{first}.png")
                member.type, member.linkname = tarfile.SYMTYPE, ".."
                tar.addfile(member)
            if spec["quirk"] == "empty":
                member = tarfile.TarInfo(f"{top}nothing")
                member.type = tarfile.DIRTYPE
                tar.addfile(member)
    return str(root)


def write_shards(root, spec, reverse=False):
    """Write shards whose labels count the classes; quirks become bad labels."""
    root.mkdir()
    numbers = {name: number for number, name in enumerate(sorted(spec["classes"]))}
    bad = {
        "deep": "-1",
        "flat": "cat",
        "empty": "7",
        "merging": "1.0",
        "dangling": "",
        "loop": "1_0",
    }
    for split in ("train", "val"):
        with tarfile.open(root / f"x-{split}-0.tar", "w") as tar:
            for name, count in spec["classes"].items():
                for index in range(count):
                    key = f"{numbers[name]}-{index}"
                    add(tar, f"{key}.png", f"{numbers[name]}|{index}")
                    add(tar, f"{key}.cls", str(numbers[name]))
            add(tar, "._0-0.png", "hidden")
            add(tar, "._0-0.cls", "12")
            add(tar, ".x/9.png", "hidden")
            if spec["quirk"] in bad:
                add(tar, "bad.png", "bad")
                add(tar, "bad.cls", bad[spec["quirk"]])
            if spec["quirk"] == "twice":
                add(tar, "0-0.png", "again")
    return f"wds/{root}"


def write(root, spec, reverse=False):
    how = {"folder": write_folder, "shards": write_shards}.get(spec["layout"], write_tars)
    return how(root, spec, reverse)


def read(given):
    """What a process has of a data set, as plain data, or the line by which it refuses it."""
    try:
        place = locate(given, Path("/"))
        open_split.cache_clear()
        split = open_split(place, "train")
        samples = []
        for index in range(len(split)):
            file, label = split.reader[index]
            with file:
                samples.append([file.read().decode(), label])
        facts = describe("fuzzed", place, "train", "val")
        return {"classes": facts.class_names, "samples": samples, "data": facts.fingerprint}
    except UserError as error:
        return str(error)


def expected_classes(spec):
    """Class names in the order of their numbers, or None if the data set must be refused."""
    from timm.utils.misc import natural_key  # after this package, which makes it importable

    refused = spec["quirk"] != "none" and not (
        (spec["layout"] == "folder" and spec["quirk"] == "twice")
        or (
            spec["layout"] == "tars"
            and spec["quirk"] in ("flat", "empty", "dangling", "loop", "twice")
        )
    )
    if refused or len(spec["classes"]) < 2:
        return None
    if spec["layout"] == "shards":
        return [str(number) for number in range(len(spec["classes"]))]
    return sorted(spec["classes"], key=lambda name: (natural_key(name.replace("²", "^")), name))


def in_another_process(places, seed):
    """What a process with another hash seed has of data sets."""
    environment = os.environ | {
        "PYTHONHASHSEED": seed,
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, __file__], input=json.dumps(places), env=environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_classes_are_numbered_by_names_alone_or_refused():
    """In every layout, order of writing and process; each image has its own class's number."""
    seen = {}
    with tempfile.TemporaryDirectory() as folder:

        @fuzzed(ci=40, long=400)
        @given(data_sets)
        def each(spec):
            root = Path(folder) / str(len(seen))
            found = read(given := write(root, spec))
            seen[given] = found
            classes = expected_classes(spec)
            if classes is None:
                assert isinstance(found, str), (spec, found)
                assert "\n" not in found
                return
            assert not isinstance(found, str), (spec, found)
            if "²" not in "".join(classes):
                assert found["classes"] == classes
            assert sorted(found["classes"]) == sorted(classes)
            for text, label in found["samples"]:
                assert text.partition("|")[0] == found["classes"][label]
            assert len(found["samples"]) == sum(spec["classes"].values())
            if spec["layout"] != "shards":
                again = read(write(Path(folder) / f"{len(seen)}-again", spec, reverse=True))
                assert again == found

        each()
        assert sum(isinstance(found, str) for found in seen.values()) < len(seen)
        for seed in SEEDS:
            assert in_another_process([*seen], seed) == [*seen.values()]


def change_pixel(image):
    content = bytearray(image.read_bytes())
    content[0] ^= 1
    image.write_bytes(content)


def link_elsewhere(image):
    other = image.parents[2] / "elsewhere"
    other.write_bytes(image.read_bytes() + b"!")
    image.unlink()
    image.symlink_to(other)


def link_to_its_copy(image):
    other = image.parents[2] / "elsewhere"
    image.rename(other)
    image.symlink_to(other)


CHANGES = {
    "pixel": (change_pixel, True),
    "size": (lambda image: image.write_text("longer than it was"), True),
    "link elsewhere": (link_elsewhere, True),
    "image renamed": (lambda image: image.rename(image.with_name("9.png")), True),
    "image copied": (lambda image: shutil.copy(image, image.with_name("9.png")), True),
    "class renamed": (lambda image: image.parent.rename(image.parent.with_name("zz")), True),
    "image moved": (lambda image: image.rename(image.parents[1] / "other" / "9.png"), True),
    "link to its copy": (link_to_its_copy, False),
    "touched": (lambda image: os.utime(image, (0, 0)), False),
    "hidden file": (lambda image: image.with_name(".9.png").write_text("x"), False),
    "attributes": (lambda image: image.with_name("._0.png").write_text("x"), False),
    "hidden folder": (lambda image: shutil.copytree(image.parent, image.parents[1] / ".x"), False),
    "text": (lambda image: image.with_name("boxes.txt").write_text("x"), False),
    "text above": (lambda image: (image.parents[1] / "words.txt").write_text("x"), False),
}


@fuzzed(ci=40, long=400)
@given(names, st.integers(2, 4), st.lists(st.sampled_from(sorted(CHANGES)), min_size=1, max_size=2))
def test_fingerprint_changes_if_and_only_if_what_is_read_does(name, count, chosen):
    with tempfile.TemporaryDirectory() as folder:
        spec = {"classes": {name: count, "other": 2}, "hidden": {}, "links": {}, "quirk": "none"}
        given = write_folder(Path(folder) / "set", spec)
        before, changed = read(given)["data"], False
        for change in dict.fromkeys(chosen):
            images = sorted((Path(folder) / "set/train").glob("[!.]*/[!.]*.png"))
            image = next((path for path in images if path.parent.name != "other"), None)
            if image is None or image.is_symlink():
                continue
            how, counts = CHANGES[change]
            how(image)
            changed = changed or counts
        found = read(given)
        if isinstance(found, str):  # the one image of a class has gone, or a class's name was taken
            assert changed
        else:
            assert (found["data"] != before) == changed, chosen


if __name__ == "__main__":
    print(json.dumps([read(place) for place in json.load(sys.stdin)]))
