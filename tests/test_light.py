"""The library alone works without the packages of the extra `suite`, and says when it needs one."""

import ast
import subprocess
import sys
import tomllib

import pytest

import ofq

from tests.support.readme import ROOT, readme_script

MODULES = {
    "scikit-learn": "sklearn",
    "snakemake-executor-plugin-slurm": "snakemake_executor_plugin_slurm",
}
OF_TIMM = {"pillow", "pyyaml"}
"""Packages of the suite that timm needs too."""

_BLOCK = """
import sys
from importlib.machinery import PathFinder
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in {names!r}:
            return PathFinder.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


def suite():
    """Modules of the packages that only the suite needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["optional-dependencies"]["suite"]
    names = {line.partition(">")[0].partition("<")[0] for line in lines}
    assert names >= {*OF_TIMM, "mlflow", "pydantic", "typer", "pandas", "snakemake"}
    return {MODULES.get(name, name) for name in names - OF_TIMM}


def without_suite(code, folder):
    """A process in which no module of the suite can be imported."""
    code = _BLOCK.format(names=suite()) + code
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_readmes_script_runs_without_the_suite(tmp_path):
    done = without_suite(readme_script(), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "ran"
    assert [path.name for path in tmp_path.iterdir()] == ["packed.safetensors"]


def test_every_name_of_the_library_is_there_without_the_suite(tmp_path):
    of_suite = {"Data", "DataRequest", "Drawn", "register_dataset", "register_figure"}
    assert of_suite < set(ofq.__all__)
    done = without_suite(
        f"import ofq\nfor name in sorted(set(ofq.__all__) - {of_suite!r}): getattr(ofq, name)",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import ofq; ofq.register_figure", "ofq.register_figure needs the package 'pydantic'"),
        ("import ofq; ofq.register_dataset", "ofq.register_dataset needs the package 'pydantic'"),
        ("from ofq.__main__ import main; main()", "error: the command `ofq` needs the package"),
    ],
)
def test_what_needs_the_suite_says_in_one_line_how_to_install_it(code, said, tmp_path):
    done = without_suite(code, tmp_path)
    assert done.returncode != 0
    assert said in done.stderr.splitlines()[-1]
    assert 'pip install "ofq[suite]"' in done.stderr.splitlines()[-1]
    assert "main" not in code or len(done.stderr.splitlines()) == 1


def test_import_of_ofq_imports_neither_torch_nor_the_suite(tmp_path):
    code = "import sys, ofq; print(*{name.partition('.')[0] for name in sys.modules})"
    done = without_suite(code, tmp_path)
    assert done.returncode == 0, done.stderr
    found = {n for n in done.stdout.split() if n not in sys.stdlib_module_names and n[0] != "_"}
    assert found.isdisjoint({"torch", "timm", "numpy", "safetensors"})


def test_torch_only_parts_import_no_part_of_the_suite():
    light = {"quantization", "models", "export"}
    plain = {path.stem for path in (ROOT / "ofq").glob("*.py")}
    for part in light:
        for path in (ROOT / "ofq" / part).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                name = node.module if isinstance(node, ast.ImportFrom) else None
                if name and name.startswith("ofq."):
                    target = name.split(".")[1]
                    assert target in light | plain, f"{path}: {name}"
                    assert part != "quantization" or target not in ("models", "export"), path


def test_type_checkers_know_every_public_name():
    tree = ast.parse((ROOT / "ofq/__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    known = {alias.asname for node in block.body for alias in node.names}
    places = {node.module: 0 for node in block.body}
    assert known == set(ofq.__all__)
    assert set(places) == set(ofq._PLACES)
