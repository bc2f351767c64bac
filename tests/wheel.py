"""Builds the wheel, and runs README's script with it in a bare environment (`make test-wheel`).

An argument names another release of torch than requirements.lock: `python tests/wheel.py 2.14.1`.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.readme import ROOT, readme_script

MOST = 25
"""Largest number of packages beside those of torch."""


def run(*command: str | Path, at: Path, rc: int = 0) -> str:
    """Standard output and error of a command, outside of the checkout."""
    done = subprocess.run(
        command, cwd=at, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == rc, done.stdout
    return done.stdout


def torch_wanted() -> str:
    """The release of torch that is asked for, else that of requirements.lock."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    given = [f"torch=={version}" for version in sys.argv[1:]]
    return next(line for line in (*given, *lines) if line.startswith("torch=="))


def sources(at: Path) -> Path:
    """A copy of what a wheel is made of, so that no build's leftovers get into it."""
    shutil.copytree(ROOT / "ofq", at / "ofq", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, at)
    return at


def check_typed(python: Path, at: Path) -> None:
    """The package says that it is typed, and has its version from its source."""
    code = (
        "import importlib.metadata as m, ofq, pathlib;"
        "assert m.version('ofq') == ofq.__version__;"
        "assert (pathlib.Path(ofq.__file__).parent / 'py.typed').exists()"
    )
    run(python, "-c", code, at=at)


def main() -> None:
    """Everything in a temporary folder, which is removed."""
    with tempfile.TemporaryDirectory() as name:
        at = Path(name)
        quiet = ("--quiet", "--disable-pip-version-check")
        build = (sys.executable, "-m", "pip", "wheel", *quiet, "--no-deps", "-w", at)
        run(*build, sources(at / "sources"), at=at)
        run(sys.executable, "-m", "venv", at / "env", at=at)
        python = at / "env/bin/python"
        pip = (python, "-m", "pip")
        torch = torch_wanted()
        run(*pip, "install", *quiet, torch, at=at)
        of_torch = json.loads(run(*pip, "list", "--format", "json", at=at))
        # together: the newest torchvision, which timm asks for, would bring its own torch
        run(*pip, "install", *quiet, torch, next(at.glob("ofq-*.whl")), at=at)
        packages = json.loads(run(*pip, "list", "--format", "json", at=at))
        names = sorted({p["name"] for p in packages} - {p["name"] for p in of_torch})
        print(f"{len(names)} packages beside those of {torch}: {', '.join(names)}")
        assert len(names) < MOST
        check_typed(python, at)
        (at / "script.py").write_text(readme_script(), encoding="utf-8")
        print("README's script:", run(python, "script.py", at=at).splitlines()[-1])
        said = run(at / "env/bin/ofq", "status", at=at, rc=2)
        assert len(said.splitlines()) == 1
        assert 'pip install "ofq[suite]"' in said
        print("the command:", said, end="")


if __name__ == "__main__":
    main()
