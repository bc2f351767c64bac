"""Class names and labels of every layout: read as they are meant, or refused in a line."""

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from ofq.config.datasets import locate
from ofq.errors import UserError
from ofq.training.data.decoding import Plain
from ofq.training.data.readers import describe, examine, open_split

from tests.support.pictures import CLASSES, make_folder, make_shards, make_tars


def place_of(given, root=Path("/")):
    open_split.cache_clear()
    return locate(str(given), root)


def refusal(given, *splits):
    """The one line by which a data set is refused."""
    with pytest.raises(UserError) as caught:
        examine(place_of(given), None, *(splits or ("train", "val")))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def classes(given, split="train"):
    return list(open_split(place_of(given), split).classes)


def picture(path, colour=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(path)


def data_set(root, *names, splits=("train", "val")):
    """A data set of images with the given names in either split."""
    for split in splits:
        for name in names:
            picture(root / split / name)
    return root


def packed(folder, tar):
    """A tar file of a folder's content."""
    tar.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(tar, "w") as file:
        for path in sorted(folder.iterdir()):
            file.add(path, arcname=path.name)


def tars_of(folder, root):
    """The same data set as train.tar and val.tar."""
    for split in ("train", "val"):
        packed(folder / split, root / f"{split}.tar")
    return root


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["b", "A", "a"], ["A", "a", "b"]),
        (["01", "1", "001", "2"], ["001", "01", "1", "2"]),
        (["n10", "n2", "N2"], ["N2", "n2", "n10"]),
        (["cat 10", "cat 9"], ["cat 9", "cat 10"]),
    ],
)
def test_names_that_tie_are_in_the_order_of_their_characters(tmp_path, names, expected):
    folder = data_set(tmp_path / "f", *(f"{name}/0.png" for name in names))
    assert classes(folder) == expected
    assert classes(tars_of(folder, tmp_path / "t")) == expected


def test_images_are_in_the_order_of_timms_reader(tmp_path):
    """Of folders, whose names are ordinary, as of timm's; so runs on them keep their numbers."""
    from timm.data import create_dataset

    names = ["dog/10.png", "dog/9.png", "dog-big/1.png", "n2/x1.png", "n10/X0.png", "n2/x01b.png"]
    folder = data_set(tmp_path / "f", *names)
    theirs = create_dataset("", root=str(folder), split="training").reader
    ours = open_split(place_of(folder), "train").reader
    assert ours.filenames(absolute=True) == theirs.filenames(absolute=True)
    assert ours.class_to_idx == theirs.class_to_idx
    assert ours.labels.tolist() == [label for _, label in theirs.samples]


DEEP = [
    ("tiny imagenet", ["n01/images/0.png", "n02/images/1.png"], "n01/images/0.png"),
    ("merging", ["dog/small/0.png", "cat/small/0.png"], "small/0.png"),
    ("far below", ["a/0.png", "b/1.png", "b/x/y/z/1.png"], "b/x/y/z/1.png"),
]
FLAT = [
    ("flat", ["0.png", "1.png"], "0.png lies directly|0.png lie directly"),
    ("mixed", ["0.png", "a/0.png", "b/0.png"], "0.png lies directly|0.png lie directly"),
    ("one class", ["a/0.png", "a/1.png"], "'a', one class"),
]


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(("name", "names", "told"), DEEP + FLAT, ids=[n for n, *_ in DEEP + FLAT])
def test_other_layouts_are_refused_with_the_one_expected(tmp_path, name, names, told, split):
    other = "val" if split == "train" else "train"
    folder = data_set(tmp_path / "f", *names, splits=[split])
    data_set(folder, "a/0.png", "b/0.png", splits=[other])
    text = refusal(folder)
    assert any(word in text for word in told.split("|")), text
    assert f"expected {split}/CLASS/IMAGE" in text
    text = refusal(tars_of(folder, tmp_path / "t"))
    assert any(word in text for word in told.split("|")), text
    assert f"expected {split}.tar with CLASS/IMAGE" in text


def test_tar_of_a_class_with_folders_in_it_is_refused(tmp_path):
    data_set(tmp_path / "f", "a/x/0.png", "b/0.png")
    for split in ("train", "val"):
        for name in "ab":
            packed(tmp_path / "f" / split / name, tmp_path / "t" / split / f"{name}.tar")
    assert "x/0.png lies too deep" in refusal(tmp_path / "t")


def test_tar_may_have_its_split_around_all_or_a_class_around_its_images(tmp_path):
    folder = data_set(tmp_path / "f", "a/0.png", "b/0.png")
    expected = describe("x", place_of(folder), "train", "val")
    (tmp_path / "t").mkdir()
    for split in ("train", "val"):
        with tarfile.open(tmp_path / "t" / f"{split}.tar", "w") as tar:
            tar.add(folder / split, arcname=split)
    assert describe("x", place_of(tmp_path / "t"), "train", "val") == expected
    for split in ("train", "val"):
        for name in "ab":
            (tmp_path / "c" / split).mkdir(parents=True, exist_ok=True)
            with tarfile.open(tmp_path / "c" / split / f"{name}.tar", "w") as tar:
                tar.add(folder / split / name, arcname=name)
    assert describe("x", place_of(tmp_path / "c"), "train", "val") == expected


def test_tar_of_class_tars_is_read_as_its_folders(tmp_path):
    """As ImageNet is handed out."""
    folder = make_folder(tmp_path / "f")
    tars = tmp_path / "t"
    for split in ("train", "val"):
        for name in CLASSES:
            packed(folder / split / name, tars / split / f"{name}.tar")
        packed(tars / split, tmp_path / "n" / f"{split}.tar")
    expected = describe("x", place_of(folder), "train", "val")
    assert describe("x", place_of(tmp_path / "n"), "train", "val") == expected


@pytest.mark.parametrize("layout", ["folder", "tar"])
def test_empty_class_is_refused_by_name(tmp_path, layout):
    folder = data_set(tmp_path / "f", "a/0.png", "b/0.png")
    (folder / "train/c").mkdir()
    (folder / "train/c/notes.txt").write_text("no image")
    given = folder if layout == "folder" else tars_of(folder, tmp_path / "t")
    text = refusal(given)
    assert "no image" in text
    assert "c" in text


@pytest.mark.parametrize("layout", ["folder", "tar"])
def test_split_with_other_classes_is_refused(tmp_path, layout):
    folder = data_set(tmp_path / "f", "a/0.png", "b/0.png", splits=["train"])
    data_set(folder, "a/0.png", "c/0.png", splits=["val"])
    given = folder if layout == "folder" else tars_of(folder, tmp_path / "t")
    assert "split 'train' has no image of c, which split 'val' has" in refusal(given)


def test_two_folders_of_one_split_are_refused(tmp_path):
    folder = data_set(tmp_path / "f", "a/0.png", "b/0.png", splits=["train", "val", "validation"])
    assert "has both val/ and validation/" in refusal(folder)


HIDDEN = ["train/.ipynb_checkpoints/0.png", "train/__MACOSX/0.png", "train/n01/._0.png",
          "train/n01/.thumbs/0.png", "val/.DS_Store", "._train.tar"]  # fmt: skip


@pytest.mark.parametrize("layout", ["folder", "tar", "wds"])
def test_hidden_files_and_folders_are_no_data(tmp_path, layout):
    make = {"folder": lambda folder, root: folder, "tar": make_tars, "wds": make_shards}[layout]
    folder = make_folder(tmp_path / "f")
    prefix = "wds/" if layout == "wds" else ""
    given = make(folder, tmp_path / "given")
    before = describe("x", place_of(f"{prefix}{given}"), "train", "val")
    if layout == "folder":
        for name in HIDDEN:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"hidden")
    for tar in sorted(given.glob("[!.]*.tar")):
        with tarfile.open(tar, "a") as file:
            for name in (".x/0.png", "__MACOSX/0.png", "n01/._0.png", "._1.cls", ".DS_Store"):
                file.addfile(tarfile.TarInfo(name))
        (tar.parent / f"._{tar.name}").write_bytes(b"attributes")
    place = place_of(f"{prefix}{given}")
    assert place.layout == layout
    assert describe("x", place, "train", "val") == before


def test_links_are_read_and_fingerprinted_as_what_they_lead_to(tmp_path):
    folder = make_folder(tmp_path / "f")
    expected = describe("x", place_of(folder), "train", "val")
    linked = tmp_path / "linked"
    (linked / "train/n02").mkdir(parents=True)
    (linked / "val").symlink_to(folder / "val")
    for name in ("n01", "n10"):
        (linked / "train" / name).symlink_to(folder / "train" / name)
    for image in (folder / "train/n02").iterdir():
        (linked / "train/n02" / image.name).symlink_to(image)
    assert describe("x", place_of(linked), "train", "val") == expected
    (linked / "train/n01").unlink()
    (linked / "train/n01").symlink_to(folder / "train/n02")
    found = describe("x", place_of(linked), "train", "val")
    assert found.fingerprints["train"] != expected.fingerprints["train"]
    assert found.fingerprints["val"] == expected.fingerprints["val"]


@pytest.mark.parametrize(
    ("at", "target", "told"),
    [
        ("train/c", "nowhere", "train/c: a link that leads nowhere"),
        ("train/a/1.png", "nowhere.png", "train/a/1.png: a link that leads nowhere"),
        ("train/a/1.png", "1.png", "1.png"),
        ("train/a/loop", "..", "in a folder below that of its class"),
        ("train/c", "c", "train/c"),
    ],
)
def test_links_that_lead_nowhere_or_in_circles_are_refused(tmp_path, at, target, told):
    folder = data_set(tmp_path / "f", "a/0.png", "b/0.png")
    (folder / at).symlink_to(target)
    assert told in refusal(folder)


def test_folder_of_links_in_circles_without_an_image_is_none_of_the_data(tmp_path):
    folder = data_set(tmp_path / "f", "a/0.png", "b/0.png")
    before = describe("x", place_of(folder), "train", "val")
    (folder / "train/a/notes/more").mkdir(parents=True)
    (folder / "train/a/notes/more/again").symlink_to("..")
    assert describe("x", place_of(folder), "train", "val") == before


@pytest.mark.parametrize(
    ("kind", "told"), [(tarfile.SYMTYPE, "is a link"), (tarfile.LNKTYPE, "is a link")]
)
def test_links_in_tar_files_are_refused(tmp_path, kind, told):
    tars = tars_of(data_set(tmp_path / "f", "a/0.png", "b/0.png"), tmp_path / "t")
    with tarfile.open(tars / "train.tar", "a") as tar:
        member = tarfile.TarInfo("b/1.png")
        member.type, member.linkname = kind, "b/0.png"
        tar.addfile(member)
    assert f"b/1.png {told}" in refusal(tars)


def test_image_that_lies_twice_in_a_tar_file_is_refused(tmp_path):
    tars = tars_of(data_set(tmp_path / "f", "a/0.png", "b/0.png"), tmp_path / "t")
    with tarfile.open(tars / "train.tar", "a") as tar:
        tar.add(tmp_path / "f/train/a/0.png", arcname="./a/0.png")
    assert "a/0.png twice" in refusal(tars)


def test_class_whose_name_no_record_can_hold_is_refused(tmp_path):
    folder = data_set(tmp_path / "f", "a/0.png", "b/0.png")
    os.rename(folder / "train/a", os.fsencode(folder / "train") + b"/\xff")
    assert "isn't UTF-8; rename it" in refusal(folder)


def test_image_whose_name_is_any_bytes_is_read(tmp_path):
    folder = data_set(tmp_path / "f", "a/0.png", "b/0.png")
    before = describe("x", place_of(folder), "train", "val")
    os.rename(folder / "train/a/0.png", os.fsencode(folder / "train/a") + b"/\xff.png")
    assert describe("x", place_of(folder), "train", "val").fingerprint != before.fingerprint
    examine(place_of(folder), 2, "train", "val")


def shards(root, *labels):
    """Shards of an image for each label, which is text."""
    root.mkdir()
    picture(root.parent / "0.png")
    for split in ("train", "val"):
        with tarfile.open(root / f"x-{split}-0.tar", "w") as tar:
            for index, label in enumerate(labels):
                tar.add(root.parent / "0.png", arcname=f"{index}.png")
                member = tarfile.TarInfo(f"{index}.cls")
                member.size = len(label)
                tar.addfile(member, io.BytesIO(label.encode()))
    return f"wds/{root}"


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ("0 2 5", "0, 2, 5; expected two classes or more, numbered from 0 without gaps"),
        ("1 2 3", "without gaps; no image has 0"),
        ("0 -1", "1.cls holds '-1'; expected the number of a class"),
        ("0 cat", "1.cls holds 'cat'"),
        ("0 1.5", "1.cls holds '1.5'"),
        ("0 1_0", "1.cls holds '1_0'"),
        ("0 999999999999999999999999", "1.cls holds '9"),
        ("0 0", "are 0; expected two classes or more"),
    ],
)
def test_labels_of_shards_that_do_not_count_classes_are_refused(tmp_path, labels, told):
    assert told in refusal(shards(tmp_path / "s", *labels.split()))


def test_labels_of_shards_without_gaps_are_taken_as_they_are(tmp_path):
    split = open_split(place_of(shards(tmp_path / "s", "1", " 0\n", "2")), "train")
    assert split.reader.labels.tolist() == [1, 0, 2]


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Makes a Hugging Face dataset of given columns, and gives its place."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    pixels = Image.new("RGB", (8, 8))

    def make(**columns):
        kinds = {name: kind for name, (kind, _) in columns.items()}
        values = {
            name: [pixels if value == "picture" else value for value in given]
            for name, (_, given) in columns.items()
        }
        made = datasets.Dataset.from_dict(values, features=datasets.Features(kinds))
        (tmp_path / "hf").mkdir()
        for split in ("train", "validation"):
            made.to_parquet(tmp_path / f"hf/{split}-00000-of-00001.parquet")
        return f"hfds/{tmp_path}/hf"

    return make


def kinds():
    import datasets

    names = datasets.ClassLabel(names=["dog", "cat"])
    return datasets.Image(), names, datasets.Value


def test_columns_that_are_clear_are_read_whatever_their_names(table):
    image, label, _ = kinds()
    given = table(img=(image, ["picture"] * 3), fine_label=(label, [1, 0, 1]))
    split = open_split(place_of(given), "train")
    assert split.classes == {"dog": 0, "cat": 1}
    assert split.reader.labels.tolist() == [1, 0, 1]
    assert split.decode(0, Plain())[0].size == (8, 8)
    assert examine(place_of(given), 2, "train", "val").images == {"train": 3, "val": 3}
    assert describe("x", place_of(given), "val").images_by_class == {"val": [1, 2]}


def test_labels_of_text_are_classes_in_natural_order(table):
    image, _, value = kinds()
    given = table(image=(image, ["picture"] * 3), label=(value("string"), ["n10", "n2", "n10"]))
    split = open_split(place_of(given), "train")
    assert split.classes == {"n2": 0, "n10": 1}
    assert split.reader.labels.tolist() == [1, 0, 1]


def test_whole_numbers_without_gaps_are_classes(table):
    image, _, value = kinds()
    given = table(image=(image, ["picture"] * 3), labels=(value("int64"), [2, 0, 1]))
    facts = describe("x", place_of(given), "train")
    assert (facts.class_names, facts.numbered) == (["0", "1", "2"], True)


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"label": ("int64", [0, 2, 5])}, "column 'label': labels are 0, 2, 5; expected"),
        ({"label": ("int64", [0, 1, -1])}, "column 'label': labels are -1, 0, 1; expected"),
        ({"label": ("names", [0, 1, -1])}, "labels are -1, 0, 1; expected two classes or more"),
        ({"label": ("names", [0, 1, None])}, "column 'label': 1 rows without a label"),
        ({"label": ("names", [1, 1, 1])}, "labels are 1; expected two classes or more"),
        ({"label": ("float32", [0.0, 1.0, 0.5])}, "column 'label' is of type float32; expected"),
        ({"label": ("string", ["a", "b", None])}, "1 rows without a label"),
        ({"target": ("int64", [0, 1, 0])}, "columns are: image (PIL.Image.Image), target (int64)"),
        (
            {"fine": ("names", [0, 1, 0]), "coarse": ("names", [0, 1, 0])},
            "expected one column of class labels, or one named 'label'; columns are:",
        ),
    ],
)
def test_labels_of_tables_that_are_not_clear_are_refused(table, columns, told):
    image, names, value = kinds()
    columns = {
        name: (names if kind == "names" else value(kind), values)
        for name, (kind, values) in columns.items()
    }
    assert told in refusal(table(image=(image, ["picture"] * 3), **columns))


def test_tables_without_clear_images_are_refused(table):
    image, names, _ = kinds()
    given = table(image=(image, ["picture", None, "picture"]), label=(names, [0, 1, 1]))
    assert "column 'image': 1 rows without an image, the first of them row 1" in refusal(given)


def test_tables_with_several_columns_of_images_are_refused(table):
    image, names, _ = kinds()
    both = (image, ["picture"] * 2)
    text = refusal(table(left=both, right=both, label=(names, [0, 1])))
    assert "expected one column of images, or one named 'image'; columns are: left" in text


def test_folders_that_a_table_would_merge_are_refused(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    data_set(tmp_path / "f", "dog/small/0.png", "cat/small/0.png", "cat/big/0.png")
    assert "folders of classes lie in several folders" in refusal(f"hfds/{tmp_path}/f")


def test_fingerprint_of_a_large_split_covers_names_and_sizes(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "f")
    assert describe("x", place_of(folder), "train").covers == {"train": "contents"}
    monkeypatch.setattr("ofq.training.data.readers._HASHED", 10)
    before = describe("x", place_of(folder), "train")
    assert before.covers == {"train": "names and sizes"}
    image = folder / "train/n01/train_0_0.JPEG"
    content = image.read_bytes()
    image.write_bytes(content[::-1])
    assert describe("x", place_of(folder), "train") == before
    image.write_bytes(content + b"!")
    assert describe("x", place_of(folder), "train").fingerprint != before.fingerprint


def tar_of(path, *members):
    """A tar file of members with their content; where each of their headers begins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    starts = []
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            starts.append(tar.offset)
            tar.addfile(member, io.BytesIO(content))
    return starts


def png(colour=0):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(file, "PNG")
    return file.getvalue()


def flipped(content, start):
    return content[:start] + bytes([content[start] ^ 4]) + content[start + 1 :]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda content, start: content[:start], "cut off or damaged at byte "),
        (lambda content, start: content[: start + 100], "cut off or damaged at byte "),
        (flipped, "cut off or damaged at byte "),
        (lambda content, start: content + content, "goes on after its end"),
    ],
    ids=["cut between files", "cut in a header", "flipped bit", "joined"],
)
@pytest.mark.parametrize("layout", ["tar", "wds"])
def test_tar_that_would_lose_its_last_images_is_refused(tmp_path, layout, damage, told):
    members = [(f"{'ab'[i % 2]}/{i}.png", png(i)) for i in range(6)]
    if layout == "wds":
        members = [
            m for i in range(6) for m in ((f"{i}.png", png(i)), (f"{i}.cls", b"%d" % (i % 2)))
        ]
    for split in ("train", "val"):
        starts = tar_of(tmp_path / f"{split}.tar", *members)
    path = tmp_path / "val.tar"
    path.write_bytes(damage(path.read_bytes(), starts[4]))
    given = Path("wds" + str(tmp_path)) if layout == "wds" else tmp_path
    assert refusal(given).startswith(f"{path}: {told}")


def test_class_tar_within_a_tar_that_is_cut_off_is_refused(tmp_path):
    starts = tar_of(tmp_path / "c.tar", *((f"{i}.png", png(i)) for i in range(4)))
    whole = (tmp_path / "c.tar").read_bytes()
    tar_of(tmp_path / "train.tar", ("a.tar", whole), ("b.tar", whole[: starts[2]]))
    tar_of(tmp_path / "val.tar", ("a.tar", whole), ("b.tar", whole))
    assert "cut off or damaged" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["c.tar.gz", "c.TGZ", "c.tar.zst"])
def test_compressed_class_among_tar_files_is_refused(tmp_path, name):
    for split in ("train", "val"):
        for other in ("a.tar", "b.tar", name):
            tar_of(tmp_path / split / other, ("0.png", png()))
    assert f"{name} would be passed over" in refusal(tmp_path)


def test_folder_of_a_class_beside_tar_files_is_refused(tmp_path):
    for split in ("train", "val"):
        for name in ("a.tar", "b.tar"):
            tar_of(tmp_path / split / name, ("0.png", png()))
        picture(tmp_path / split / "c/0.png")
    assert "has folders such as c beside tar files" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "members", "told"),
    [
        ("x-train-val-0.tar", [], "named like shards of both splits"),
        ("x-train-1.tar.gz", [], "x-train-1.tar.gz would be passed over"),
        ("x-train-1.tar", [("2.cls", b"0"), ("2.webp", b"")], "no image beside 2.cls"),
        (
            "x-train-1.tar",
            [("2.png", png()), ("2.cls", b"1" + b" " * 40 + b"2")],
            "2.cls holds '1 ",
        ),
    ],
)
def test_shards_that_would_be_read_in_part_or_twice_are_refused(tmp_path, name, members, told):
    for split in ("train", "val"):
        both = [m for i in range(2) for m in ((f"{i}.png", png(i)), (f"{i}.cls", b"%d" % i))]
        tar_of(tmp_path / f"x-{split}-0.tar", *both)
    tar_of(tmp_path / name, *members)
    assert told in refusal(Path("wds" + str(tmp_path)))


@pytest.mark.parametrize("layout", ["folder", "tar"])
def test_classes_that_are_one_name_in_two_forms_of_unicode_are_refused(tmp_path, layout):
    folder = data_set(tmp_path / "f", "caf\u00e9/0.png", "cafe\u0301/0.png", "b/0.png")
    given = folder if layout == "folder" else tars_of(folder, tmp_path / "t")
    assert "'cafe\\u0301' and 'caf\\xe9' are one name in two forms" in refusal(given)


@pytest.mark.parametrize(
    ("one", "other"), [("caf\u00e9", "cafe\u0301"), ("a ", "a"), ("Cat", "cat"), ("a\u200b", "a")]
)
def test_message_shows_how_names_of_two_splits_differ(tmp_path, one, other):
    data_set(tmp_path, f"{one}/0.png", "z/0.png", splits=("train",))
    data_set(tmp_path, f"{other}/0.png", "z/0.png", splits=("val",))
    assert f"no image of {other!a} (but of {one!a})" in refusal(tmp_path)


def test_folders_in_a_class_may_be_nested_deeper_than_python_recurses(tmp_path):
    data_set(tmp_path, "a/0.png", "b/0.png")
    descriptor = os.open(tmp_path / "train/a", os.O_RDONLY)
    for _ in range(1100):
        os.mkdir("x", dir_fd=descriptor)
        inner = os.open("x", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    assert classes(tmp_path) == ["a", "b"]
    subprocess.run(
        ["rm", "-r", tmp_path / "train/a/x"], check=True
    )  # pytest's own removal recurses
