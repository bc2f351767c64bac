"""Mutated bundles are refused in one line and leave nothing, or unpack to what a bundle holds.

Found by these examples, and mended:

- a config that can't be read left its folder behind;
- sparse members, and extended headers that say they are large, filled disk and memory;
- the site file of a bundle told where reports go;
- ``extends`` that named a path read files outside ``config/``;
- a grid of millions of cells, and aliases in YAML that repeat each other, never ended;
- dates, integers and tags that YAML can't make, and JSON nested deeply, ended in a trace;
- names that differ in upper and lower case alone, and device names, were written.
"""

import hashlib
import io
import json
import lzma
import shutil
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofq.config import Workspace
from ofq.errors import UserError
from ofq.monitor.doctor import examine
from ofq.monitor.status.lines import lines
from ofq.monitor.status.runs import StudyStatus
from ofq.report.bundle import unbundle

from tests.support.fuzzing import fuzzed
from tests.support.watching import check_message, nothing_touched_outside

BASE = Path(__file__).parents[2] / "reports" / "released_digits.tar.xz"
STUDY = "released_digits"

with tarfile.open(BASE) as _archive:
    MEMBERS = {m.name: _archive.extractfile(m).read() for m in _archive}  # type: ignore[union-attr]
FILES = [name for name in MEMBERS if not name.endswith("bundle.json")]
RUN = next(n for n in FILES if n.endswith("/run.json")).removesuffix("/run.json")

NAMES = [
    "../escaped", "/tmp/ofq-escaped", "config/../../escaped", "config/__init__.py", "evil.py",
    "config/evil.py", ".git/config", "config/config.yml", "config/studies/.x.yaml", "Snakefile",
    "config/studies/x.yaml/y.yaml", "config/methods/é.yaml", "config/methods/a\x00.yaml",
    "config/methods/\x1b[2J.yaml", "config/methods/" + "a" * 300 + ".yaml",
    "a/" * 2000 + "x", f"{RUN.partition('/')[2]}/model.safetensors", "reports/other/index.html",
    f"reports/{STUDY}/evil.py", f"{RUN.partition('/')[2]}/checkpoint", "config/CONFIG.yaml",
    "bundle.json", "", ".", "config", "config/studies/a.yaml\n", "config/methods/ofq.yaml ",
]  # fmt: skip
YAML = [
    "a: &a [x, x]\nb: &b [*a, *a]\n" + "".join(
        f"c{n}: &c{n} [{', '.join(['*b' if not n else f'*c{n - 1}'] * 9)}]\n" for n in range(11)
    ),
    "title: 2024-02-30\n", "a: " + "9" * 5000, "a: " + "[" * 5000, "- " * 3000, "a: !!python/none",
    "a: \x00", "\xff", "a: &a [*a]", "? [a, b]\n: 1", "{}", "[]", "", "a: 0x" + "f" * 9000,
    "extends: ../../../../etc/passwd\n", "extends: [a]\n", "results: /tmp/ofq-escaped\n",
    "reports: /tmp/ofq-escaped\nstudies: [released_digits]\n", "title: \"\\e[2J\\e]0;x\\a\"\n",
    "lsq: {label: \"\\e[2J\", weight_quantizer: lsq, module: evil}\n", "<<: [1]", "a: 1e99999999",
    "models: [" + ", ".join(f"m{n}" for n in range(3000)) + "]\n"
    "methods: [" + ", ".join(f"m{n}" for n in range(3000)) + "]\n",
]  # fmt: skip
JSON = [
    "[" * 100_000, "{}", "[]", "1", "null", '"\x1b[2J"', "9" * 5000, '{"a": ' * 5000, "\xff\xfe",
    '{"id": "../../x", "config": {}}', '{"attempts": [{"module": {"name": "evil.module"}}]}',
    '{"attempts": 1}', "NaN", "", '{"a": "' + "x" * 100_000 + '"}',
]  # fmt: skip
TYPES = [
    tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE,
    tarfile.DIRTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, b"Z", tarfile.XHDTYPE,
]  # fmt: skip


def archived(
    files: dict[str, bytes],
    member: tarfile.TarInfo | None = None,
    listed: dict[str, str] | None = None,
    count: int = 1,
) -> bytes:
    """An archive of files, and of one more member, whose bundle.json has the right hashes."""
    hashes = {n.removeprefix(f"{STUDY}/"): hashlib.sha256(d).hexdigest() for n, d in files.items()}
    about = json.dumps({"study": STUDY, "files": hashes | (listed or {})}).encode()
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in {f"{STUDY}/bundle.json": about, **files}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        end = archive.offset
    extra = b""
    if member is not None:  # as it is, whatever it says of its size
        data = -(-min(member.size, 4096) // 512) * 512
        header = member.tobuf(tarfile.GNU_FORMAT if member.size > 2**33 else tarfile.PAX_FORMAT)
        extra = count * (header + bytes(data))
    return stream.getvalue()[:end] + extra + bytes(1024)


def files() -> dict[str, bytes]:
    return {name: MEMBERS[name] for name in FILES}


@st.composite
def named(draw: st.DrawFn) -> bytes:
    """A file of another name, which bundle.json lists or not."""
    drawn = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
    name = draw(st.one_of(st.sampled_from(NAMES), drawn.map(lambda t: f"config/methods/{t}.yaml")))
    data = draw(st.sampled_from([b"", b"x: 1", b"import os"]))
    member = tarfile.TarInfo(f"{STUDY}/{name}")
    member.size = len(data)
    hashed = {name: hashlib.sha256(bytes(len(data))).hexdigest()}
    return archived(files(), member, draw(st.sampled_from([hashed, {}])), draw(st.integers(1, 2)))


@st.composite
def typed(draw: st.DrawFn) -> bytes:
    """A member that is no regular file, under a name that a bundle may have."""
    member = tarfile.TarInfo(f"{STUDY}/config/methods/x.yaml")
    member.type = draw(st.sampled_from(TYPES))
    member.linkname = draw(st.sampled_from(["/etc/passwd", "../../..", f"{STUDY}/config"]))
    member.size = draw(st.sampled_from([0, 1, 4096, 2**40, 2**62]))
    member.pax_headers = draw(
        st.sampled_from(
            [{}, {"size": str(2**50)}, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}]
        )
    )
    return archived(files(), member, {"config/methods/x.yaml": "0" * 64})


@st.composite
def refilled(draw: st.DrawFn) -> bytes:
    """Other content of a config or a record, with its hash."""
    name = draw(st.sampled_from([n for n in FILES if n.endswith((".yaml", ".json"))]))
    pool = YAML if name.endswith(".yaml") else JSON
    text = draw(st.one_of(st.sampled_from(pool), st.text(max_size=40)))
    kept = MEMBERS[name] if name.endswith(".yaml") and draw(st.booleans()) else b""
    data = kept + text.encode("latin-1" if "\xff" in text else "utf-8", "replace")
    return archived(files() | {name: data})


@st.composite
def cut(draw: st.DrawFn) -> bytes:
    """Files missing, or names in other case."""
    gone = draw(st.sets(st.sampled_from(FILES), min_size=1, max_size=4))
    kept = {n: d for n, d in files().items() if n not in gone}
    if draw(st.booleans()):
        kept |= {f"{STUDY}/{n.removeprefix(f'{STUDY}/').upper()}": b"" for n in gone}
    return archived(kept)


@st.composite
def flipped(draw: st.DrawFn) -> bytes:
    """Bytes changed, moved or cut in the archive."""
    content = bytearray(archived(files()))
    headers = [n for n in range(0, len(content), 512) if content[n + 257 : n + 262] == b"ustar"]
    for _ in range(draw(st.integers(1, 4))):
        headers = [n for n in headers if n < len(content)]
        place = draw(st.one_of(st.integers(0, len(content) - 1), st.sampled_from(headers)))
        place = min(place + draw(st.integers(0, 300)), len(content) - 1)
        content[place] = draw(st.integers(0, 255))
    if draw(st.booleans()):
        for start in headers:  # checksums that fit, so that the rest of the header counts
            header = content[start : start + 512]
            header[148:156] = b" " * 8
            content[start + 148 : start + 156] = f"{sum(header):06o}\0 ".encode()
    end = draw(st.sampled_from([b"", bytes(10_240), bytes(2**20), b"more"]))
    return bytes(content) + end


def about() -> st.SearchStrategy[bytes]:
    """Another bundle.json."""

    def replaced(value: Any) -> bytes:
        stream = io.BytesIO()
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            info = tarfile.TarInfo(f"{STUDY}/bundle.json")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        return stream.getvalue()

    values = st.recursive(
        st.one_of(st.none(), st.integers(), st.text(max_size=9), st.sampled_from(NAMES)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(st.sampled_from(["study", "files", "format", "\x1b"]), inner),
        ),
        max_leaves=6,
    )
    bombs = st.sampled_from([b"[" * 10**6, b'{"files":{' + b'"a":1,' * 10**6, bytes(10**7)])
    return st.one_of(values, bombs).map(replaced)


@dataclass(frozen=True)
class Bundle:
    """A mutated bundle, which is too long to be printed."""

    content: bytes = field(repr=False)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(type(self).__name__)


def compressed(content: bytes) -> Bundle:
    return Bundle(lzma.compress(content, preset=0))


def changed(place: int, bits: int) -> Bundle:
    content = bytearray(BASE.read_bytes())
    content[place % len(content)] ^= bits
    return Bundle(bytes(content))


BUNDLES = st.one_of(
    *(kind.map(compressed) for kind in (named(), typed(), refilled(), cut(), flipped(), about())),
    st.builds(changed, st.integers(0, 2**20), st.integers(1, 255)),
)


def check(bundle: Bundle) -> str:
    """Unpack a bundle, and look at what it leaves; tell how it ended."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name).resolve() / "here"
        place.mkdir()
        file = place.parent / "bundle.tar.xz"
        file.write_bytes(bundle.content)
        with nothing_touched_outside(place):
            try:
                there = unbundle(file, place / "out")
            except UserError as error:
                check_message(str(error))
                left = [path.name for path in place.iterdir()]
            else:
                look_around(there)
                return "unpacked"
        assert left == []
        return "refused"


def look_around(there: Workspace) -> None:
    """Do what reads an unpacked bundle; what lies in it are files of known names."""
    for path in there.root.rglob("*"):
        assert path.is_dir() or path.is_file()
        assert not path.is_symlink()
        assert path.suffix != ".py"
    assert (there.root / "config/config.yaml").read_text() == f'studies: ["{STUDY}"]\n'
    assert list(lines(StudyStatus(there, STUDY)))
    for run in there.grid(STUDY).runs():
        examine(there, run)


def test_a_bundle_as_it_was_written_unpacks() -> None:
    assert check(compressed(archived(files()))) == "unpacked"


@fuzzed(ci=60, long=1000)
@given(BUNDLES)
def test_mutated_bundles_are_refused_in_one_line_or_hold_what_bundles_hold(
    bundle: Bundle,
) -> None:
    check(bundle)


def test_archive_that_grows_without_end_is_left_early(tmp_path: Path) -> None:
    first = archived(files())
    packer = lzma.LZMACompressor(preset=0)
    parts = [packer.compress(first)]
    parts += [packer.compress(bytes(2**22)) for _ in range(256)]  # a gigabyte, in 150 kB
    file = tmp_path / "bomb.tar.xz"
    file.write_bytes(b"".join([*parts, packer.flush()]))
    before = shutil.disk_usage(tmp_path).used
    with pytest.raises(UserError, match="goes on after its end"):
        unbundle(file, tmp_path / "out")
    assert shutil.disk_usage(tmp_path).used < before + 2**26
