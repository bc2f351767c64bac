"""Mutated config files: each command works, or says in one message what is wrong.

Found by it and mended: dates that don't exist, integers of thousands of digits and deep nesting
ended every command with a stack trace; rates of infinity were accepted.
"""

import shutil
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofq.config import Workspace
from ofq.errors import UserError
from ofq.monitor.plan.plan import Machine, Planner

from tests.support.fuzzing import fuzzed

FILES = (
    "config.yaml",
    "studies/tiny.yaml",
    "studies/other.yaml",
    "recipes/small.yaml",
    "methods/known.yaml",
)
VALUES = [
    "null", "true", "-1", "0", "1.5", ".inf", "-.inf", ".nan", "9" * 30, "9" * 5000, "1e400",
    "2024-02-30", "2024-01-01", "''", "' '", "[]", "{}", "[[]]", "[1, a]", "{a: 1}", "*x", "0x1F",
    "!!binary x", "!!python/object:os.system {}", "'\\x00'", '"\\e[2J"', "caf\xe9", "~", "$HOME",
    "[" * 200, "&x [*x]", "W2A2", "tiny", "other", "../x", "x" * 3000, "{{1: 2}: 3}", "? [a]\n: b",
]  # fmt: skip
NAMES = [".#tiny.yaml", "tiny copy.yaml", "fp.yaml", "train.yaml", "a\nb.yaml", "x.yaml"]


def mutated(draw, content):
    kind = draw(st.sampled_from(["value", "bytes", "line", "cut", "insert"]))
    lines = content.splitlines(keepends=True)
    at = draw(st.integers(0, len(lines) - 1))
    if kind == "value":
        key, colon, _ = lines[at].partition(b":")
        value = draw(st.sampled_from(VALUES)).encode("latin-1")
        lines[at] = key + colon + b" " + value + b"\n"
    elif kind == "line":
        lines.insert(at, lines[draw(st.integers(0, len(lines) - 1))])
    elif kind == "cut":
        del lines[at]
    text = b"".join(lines)
    if kind in ("bytes", "insert"):
        at = draw(st.integers(0, len(text) - 1))
        text = text[:at] + draw(st.binary(min_size=1, max_size=3)) + text[at + (kind == "bytes") :]
    return text


def used(root):
    """Loads the workspace, expands its studies and plans one, as commands do."""
    workspace = Workspace(root)
    workspace.faults()
    for name in workspace.site.studies:
        workspace.references(name)
        planner = Planner(workspace, name)
        planner.plan(Machine(1, 1))


@pytest.fixture(scope="module")
def pattern(tmp_path_factory, make_checkout):
    root = make_checkout(tmp_path_factory.mktemp("pattern"))
    (root / "config/studies/other.yaml").write_text("extends: tiny\nseeds: [7]\n")
    return root


@fuzzed(ci=60, long=1500)
@given(data=st.data())
def test_mutated_config_is_used_or_refused_in_few_lines(pattern, tmp_path_factory, data):
    root = tmp_path_factory.mktemp("mutated")
    shutil.copytree(pattern, root, dirs_exist_ok=True)
    for name in data.draw(st.lists(st.sampled_from(FILES), min_size=1, max_size=3)):
        path = root / "config" / name
        path.write_bytes(mutated(data.draw, path.read_bytes()))
        if not path.read_bytes():
            path.write_bytes(b"\n")
    if data.draw(st.booleans()):
        folder = data.draw(st.sampled_from(["studies", "methods", "recipes"]))
        copy = root / "config" / folder / data.draw(st.sampled_from(NAMES))
        shutil.copy(root / "config/studies/tiny.yaml", copy)
    began = time.process_time()
    message = "all is well"
    try:
        used(root)
    except UserError as error:
        message = str(error)
    assert 0 < len(message) < 20_000
    assert time.process_time() - began < 10
    shutil.rmtree(root)
