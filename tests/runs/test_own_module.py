"""The hash of a user's own module, found without importing anything."""

import hashlib
import sys
from pathlib import Path

import pytest

from ofq.runs.provenance import module_sha256

RUNS = "open({!r}, 'w')\n"


@pytest.mark.parametrize(
    ("module", "file", "packages"),
    [
        ("own", "own.py", []),
        ("pack.own", "pack/own.py", ["pack"]),
        ("pack.inner.own", "pack/inner/own.py", ["pack", "pack/inner"]),
        ("bare.own", "bare/own.py", []),
        ("bare.inner.own", "bare/inner/own.py", []),
        ("bare.pack", "bare/pack/__init__.py", []),
    ],
)
def test_module_is_hashed_and_neither_it_nor_its_packages_are_run(
    module: str, file: str, packages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "was-run"
    for name in (file, *(f"{package}/__init__.py" for package in packages)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(RUNS.format(str(mark)))
    digest = hashlib.sha256((tmp_path / file).read_bytes()).hexdigest()
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    assert module_sha256(module) == digest
    assert set(sys.modules) == before
    assert not mark.exists()


def test_module_of_an_installed_package_is_hashed() -> None:
    import ofq.quantization.quantizers.statsq as module

    digest = hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()
    assert module_sha256("ofq.quantization.quantizers.statsq") == digest


@pytest.mark.parametrize(
    "name", ["none", "ofq.none", "os.path.none", "", ".", "..x", "a\0b", "a" * 9999, "sys", "/etc"]
)
def test_what_is_no_module_has_no_hash(name: str) -> None:
    assert module_sha256(name) is None
