"""Files under ``config/`` that are no config, or are at fault, stop only what needs them."""

import pytest

from ofq.config import Workspace
from ofq.config.targets import Targets
from ofq.errors import UserError

from tests.support.own_process import run_ofq

KINDS = ("studies", "methods", "recipes", "reference")
HIDDEN = (
    ".#tiny.yaml",
    "._tiny.yaml",
    ".tiny.yaml.swp",
    ".hidden.yaml",
    "tiny.yaml~",
    "#tiny.yaml#",
)

FAULTS = {
    "impossible date": ("other.yaml", b"title: 2024-02-30\n"),
    "huge integer": ("other.yaml", b"title: " + b"9" * 5000),
    "deep nesting": ("other.yaml", b"title: " + b"[" * 3000),
    "bytes that aren't UTF-8": ("other.yaml", b"title: caf\xe9\n"),
    "NUL": ("other.yaml", b"title: \0\n"),
    "list as a key": ("other.yaml", b"{[1]: 2}\n"),
    "nothing": ("other.yaml", b""),
    "name with a blank": ("tiny copy.yaml", b"title: x\n"),
    "name with a control character": ("a\x1bb.yaml", b"title: x\n"),
    "name of a rule": ("train.yaml", b"extends: tiny\n"),
    "name of another study's rule": ("report_tiny.yaml", b"extends: tiny\n"),
    "folder": ("other.yaml", None),
    "link to nothing": ("other.yaml", "nowhere"),
}


def put(folder, name, content):
    folder.mkdir(exist_ok=True)
    if content is None:
        (folder / name).mkdir()
    elif isinstance(content, str):
        (folder / name).symlink_to(content)
    else:
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_files_and_editors_leftovers_are_no_config(checkout, kind):
    for name in HIDDEN:
        put(checkout / "config" / kind, name, b"\xff")
    put(checkout / "config" / kind, ".#lock.yaml", "somebody@host.123")
    put(checkout / "config" / kind, ".ipynb_checkpoints", None)
    workspace = Workspace(checkout)
    assert workspace.study_names == ["tiny"]
    assert len(workspace.grid("tiny").cells) == 3
    assert workspace.faults() == []
    assert not any("/." in path for path in Targets(checkout).configs("tiny"))


@pytest.mark.parametrize("name", FAULTS)
def test_study_at_fault_stops_no_other(checkout, name):
    file, content = FAULTS[name]
    put(checkout / "config/studies", file, content)
    workspace, targets = Workspace(checkout), Targets(checkout)
    run = next(iter(workspace.grid("tiny").runs()))
    assert workspace.find(run)[1][0] in ("tiny", "report_tiny")
    assert targets.study("tiny")
    targets.check(["tiny"])
    told = []
    targets.reports(told.append)
    assert len(told) == 1
    assert len(told[0].splitlines()) == 1
    assert told[0].isprintable()


@pytest.mark.parametrize("name", ["impossible date", "name with a blank", "folder"])
def test_study_at_fault_is_named_in_a_line_where_all_are_listed(checkout, name):
    file, content = FAULTS[name]
    put(checkout / "config/studies", file, content)
    done = run_ofq(checkout, "studies", env={"COLUMNS": "300"})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.split()[:3] == ["tiny", "3", "8"] for line in lines)
    assert len([line for line in lines if file in line]) == 1


@pytest.mark.parametrize("name", [name for name in FAULTS if "name" not in name])
@pytest.mark.parametrize("kind", ["methods", "recipes", "reference"])
def test_other_files_at_fault_are_of_no_concern(checkout, kind, name):
    file, content = FAULTS[name]
    put(checkout / "config" / kind, file, content)
    workspace = Workspace(checkout)
    workspace.grid("tiny")
    workspace.references("tiny")
    Targets(checkout).short_runs()


def test_copy_of_a_methods_file_takes_no_method_away(checkout):
    known = checkout / "config/methods/known.yaml"
    (checkout / "config/methods/known copy.yaml").write_bytes(known.read_bytes())
    assert len(Workspace(checkout).grid("tiny").cells) == 3


@pytest.mark.parametrize("name", [name for name in FAULTS if "name" not in name])
@pytest.mark.parametrize("kind", ["recipes/small", "studies/tiny", "config", "published/digits"])
def test_file_that_is_needed_is_one_line(checkout, kind, name):
    path = checkout / "config" / f"{kind}.yaml"
    path.unlink(missing_ok=True)
    put(path.parent, path.name, FAULTS[name][1])
    if kind.startswith("published") and not path.exists():
        return  # a link to nothing where nothing is needed
    workspace = Workspace(checkout)
    with pytest.raises(UserError) as caught:
        workspace.compare(next(iter(workspace.grid(workspace.site.studies[0]).runs().values())))
    assert path.name in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("name", ["../studies/tiny", "/etc/passwd", "a" * 5000, "a\0b", ""])
def test_name_that_is_a_path_leads_nowhere(checkout, name):
    with pytest.raises(UserError, match="unknown study"):
        Workspace(checkout).study(name)
