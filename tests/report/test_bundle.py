"""A study's bundle: unpacked elsewhere, it gives the same report; what isn't one is refused."""

import hashlib
import io
import json
import lzma
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ofq.config import Workspace
from ofq.errors import UserError
from ofq.monitor.doctor import examine
from ofq.report import build, explain
from ofq.report.bundle import bundle, unbundle
from ofq.runs import job as jobs
from ofq.runs.folder import UNPACKED, RunFolder
from ofq.runs.record import facts_of, read_manifest, write_manifest

from tests.support import synthetic
from tests.support.report_files import contents

Members = list[tuple[tarfile.TarInfo, bytes]]


BRIEF = {"seeds": [0, 1], "figures": ["accuracy"]}


def make_home(root: Path) -> Workspace:
    made = synthetic.make_workspace(root, **BRIEF)
    synthetic.fill(made)
    return made


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def packed(home: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "small.tar.xz"
    bundle(home, "small", path)
    return path


@pytest.fixture(scope="module")
def unpacked(packed: Path) -> Workspace:
    return unbundle(packed, packed.parent / "elsewhere")


def read(path: Path) -> Members:
    with tarfile.open(path) as archive:
        return [(m, archive.extractfile(m).read()) for m in archive.getmembers()]  # type: ignore[union-attr]


def write(path: Path, members: Members) -> None:
    with tarfile.open(path, "w:xz") as archive:
        for member, data in members:
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_records_alone_give_the_same_report(
    home: Workspace, unpacked: Workspace, tmp_path: Path
) -> None:
    bundle(home, "small", tmp_path / "records.tar.xz", records_only=True)
    there = unbundle(tmp_path / "records.tar.xz", tmp_path / "there")
    assert not there.reports.exists()
    build(there, "small", there.reports / "small")
    page = "small/index.html"
    assert (there.reports / page).read_bytes() == (unpacked.reports / page).read_bytes()


def test_bundle_into_a_folder_that_is_not_there_is_refused(home: Workspace, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a folder that exists"):
        bundle(home, "small", tmp_path / "none" / "small.tar.xz")
    assert not any(tmp_path.iterdir())


def test_bundle_s_report_is_byte_for_byte_that_of_the_checkout(
    workspace: Workspace, report: Path, tmp_path: Path
) -> None:
    bundle(workspace, "small", tmp_path / "small.tar.xz")
    there = unbundle(tmp_path / "small.tar.xz", tmp_path / "there")
    assert contents(there.reports / "small") == contents(report)


def test_unpacked_bundle_tells_where_numbers_come_from(
    home: Workspace, unpacked: Workspace
) -> None:
    name = "W2A2/statsq+qkr+cga"
    assert explain(unpacked, "small", name) == explain(home, "small", name)


def test_same_records_make_the_same_bundle(home: Workspace, packed: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(home.root, moved)  # later, and by another path
    bundle(Workspace(moved), "small", tmp_path / "small.tar.xz")
    assert (tmp_path / "small.tar.xz").read_bytes() == packed.read_bytes()


def test_bundle_of_an_unpacked_bundle_is_the_same(
    unpacked: Workspace, packed: Path, tmp_path: Path
) -> None:
    bundle(unpacked, "small", tmp_path / "small.tar.xz")
    assert (tmp_path / "small.tar.xz").read_bytes() == packed.read_bytes()


def test_bundle_has_no_weights_and_tells_neither_owner_nor_time(packed: Path) -> None:
    members = [member for member, _ in read(packed)]
    names = [member.name for member in members]
    assert names[0] == "small/bundle.json"
    assert names[1:] == sorted(names[1:])
    endings = {Path(name).suffix for name in names}
    assert not endings & {".safetensors", ".pt", ".jsonl"}
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {
        (0, 0, 0, "", "", 0o644)
    }


def test_tables_that_no_figure_uses_are_left_out(home: Workspace, packed: Path) -> None:
    assert list(home.results.rglob("layers.parquet"))
    names = {Path(member.name).name for member, _ in read(packed)}
    assert {"metrics.parquet", "correct.npy", "run.json"} <= names
    assert not {"layers.parquet", "trajectories.parquet"} & names


@pytest.mark.parametrize(("unrecorded", "seed"), [(set(), 0), ({0}, 1)])
def test_only_those_paths_of_weights_are_packed_that_the_figure_shows(
    unrecorded: set[int], seed: int, tmp_path: Path
) -> None:
    made = synthetic.make_workspace(tmp_path / "home", **{**BRIEF, "figures": ["weight_paths"]})
    synthetic.fill(made)
    runs = made.grid("small").runs().values()
    for run in runs:
        if run.config.seed in unrecorded:
            folder = made.results / "runs" / run.id
            (folder / "trajectories.parquet").unlink(missing_ok=True)
            synthetic.vouch(folder)
    bundle(made, "small", tmp_path / "small.tar.xz")
    names = {member.name for member, _ in read(tmp_path / "small.tar.xz")}
    packed = {
        (str(run.config.bits), run.config.stage, run.config.seed)
        for run in runs
        if f"small/results/runs/{run.id}/trajectories.parquet" in names
    }
    assert packed == {("W2A2", "qat", seed), ("W2A2", "cga", seed)}


def test_addresses_of_tracking_stores_stay_at_home(tmp_path: Path) -> None:
    workspace = make_home(tmp_path / "home")
    run = workspace.grid("small").cells[1].runs[0]
    note = {"http://somewhere.example:5000": {"run_id": "ab12", "epoch": 4, "content": ""}}
    (workspace.results / "runs" / run.id / "mirror.json").write_text(json.dumps(note))
    (workspace.root / "config/config.yaml").write_text(
        "studies: [small]\ntracking_uri: http://somewhere.example:5000\n"
    )
    bundle(workspace, "small", tmp_path / "small.tar.xz")
    assert not any(b"somewhere" in data for _, data in read(tmp_path / "small.tar.xz"))
    there = unbundle(tmp_path / "small.tar.xz", tmp_path / "there")
    assert "ab12" in explain(there, "small", "W2A2/lsq")


def test_study_that_extends_others_brings_them(tmp_path: Path) -> None:
    workspace = make_home(tmp_path / "home")
    path = workspace.root / "config/studies/large.yaml"
    path.write_text("extends: small\ntitle: Large\nbits: [W4A4]\n")
    home = Workspace(workspace.root)
    bundle(home, "large", tmp_path / "large.tar.xz")
    there = unbundle(tmp_path / "large.tar.xz", tmp_path / "there")
    assert there.study("large") == home.study("large")
    assert set(there.grid("large").runs()) == {
        str(p.parent.relative_to(there.results / "runs")) for p in there.root.rglob("result.json")
    }


@pytest.mark.parametrize("name", ["2024", "true", "1e3"])
def test_study_may_have_a_name_that_yaml_takes_for_something_else(
    name: str, tmp_path: Path
) -> None:
    workspace = make_home(tmp_path / "home")
    (workspace.root / f"config/studies/{name}.yaml").write_text("extends: small\ntitle: T\n")
    bundle(Workspace(workspace.root), name, tmp_path / "b.tar.xz")
    there = unbundle(tmp_path / "b.tar.xz", tmp_path / "there")
    assert list(there.site.studies) == [name]


def test_unfinished_study_keeps_the_reasons_for_what_is_missing(tmp_path: Path) -> None:
    workspace = make_home(tmp_path / "home")
    cells = {(c.bits, c.method): c for c in workspace.grid("small").cells}
    folders = [
        workspace.results / "runs" / cells["W2A2", method].runs[0].id
        for method in ("lsq", "statsq", "statsq+qkr+cga")
    ]
    for folder in folders:
        shutil.rmtree(folder)
    began = json.dumps({"event": "started", "time": 0})
    folders[0].mkdir()
    (folders[0] / "events.jsonl").write_text(f"{began}\n")
    log = workspace.logs / f"{cells['W2A2', 'statsq'].runs[0].id}.log"
    log.parent.mkdir(parents=True)
    log.write_text("error: the disk is full\n")
    bundle(workspace, "small", tmp_path / "small.tar.xz")
    there = unbundle(tmp_path / "small.tar.xz", tmp_path / "there")
    at_home = build(workspace, "small", workspace.reports / "small").parent
    table = (at_home / "table.csv").read_text()
    assert all(reason in table for reason in ("interrupted", "failed", "not run"))
    assert contents(there.reports / "small") == contents(at_home)


def test_damaged_record_is_named_where_it_lies(tmp_path: Path) -> None:
    workspace = make_home(tmp_path / "home")
    run = workspace.grid("small").cells[-1].runs[0]
    path = workspace.results / "runs" / run.id / "metrics.parquet"
    path.write_bytes(b"torn")
    with pytest.raises(UserError, match="isn't what was written") as caught:
        bundle(workspace, "small", tmp_path / "small.tar.xz")
    assert str(caught.value).startswith(f"{path}: ")
    assert not (tmp_path / "small.tar.xz").exists()


def test_folder_that_exists_is_left_alone(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    for out in (tmp_path / "thesis", tmp_path / "no" / "such"):
        with pytest.raises(UserError, match="expected a new folder, in one that exists"):
            unbundle(packed, out)
    assert contents(tmp_path) == {}


def refuse(path: Path, message: str) -> None:
    """Unpacking fails in one line, and leaves nothing behind."""
    folder = path.parent / "unpacked"
    with pytest.raises(UserError, match=message) as caught:
        unbundle(path, folder / "small")
    assert str(caught.value).isprintable()
    assert list(folder.iterdir()) == []
    assert not list(path.parent.rglob("escaped*"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "unpacked").mkdir()
    return tmp_path / "small.tar.xz"


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"no archive at all",
        lambda data: data[: len(data) // 2],
        lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
    ],
    ids=["empty", "text", "half", "one bit"],
)
def test_damaged_bundle_is_refused(
    packed: Path, place: Path, damage: Callable[[bytes], bytes]
) -> None:
    place.write_bytes(damage(packed.read_bytes()))
    refuse(place, "damaged, or not a bundle")


def test_missing_bundle_is_named(place: Path) -> None:
    refuse(place, "no such file")


def forged(name: str, data: bytes = b"forged") -> bytes:
    """A bundle.json that lists one file."""
    files = {name: hashlib.sha256(data).hexdigest()}
    return json.dumps({"study": "small", "files": files}).encode()


@pytest.mark.parametrize(
    "name",
    [
        "config/../../escaped",
        "../escaped",
        "/tmp/escaped",
        "config//x",
        "config/./x",
        "config",
        "x",
    ],
)
def test_file_outside_the_bundles_folders_is_refused(place: Path, name: str) -> None:
    members = [("small/bundle.json", forged(name)), (f"small/{name}", b"forged")]
    write(place, [(tarfile.TarInfo(path), data) for path, data in members])
    refuse(place, "no file of a bundle lies in")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_what_is_no_plain_file_is_refused(place: Path, kind: bytes) -> None:
    link = tarfile.TarInfo("small/config/methods/x.yaml")
    link.type, link.linkname = kind, "/etc/passwd"
    listed = forged("config/methods/x.yaml")
    write(place, [(tarfile.TarInfo("small/bundle.json"), listed), (link, b"")])
    refuse(place, "unexpected: small/config/methods/x.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m[1:], "doesn't begin with bundle.json"),
        (lambda m: m[:-1], "missing: results/runs/"),
        (lambda m: [*m, m[-1]], "unexpected: small/results/runs/"),
        (lambda m: [*m, (tarfile.TarInfo("small/more"), b"")], "unexpected: small/more"),
        (lambda m: [*m[:-1], (m[-1][0], b"else")], "its SHA-256 is another"),
        (lambda m: [(m[0][0], b"{}"), *m[1:]], "Field required"),
        (lambda m: [(m[0][0], m[0][1].replace(b'"format": 1', b'"format": 9')), *m[1:]], "be 1"),
        (lambda m: [(m[0][0], m[0][1].replace(b'"small"', b'"tiny"')), *m[1:]], "another study"),
        (lambda m: [(m[0][0], m[0][1].replace(b'"small"', b'".."')), *m[1:]], "allowed in a name"),
    ],
)
def test_other_content_than_was_packed_is_refused(
    packed: Path, place: Path, change: Callable[[Members], Members], message: str
) -> None:
    write(place, change(read(packed)))
    refuse(place, message)


WITHOUT_TORCH = """
import sys
class Finder:
    def find_spec(self, name, *_):
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name=name)
sys.meta_path.insert(0, Finder())
from ofq.cli import main
main()
"""


def test_commands_bundle_and_unbundle_without_torch(home: Workspace, tmp_path: Path) -> None:
    def ofq(folder: Path, *arguments: str) -> str:
        command = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout

    told = ofq(home.root, "bundle", "small", "--out", str(tmp_path / "small.tar.xz"))
    assert told.startswith(f"wrote {tmp_path / 'small.tar.xz'}: ")
    assert "no host names, process ids, logs or credentials" in told
    told = ofq(tmp_path, "unbundle", "small.tar.xz")
    assert told == "unpacked small; its report anew: cd small && ofq report small\n"
    before = contents(tmp_path / "small/reports")
    ofq(tmp_path / "small", "report", "small")
    assert contents(tmp_path / "small/reports") == before


def test_records_are_never_trained_over(unpacked: Workspace) -> None:
    for run in unpacked.grid("small").runs().values():
        assert RunFolder(unpacked.results / "runs" / run.id).state() == "done"
        assert examine(unpacked, run.id).sound
        with pytest.raises(UserError, match="can't train in an unpacked bundle"):
            jobs.check(unpacked, run, ["small"], gpus=0)


def opened(path: Path, members: Members, change: Callable[[dict[str, bytes]], object]) -> None:
    """Write a bundle after changing its files, with the hashes that they then have."""
    files = {member.name.removeprefix("small/"): data for member, data in members[1:]}
    change(files)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    about = json.dumps({"study": "small", "files": hashes}).encode()
    everything = {"bundle.json": about, **files}
    write(path, [(tarfile.TarInfo(f"small/{name}"), data) for name, data in everything.items()])


@pytest.mark.parametrize(
    "name",
    [
        "config/__init__.py", "config/evil.yaml", "Snakefile", "config/studies/.x.yaml",
        "config/methods/a/b.yaml", "config/methods/\x1b[2J.yaml", "config/methods/é.yaml",
        f"config/methods/{'a' * 201}.yaml", "reports/small/evil.py", "reports/small/.git/config",
        "results/runs/digits/micro/x/model.safetensors", "results/runs/digits/x/run.json",
        "results/" + "a/" * 2000 + "run.json", "logs/train/x.log", "reports/other/index.html",
    ],
)  # fmt: skip
def test_name_that_bundling_writes_to_nothing_is_refused(
    packed: Path, place: Path, name: str
) -> None:
    opened(place, read(packed), lambda files: files.update({name: b"import os"}))
    refuse(place, "no file of a bundle lies in|unexpected")


def test_names_that_differ_in_case_alone_are_refused(packed: Path, place: Path) -> None:
    both = {"config/methods/a.yaml": b"{}", "config/methods/A.yaml": b"{}"}
    opened(place, read(packed), lambda files: files.update(both))
    refuse(place, "upper and lower case alone")


def test_every_file_that_a_report_may_have_may_be_in_a_bundle() -> None:
    from ofq.config.schema import FIGURES
    from ofq.report.bundle import _are_named
    from ofq.report.write import ENTRIES

    for name in ENTRIES - {"figures"}:
        _are_named({f"reports/small/{name}": "0" * 64})
    for name in FIGURES:
        _are_named({f"reports/small/figures/{name}.{end}": "0" * 64 for end in ("svg", "png")})


def test_sparse_member_is_refused_before_its_holes_are_filled(place: Path) -> None:
    sparse = tarfile.TarInfo("small/config/methods/x.yaml")
    sparse.type, sparse.size = tarfile.GNUTYPE_SPARSE, 2**40
    listed = forged("config/methods/x.yaml")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        about = tarfile.TarInfo("small/bundle.json")
        about.size = len(listed)
        archive.addfile(about, io.BytesIO(listed))
        end = archive.offset
    header = sparse.tobuf(tarfile.GNU_FORMAT)
    place.write_bytes(lzma.compress(stream.getvalue()[:end] + header + bytes(1024)))
    refuse(place, "unexpected: small/config/methods/x.yaml")


@pytest.mark.parametrize(
    "attributes",
    [
        {"size": str(2**40)},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "x"},
        {"path": "small/config/methods/x.yaml", "comment": "more"},
        {"comment": "x" * 10_000},
    ],
)
def test_header_with_other_attributes_than_a_path_is_refused(
    place: Path, attributes: dict[str, str]
) -> None:
    member = tarfile.TarInfo("small/config/methods/x.yaml")
    member.pax_headers = attributes
    first = (tarfile.TarInfo("small/bundle.json"), forged("config/methods/x.yaml"))
    write(place, [first, (member, b"forged")])
    refuse(place, "a header of a kind that no bundle has")


def test_file_that_is_larger_than_its_kind_may_be_is_refused(packed: Path, place: Path) -> None:
    large = {"config/methods/x.yaml": b"#" * (2**18 + 1)}
    opened(place, read(packed), lambda files: files.update(large))
    refuse(place, r"small/config/methods/x\.yaml: more than there may be")


def test_bundle_that_would_take_more_than_half_of_the_free_disk_is_refused(
    packed: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.write_bytes(packed.read_bytes())
    few = shutil.disk_usage("/")._replace(free=20_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: few)
    refuse(place, "more than half the disk has free")


def test_archive_that_takes_much_memory_to_decompress_is_refused(place: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 2**28}]
    place.write_bytes(lzma.compress(bytes(10_240), filters=filters))
    refuse(place, "Memory usage limit")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config/studies/small.yaml", "title: [", "not valid YAML"),
        ("config/studies/small.yaml", "{}", "config/studies/small.yaml: key 'title' is missing"),
        ("config/recipes/small.yaml", "dataset: digits", "key 'models' is missing"),
        ("results/runs/x/x/x/run.json", "[" * 100_000, "not valid JSON"),
        ("results/runs/x/x/x/run.json", "[]", "not a JSON object"),
        ("results/runs/x/x/x/run.json", f'{{"a": {10**30}}}', "an integer of more than 64 bits"),
        ("results/runs/x/x/x/run.json", f'{{"a": {"9" * 5000}}}', "not valid JSON"),
    ],
)
def test_bundle_whose_config_or_records_cannot_be_read_leaves_nothing(
    packed: Path, place: Path, name: str, text: str, message: str
) -> None:
    opened(place, read(packed), lambda files: files.update({name: text.encode()}))
    refuse(place, message)


def test_site_of_a_bundle_counts_for_nothing(packed: Path, place: Path, tmp_path: Path) -> None:
    site = f"studies: [small]\nreports: {tmp_path}\nresults: {tmp_path}\ntracking_uri: http://x.y\n"
    opened(place, read(packed), lambda files: files.update({"config/config.yaml": site.encode()}))
    there = unbundle(place, tmp_path / "there")
    assert there.reports == tmp_path / "there/reports"
    assert there.results == tmp_path / "there/results"
    assert there.site.tracking_uri is None


def test_study_cannot_extend_a_file_outside_its_folder(packed: Path, place: Path) -> None:
    (place.parent / "secret.yaml").write_text("title: Secret\n")

    def extend(files: dict[str, bytes]) -> None:
        files["config/studies/small.yaml"] = b"extends: ../../../../secret\n"

    opened(place, read(packed), extend)
    refuse(place, "unknown study '../../../../secret'")


def test_name_that_a_terminal_would_obey_is_printed_escaped(place: Path) -> None:
    write(place, [(tarfile.TarInfo("small/\x1b[2J/bundle.json"), forged("config/x"))])
    refuse(place, "damaged, or not a bundle")


def test_neither_hosts_nor_processes_nor_logs_nor_secrets_are_packed(tmp_path: Path) -> None:
    workspace = make_home(tmp_path / "home")
    cells = {(c.bits, c.method): c for c in workspace.grid("small").cells}
    done = workspace.results / "runs" / cells["W2A2", "statsq"].runs[0].id
    attempt = {
        "commit": "0123456789abcdef", "untracked": ["config/own.yaml"], "host": "node-of-mine",
        "pid": 4711471, "slurm": {"SLURM_JOB_NAME": "job-of-mine"}, "visible_gpus": "gpu-of-mine",
        "diff": "+uri: http://me:hunter2@x.y/z\n+data: /home/somebody/data",
        "command": "ofq train --data /home/somebody/data",
    }  # fmt: skip
    provenance = {"attempts": [attempt]}
    RunFolder(done).write_json("provenance.json", provenance)
    facts = {"provenance.json": facts_of(done / "provenance.json")}
    write_manifest(done, read_manifest(done) | facts)
    begun, never = (cells["W2A2", name].runs[0].id for name in ("lsq", "statsq+qkr"))
    for run in (begun, never, cells["W2A2", "statsq+qkr+cga"].runs[0].id):
        shutil.rmtree(workspace.results / "runs" / run)
    folder = RunFolder(workspace.results / "runs" / begun)
    folder.make()
    folder.event("opened", host="node-of-mine", slurm_job="4711471", devices=1)
    folder.event("interrupted", cause="lost http://me:hunter2@x.y/z on /home/somebody/scratch")
    log = workspace.logs / f"{never}.log"
    log.parent.mkdir(parents=True)
    log.write_text("export KEY=hunter2 on node-of-mine\nerror: no /home/somebody/data\n")
    bundle(workspace, "small", tmp_path / "small.tar.xz")
    packed = b"".join(data for _, data in read(tmp_path / "small.tar.xz"))
    for secret in (b"-of-mine", b"4711471", b"hunter2", b"somebody"):
        assert secret not in packed
    there = unbundle(tmp_path / "small.tar.xz", tmp_path / "there")
    assert (there.logs / f"{never}.log").read_text() == "error: no ~/data\n"
    assert RunFolder(there.results / "runs" / begun).state() == "interrupted"
    assert "0123456789abcdef-dirty" in explain(there, "small", "W2A2/statsq")


EVIL = "import pathlib\npathlib.Path(__file__).with_name('was-run').touch()\n"


def test_nothing_that_lies_in_an_unpacked_bundle_is_run(packed: Path, tmp_path: Path) -> None:
    there = unbundle(packed, tmp_path / "there")
    for name in ("config/__init__.py", "config/evil.py", "pandas.py", "evil.py"):
        (there.root / name).write_text(EVIL)
    run = there.grid("small").cells[-1].runs[0].id
    methods = there.root / "config/methods/ofq.yaml"
    parts = json.loads(methods.read_text())
    methods.write_text(json.dumps({k: v | {"module": "config.evil"} for k, v in parts.items()}))
    changed = Workspace(there.root).grid("small").cells[-1].runs[0].id
    folder = there.results / "runs" / run
    (folder / UNPACKED).unlink()
    provenance = json.loads((folder / "provenance.json").read_text())
    provenance["attempts"][0]["module"] = {"name": "config.evil", "sha256": "0" * 64}
    (folder / "provenance.json").write_text(json.dumps(provenance))
    ofq = str(Path(sys.executable).with_name("ofq"))
    for command in (["doctor", str(folder)], ["status"], ["explain", "small", "W2A2/lsq"],
                    ["train", changed], ["bundle", "small", "--out", "x.tar.xz"]):  # fmt: skip
        done = subprocess.run([ofq, *command], cwd=there.root, capture_output=True, text=True)
        assert "Traceback" not in done.stderr
        assert not list(there.root.rglob("was-run")), command


def test_file_that_is_no_bundle_is_not_replaced_by_one(home: Workspace, tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("all of it")
    with pytest.raises(UserError, match="is there already, and is no bundle"):
        bundle(home, "small", tmp_path / "thesis.docx")
    assert (tmp_path / "thesis.docx").read_text() == "all of it"
