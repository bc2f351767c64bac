"""Damaged records of finished runs: noticed by every reader, in one line each, and never a number.

Found and mended: a flipped bit of ``result.json`` or of a table changed what a report printed; a
Parquet file's claim of its own size made readers take gigabytes; wrong types, missing keys, NUL
bytes, deep nesting and empty files ended in a stack trace; ``packed.json`` could replace other
numbers; a number beyond 64 bits in a growing table broke the run's end; the last row of the table
and ``result.json`` could differ.
"""

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofq.config import Workspace
from ofq.errors import UserError
from ofq.monitor.doctor import examine
from ofq.monitor.plan.samples import samples
from ofq.monitor.status.lines import lines
from ofq.monitor.status.runs import StudyStatus
from ofq.report.collect import Records, collect
from ofq.report.compare import summarize_cells
from ofq.report.tables import Table, to_markdown
from ofq.runs.folder import RunFolder
from ofq.tracking.snapshot import Snapshot

from tests.support import synthetic
from tests.support.fuzzing import fuzzed

FILES = (
    "result.json", "metrics.parquet", "provenance.json", "run.json", "correct.npy",
    "model.safetensors", "manifest.json", "packed.json",
)  # fmt: skip
BESIDE = ("events.jsonl", "metrics.jsonl", "mirror.json", "progress.json", "lock-1.json")

garbage = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\0" * 50, b"[" * 50_000, b"\xff\xfe", b"9" * 5000, b"{}", b"null"]),
    st.sampled_from([b'{"event": 5, "time": []}\n', b'{"step": 1' + b"0" * 30 + b"}\n", b"\n" * 9]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    ).map(lambda data: json.dumps(data).encode()),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = synthetic.make_workspace(
        tmp_path_factory.mktemp("records"),
        methods=["lsq", "statsq"], bits=["W2A2"], seeds=[0], figures=["accuracy"],
    )  # fmt: skip
    synthetic.fill(workspace)
    folder = RunFolder(damaged_folder(workspace))
    folder.write_json("packed.json", {"packed_bytes": 85_499, "full_precision_bytes": 459_000})
    folder.event("opened", devices=1)
    folder.event("finished", seconds=9.0)
    return workspace


def damaged_folder(workspace: Workspace) -> Path:
    """The folder of the run that is damaged."""
    [cell] = [cell for cell in workspace.grid("small").cells if cell.method == "statsq"]
    return workspace.results / "runs" / cell.runs[0].id


def printed(workspace: Workspace) -> tuple[Records, str]:
    """What a report prints and exports."""
    records = collect(workspace, "small")
    cells = summarize_cells(records)
    return records, to_markdown(Table.of(records, cells)) + records.runs.to_csv()


@pytest.fixture(scope="module")
def expected(home: Workspace) -> str:
    return printed(home)[1]


def check_readers(workspace: Workspace, expected: str) -> None:
    """Make sure that no reader shows another number than before, or ends but in a line."""
    records, text = printed(workspace)
    assert records.damaged or text == expected
    folder = RunFolder(damaged_folder(workspace))
    folder.warn = lambda text: None
    assert "\n".join(lines(StudyStatus(workspace, "small")))
    samples(workspace, [("digits", "micro")])
    with suppress(UserError):
        Snapshot.take(folder)
    findings = examine(workspace, "/".join(folder.path.parts[-3:])).findings
    assert all(finding.todo for finding in findings if finding.level != "ok")


@fuzzed(ci=15, long=600)
@given(name=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_flipped_bit_is_noticed(
    name: str, place: float, bit: int, home: Workspace, expected: str
) -> None:
    path = damaged_folder(home) / name
    content = path.read_bytes()
    changed = bytearray(content)
    changed[int(place * len(content))] ^= 1 << bit
    path.write_bytes(changed)
    try:
        check_readers(home, expected)
        run = "/".join(path.parent.parts[-3:])
        levels = {finding.level for finding in examine(home, run).findings}
        assert "problem" in levels or name == "manifest.json"
        if name == "model.safetensors":
            with pytest.raises(UserError, match=r"model\.safetensors: isn't what was written"):
                RunFolder(path.parent).verify(name)
    finally:
        path.write_bytes(content)


@fuzzed(ci=15, long=600)
@given(name=st.sampled_from((*FILES, *BESIDE)), content=garbage | st.none())
def test_garbage_is_told_in_a_line(
    name: str, content: bytes | None, home: Workspace, expected: str
) -> None:
    """None stands for a folder in the file's place."""
    path = damaged_folder(home) / name
    kept = path.read_bytes() if path.exists() else None
    path.unlink(missing_ok=True)
    try:
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)
        check_readers(home, expected)
    finally:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        if kept is not None:
            path.write_bytes(kept)
