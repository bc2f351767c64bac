"""Paths with ``~`` and variables mean one place, whoever gives them and whoever reads them."""

import os
import pwd

import pytest

from ofq.config import Workspace
from ofq.config.places import expand_path, expand_uri
from ofq.errors import UserError

from tests.support.own_process import run_ofq

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
