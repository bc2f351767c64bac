"""Commands start fast: they import what they use, and look for garbage when there may be some."""

import subprocess
import sys

import pytest

from ofq.config import Workspace

from tests.support.checkouts import METHODS, STUDY, TOY

# Handlers run last first, so the first one sees what the end of the process will.
_PROGRAM = """
import atexit, gc, sys
atexit.register(lambda: print("left at the end", len(gc.get_objects())))

from ofq.__main__ import main
from ofq.runs.attempt import Attempt

usual, begin = gc.get_threshold(), Attempt.begin

def searches():
    return sum(generation["collections"] for generation in gc.get_stats())

def at_the_first_step(self, *steps):
    print("imported", *sorted({name.partition(".")[0] for name in sys.modules}))
    print("searches", searches() - before)
    print("as usual", gc.isenabled() and gc.get_threshold() == usual)
    print("never searched again", gc.get_freeze_count())
    begin(self, *steps)

Attempt.begin = at_the_first_step
before = searches()
main()
"""
UNUSED = {"IPython", "alembic", "datasets", "matplotlib", "mlflow", "onnx", "pandas", "scipy"}
UNUSED |= {"sklearn", "snakemake", "sqlalchemy"}


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, str]:
    """What a run of a second tells at its first step and at its end, in a fresh process."""
    root = tmp_path_factory.mktemp("start")
    model = "toy_regression_16"
    words = {"name": "toy", "model": model, "bits": "W3A32", "methods": "lsq", "seeds": "0"}
    for name, text in {
        "methods/methods": METHODS,
        "recipes/toy": TOY.format(model=model, epochs=1, resources="threads: 1"),
        "studies/toy": STUDY.format(**words, figure="loss"),
        "config": "studies: [toy]\n",
    }.items():
        path = root / f"config/{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    [run] = Workspace(root).grid("toy").runs()
    command = [sys.executable, "-c", _PROGRAM, "train", "--no-track", run]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    keys = ("imported", "searches", "as usual", "never searched again", "left at the end")
    lines = done.stdout.splitlines()
    return {k: line.removeprefix(k).strip() for line in lines for k in keys if line.startswith(k)}


def test_training_imports_no_package_that_it_does_not_use(told):
    imported = set(told["imported"].split())
    assert {"torch", "timm"} <= imported
    assert not imported & UNUSED


def test_imports_are_not_searched_for_garbage_but_training_is(told):
    assert int(told["searches"]) < 50  # a thousand, otherwise
    assert told["as usual"] == "True"
    assert int(told["never searched again"]) > 100_000


def test_end_of_a_process_searches_no_garbage(told):
    assert int(told["left at the end"]) < 1000
