"""Paths with ``~`` and variables mean one place, whoever gives them and whoever reads them."""

import os
import pwd
import shutil
from pathlib import Path

import pytest

from ofq.config import Workspace
from ofq.config.places import expand_path, expand_uri
from ofq.errors import UserError

from tests.support.idx import write_digits
from tests.support.own_process import run_ofq

ROOT = Path(__file__).parents[2]
SITE = "config/config.yaml"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.delenv("UNSET", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "expanded"),
    [
        ("~/x", "{0}/home/x"),
        ("~", "{0}/home"),
        ("~root/x", pwd.getpwnam("root").pw_dir + "/x"),
        ("$SCRATCH/x", "{0}/scratch/x"),
        ("${SCRATCH}/x", "{0}/scratch/x"),
        ("a/$SCRATCH", "a/{0}/scratch"),
        ("wds/~/in", "wds/{0}/home/in"),
        ("WDS/$SCRATCH", "WDS/{0}/scratch"),
        ("hfds/${SCRATCH}/in", "hfds/{0}/scratch/in"),
        ("hfds/org/name", "hfds/org/name"),
        ("results", "results"),
        ("/data/a~b", "/data/a~b"),
        ("price$", "price$"),
        ("$(touch x)", "$(touch x)"),
    ],
)
def test_home_and_variables_are_expanded(home, given, expanded):
    assert expand_path(given, "here") == expanded.format(home)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("$UNSET/x", ["UNSET", "isn't set"]),
        ("${UNSET}/x", ["UNSET", "isn't set"]),
        ("${SCRATCH:-x}", ["allowed", "{NAME}"]),
        ("${SCRATCH", ["allowed", "{NAME}"]),
        ("~nobody_at_all/x", ["'~nobody_at_all'"]),
        ("x/~/y", ["only in front"]),
        ("a\nb", ["control characters"]),
        ("a\0b", ["control characters"]),
    ],
)
def test_what_cannot_be_expanded_is_one_line_with_its_source(home, given, words):
    with pytest.raises(UserError) as caught:
        expand_path(given, "config.yaml: key 'results'")
    message = str(caught.value)
    assert message.startswith("config.yaml: key 'results' is ")
    assert len(message.splitlines()) == 1
    assert all(word in message for word in words)


@pytest.mark.parametrize(
    ("given", "expanded"),
    [
        ("sqlite:///~/x.db", "sqlite:///{0}/home/x.db"),
        ("sqlite:///$SCRATCH/x.db", "sqlite:///{0}/scratch/x.db"),
        ("sqlite+pysqlite:///~/x.db", "sqlite+pysqlite:///{0}/home/x.db"),
        ("postgresql://a:$SCRATCH@h/x", "postgresql://a:$SCRATCH@h/x"),
        ("http://host/~me", "http://host/~me"),
    ],
)
def test_uris_of_local_files_are_expanded_alone(home, given, expanded):
    assert expand_uri(given, "here") == expanded.format(home)


def test_all_places_of_the_config_are_expanded(home, checkout, monkeypatch):
    (checkout / SITE).write_text(
        "studies: [tiny]\nresults: ~/r\nreports: $SCRATCH/p\n"
        "tracking_uri: sqlite:///~/m.db\ndata: {imagenet: ~/in}\n"
    )
    workspace = Workspace(checkout)
    assert workspace.results == home / "home/r"
    assert workspace.reports == home / "scratch/p"
    assert workspace.tracking_uri == f"sqlite:///{home}/home/m.db"
    assert workspace.data_place("imagenet").at == f"{home}/home/in"
    assert workspace.own_file("~/w.pth") == home / "home/w.pth"
    assert workspace.own_file("w.pth") == checkout / "w.pth"


def test_data_of_the_environment_is_expanded(home, checkout, monkeypatch):
    monkeypatch.setenv("IMAGENET_DIR", "~/in")
    assert Workspace(checkout).data_place("imagenet").at == f"{home}/home/in"
    monkeypatch.setenv("IMAGENET_DIR", "$UNSET/in")
    with pytest.raises(UserError, match="IMAGENET_DIR is '\\$UNSET/in'"):
        Workspace(checkout).data_place("imagenet")


def test_training_writes_below_the_home_folder_and_makes_no_folder_of_that_name(home, checkout):
    (checkout / SITE).write_text("studies: [tiny]\nresults: ~/r\nreports: ${SCRATCH}/p\n")
    run = run_ofq(checkout, "runs", "tiny").stdout.split()[0]
    done = run_ofq(checkout, "train", run, "--no-track", env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert (home / "home/r/runs" / run / "result.json").exists()
    assert run_ofq(checkout, "report", "tiny").returncode == 0
    assert (home / "scratch/p/tiny/index.html").exists()
    assert not {"~", "$SCRATCH", "${SCRATCH}"} & {path.name for path in checkout.iterdir()}


@pytest.mark.parametrize("key", ["results: $UNSET/x", "reports: ~nobody_at_all", "results: ''"])
def test_unset_place_is_refused_before_anything_is_written(home, checkout, key):
    (checkout / SITE).write_text(f"studies: [tiny]\n{key}\n")
    before = sorted(checkout.rglob("*"))
    done = run_ofq(checkout, "runs", "tiny")
    assert done.returncode == 2
    assert f"config.yaml: key '{key.partition(':')[0]}' is " in done.stderr
    assert sorted(checkout.rglob("*")) == before


def test_paths_of_the_command_line_are_expanded(home, checkout):
    done = run_ofq(checkout, "bundle", "tiny", "--out=$UNSET/x.tar.xz")
    assert done.returncode == 2
    assert "--out is '$UNSET/x.tar.xz'" in done.stderr
    done = run_ofq(checkout, "track", "sync", "--uri", "sqlite:///$UNSET/x.db")
    assert "--uri is '$UNSET/x.db'" in done.stderr


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("/dev/null", "/dev/null is no folder"),
        ("config/config.yaml/x", "is no folder"),
        ("n" * 300, "255 bytes"),
    ],
)
@pytest.mark.parametrize("key", ["results", "reports"])
def test_place_where_no_folder_can_be_is_refused(home, checkout, key, given, told):
    site = checkout / SITE
    site.write_text(f"{site.read_text()}{key}: {given}\n")
    with pytest.raises(UserError, match=f"{SITE}: key '{key}'.*{told}"):
        _ = Workspace(checkout).results


@pytest.fixture
def fashion(checkout, monkeypatch):
    """A checkout with the committed data sets, on a machine without Debian's package."""
    for name in ("FASHION_MNIST_DIR", "FASHION_10K_DIR"):
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(ROOT / "config/datasets", checkout / "config/datasets")
    path = checkout / "config/datasets/fashion_mnist.yaml"
    text = path.read_text()
    assert "place: /usr/share/datasets/fashion-mnist\n" in text
    path.write_text(text.replace("place: /usr/share", "place: usr/share"))
    return checkout


FASHION = ("fashion_mnist", "fashion_10k")


def refused(checkout, dataset):
    with pytest.raises(UserError) as caught:
        Workspace(checkout).data_place(dataset)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("dataset", FASHION)
def test_missing_public_files_are_told_with_all_ways_to_get_them(fashion, dataset):
    message = refused(fashion, dataset)
    for words in (
        f"data set '{dataset}': train-images-idx3-ubyte.gz, ",
        f"aren't all in {fashion}/usr/share/datasets/fashion-mnist or {fashion}/data/fashion_mnist",
        "apt install dataset-fashion-mnist",
        f"{fashion}/config/config.yaml: `data: {{fashion_mnist: FOLDER}}`",
        "`ofq data fetch fashion_mnist`",
    ):
        assert words in message


@pytest.mark.parametrize("dataset", FASHION)
@pytest.mark.parametrize("folder", ["usr/share/datasets/fashion-mnist", "data/fashion_mnist"])
def test_usual_places_of_public_files_are_tried(fashion, dataset, folder):
    write_digits(fashion / folder, 20, 10)
    assert Workspace(fashion).data_place(dataset).at == str(fashion / folder)
    (fashion / folder / "t10k-labels-idx1-ubyte.gz").unlink()
    assert "aren't all in" in refused(fashion, dataset)


@pytest.mark.parametrize("dataset", FASHION)
def test_named_place_of_public_files_is_the_only_one_tried(fashion, dataset):
    write_digits(fashion / "data/fashion_mnist", 20, 10)
    (fashion / SITE).write_text("studies: [tiny]\ndata: {fashion_mnist: mine}\n")
    message = refused(fashion, dataset)
    assert message.startswith(f"{fashion}/config/config.yaml: key 'data.fashion_mnist': data set")
    assert f"aren't all in {fashion}/mine; do one" in message
    write_digits(fashion / "mine", 20, 10)
    assert Workspace(fashion).data_place(dataset).at == str(fashion / "mine")


def test_part_of_a_data_set_may_have_a_place_of_its_own(fashion, monkeypatch):
    for folder in ("a", "b"):
        write_digits(fashion / folder, 20, 10)
    monkeypatch.setenv("FASHION_10K_DIR", "a")
    (fashion / SITE).write_text("studies: [tiny]\ndata: {fashion_mnist: b}\n")
    places = [Workspace(fashion).data_place(name).at for name in FASHION]
    assert places == [str(fashion / "b"), str(fashion / "a")]


def test_run_without_its_public_files_ends_before_it_begins(fashion):
    path = fashion / "config/recipes/small.yaml"
    path.write_text(path.read_text().replace("digits", "fashion_10k"))
    run = run_ofq(fashion, "runs", "tiny").stdout.split()[0]
    done = run_ofq(fashion, "train", run, "--no-track")
    assert done.returncode == 2
    assert "`ofq data fetch fashion_mnist`" in done.stderr
    assert not list(fashion.glob("results/runs/*/*/*/provenance.json"))


GOOD = "address: [http://host/], files: {a.gz: " + 64 * "a" + "}"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (f"download: {{{GOOD.replace('http:', 'ftp:')}}}", ["address.0", "ftp://host/", "http(s)"]),
        (f"download: {{{GOOD.replace('aa', 'ax', 1)}}}", ["files.a.gz", "SHA-256"]),
        (f"download: {{{GOOD.replace('a.gz', '../a')}}}", ["'../a'", "allowed in a name"]),
        (f"download: {{{GOOD.replace('http://host/', '')}}}", ["download.address", "one address"]),
        ("download: {address: [http://host/], files: {}}", ["download.files", "at least 1"]),
        (f"part_of: fashion_mnist\ndownload: {{{GOOD}}}", ["'part_of'", "leave out"]),
        ("part_of: fashion_10k", ["'part_of'", "itself a part of 'fashion_mnist'"]),
        ("part_of: fashion", ["'part_of'", "did you mean 'fashion_10k'?"]),
    ],
)
def test_wrong_source_of_public_files_is_refused(fashion, keys, words):
    file = fashion / "config/datasets/mine.yaml"
    file.write_text(f"title: Mine\nsource: idx\n{keys}\n")
    message = refused(fashion, "mine")
    assert message.startswith(f"{file}: ")
    assert all(word in message for word in words)
