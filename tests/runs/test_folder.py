import hashlib
import json
import os
import re
from contextlib import suppress

import numpy as np
import pandas as pd
import pytest

from ofq.atomic import write_file
from ofq.errors import UserError
from ofq.runs.folder import RunFolder

DESCRIPTION = {"id": "a/b/c", "config": {"seed": 1}}


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.open(DESCRIPTION)
    return folder


def test_rows_come_back_in_order_and_a_torn_last_one_is_left_out_and_said(folder, caplog):
    folder.append("metrics", [{"step": 1}, {"step": 2}])
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    assert folder.rows("metrics") == [{"step": 1}, {"step": 2}]
    assert folder.rows("metrics") == [{"step": 1}, {"step": 2}]
    assert [record.message.rpartition("/")[2] for record in caplog.records] == [
        "metrics.jsonl:3: torn by a crash, left out"
    ]


def test_record_after_a_torn_one_is_whole(folder):
    with (folder.path / "events.jsonl").open("a") as file:
        file.write('{"event": "star')
    folder.event("opened")
    folder.event("resumed")
    assert [event["event"] for event in folder.events()] == ["opened", "resumed"]


def weights(path):
    path.write_bytes(b"weights")


def test_run_without_its_weights_is_not_complete(folder):
    folder.finish({"top1": 1.0}, weights)
    assert folder.complete()
    (folder.path / "model.safetensors").unlink()
    assert not folder.complete()


@pytest.mark.parametrize("images", [1, 8, 900, 901])
def test_right_images_come_back_from_an_eighth_of_their_size(folder, images):
    right = np.random.default_rng(images).random(images) < 0.7
    result = {"images": images, "correct": int(right.sum())}
    folder.finish(result, weights, right)
    assert folder.correct().tolist() == right.tolist()
    assert (folder.path / "correct.npy").stat().st_size <= 128 + images / 8 + 1
    (folder.path / "correct.npy").unlink()
    (folder.path / "result.json").unlink()
    assert folder.restore()
    assert folder.correct().tolist() == right.tolist()


def test_run_without_marks_has_none(folder):
    folder.finish({"images": 3, "correct": 1}, weights)
    assert folder.correct() is None


def test_marks_of_another_evaluation_are_refused(folder):
    right = np.array([True, False, True])
    folder.finish({"images": 3, "correct": 2}, weights, right)
    np.save(folder.path / "correct.npy", np.packbits(~right))
    with pytest.raises(UserError, match=r"correct\.npy: isn't what was written"):
        folder.correct()
    (folder.path / "manifest.json").unlink()  # as of a run of an early version
    (folder.path / "result.json").write_text('{"images": 3, "correct": 2}')
    with pytest.raises(UserError, match=r"tells of 1 right images, but result\.json of 2"):
        folder.correct()


def finished(folder, **numbers):
    """End a run of two epochs with 2 of 3 images right."""
    attempt = {"commit": "ab", "diff": "", "untracked": []}
    folder.write_json("provenance.json", {"attempts": [attempt]})
    folder.append("metrics", [{"epoch": e, "step": e, "top1": 50.0 + e} for e in range(3)])
    right = np.array([True, False, True])
    result = {
        "id": "a/b/c", "primary": "top1", "top1": 200 / 3, "correct": 2, "images": 3,
        "epochs": 2, "steps": 2, "seconds": 1.5, **numbers,
    }  # fmt: skip
    folder.finish(result, weights, right)
    return folder.record()


def test_manifest_names_size_and_hash_of_each_final_file(folder):
    finished(folder)
    manifest = json.loads((folder.path / "manifest.json").read_text())
    names = {
        "run.json", "provenance.json", "metrics.parquet", "correct.npy", "model.safetensors",
        "result.json",
    }  # fmt: skip
    assert manifest["files"].keys() == names
    for place in (folder.path, folder.path / "sealed"):
        for name in names:
            content = (place / name).read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            assert manifest["files"][name] == {"bytes": len(content), "sha256": digest}
    assert list(folder.record().faults()) == []


def test_sealed_files_are_copies(folder):
    finished(folder)
    for path in (folder.path / "sealed").iterdir():
        assert not path.samefile(folder.path / path.name)


@pytest.mark.parametrize("moment", range(16))
def test_end_that_is_killed_at_any_write_leaves_a_run_unfinished_or_whole(
    folder, moment, monkeypatch
):
    count, replace = [0], os.replace

    def killed(source, to):
        count[0] += 1
        if count[0] > moment:
            raise KeyboardInterrupt
        replace(source, to)

    monkeypatch.setattr("os.replace", killed)
    with suppress(KeyboardInterrupt):
        finished(folder)
    monkeypatch.undo()
    record = folder.record()
    assert record is None or list(record.faults()) == []
    if folder.restore():
        assert list(folder.record().faults()) == []
        assert folder.damaged() == []


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"top1": 99.9}, "top-1 is 99.9, but 2 of 3 images are right"),
        ({"top1": "66"}, "key 'top1' is '66'"),
        ({"top1": None, "correct": None}, "key 'top1' is missing"),
        ({"images": 0, "correct": None}, "key 'images' is '0'"),
        ({"seconds": float("nan")}, "key 'seconds' is 'nan'"),
        ({"primary": "top9"}, "key 'primary' is 'top9'"),
        ({"epochs": -1}, "key 'epochs' is '-1'"),
        ({"steps": 10**30}, "key 'steps' is"),
    ],
)
def test_numbers_that_no_run_ends_with_are_damage(folder, numbers, said):
    with pytest.raises(UserError, match=re.escape(said)):
        print(finished(folder, **numbers).result)


@pytest.mark.parametrize(
    ("epochs", "said"),
    [([0, 1], "ends at epoch 1"), ([0, 2], "rows of some epochs"), ([0, 1, 1, 2], "stand twice")],
)
def test_final_table_without_all_epochs_is_damage(folder, epochs, said):
    folder.append("metrics", [{"epoch": e, "step": e} for e in epochs])
    folder.finish({"epochs": 2}, weights)
    with pytest.raises(UserError, match=said):
        folder.record().table("metrics")


def test_result_of_an_early_run_is_held_against_its_last_row(folder):
    finished(folder)
    path = folder.path / "result.json"
    (folder.path / "manifest.json").unlink()
    result = json.loads(path.read_text())
    with pytest.raises(UserError, match=r"manifest\.json: missing"):
        folder.record()
    del result["manifest"]
    result |= {"top1": 52.0, "correct": None}
    path.write_text(json.dumps(result))
    assert folder.record().result["top1"] == 52.0
    path.write_text(json.dumps(result | {"top1": 52.5}))
    with pytest.raises(UserError, match=r"'top1' is 52\.5, but metrics\.parquet ends with 52\.0"):
        print(folder.record().result)


def test_exported_sizes_are_two_numbers_and_replace_nothing_else(folder):
    finished(folder)
    sizes = {"packed_bytes": 5, "full_precision_bytes": 9}
    (folder.path / "packed.json").write_text('{"top1": 99.9}')  # no export wrote it
    assert folder.sizes() == {}
    for size in (5, 6):
        folder.write_json("packed.json", sizes | {"packed_bytes": size})
        assert folder.sizes() == sizes | {"packed_bytes": size}
        assert list(folder.record().faults()) == []
        assert folder.damaged() == []
    (folder.path / "packed.json").write_text('{"packed_bytes": 7, "full_precision_bytes": 9}')
    with pytest.raises(UserError, match=r"packed\.json: isn't what was written"):
        folder.sizes()


@pytest.mark.parametrize("kept", [0, 1])
def test_rows_that_a_checkpoint_counts_on_are_missed(folder, kept):
    folder.append("metrics", [{"epoch": e, "step": e} for e in range(2)])
    counted = folder.grown()
    folder.append("metrics", [{"epoch": 2, "step": 2}])
    folder.check_grown(counted, "step-1")
    path = folder.path / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:kept]))
    said = f"metrics.jsonl: has {kept} rows, but not the first 2 as checkpoint step-1"
    with pytest.raises(UserError, match=said):
        folder.check_grown(counted, "step-1")
    path.unlink()
    with pytest.raises(
        UserError, match=r"has 0 rows, .* put the file back from a backup, or train"
    ):
        folder.check_grown(counted, "step-1")


@pytest.mark.parametrize("epochs", [[0], [0, 2], [1, 2], []])
def test_epochs_before_a_checkpoint_of_an_early_version_are_missed(folder, epochs):
    folder.append("metrics", [{"epoch": e, "step": 10 * e} for e in epochs])
    with pytest.raises(UserError, match=r"metrics\.jsonl: has \d rows, but not rows that"):
        folder.check_epochs(20)


@pytest.mark.parametrize("name", ["run.json", "result.json", "metrics.jsonl", "manifest.json"])
@pytest.mark.parametrize("content", [b"\0" * 9, b"[" * 100_000, b"\xff", b"9" * 5000, None])
def test_garbage_in_a_file_s_place_is_one_line_or_left_out(folder, name, content):
    finished(folder)
    path = folder.path / name
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    said = []
    for read in (folder.description, folder.result, lambda: folder.rows("metrics")):
        try:
            read()
        except UserError as error:
            said.append(str(error))
    assert said or name == "metrics.jsonl"
    assert all(str(path) in text and "\n" not in text for text in said)


def test_deleted_final_files_are_put_back_as_they_were(folder):
    """As Snakemake deletes them when its master was killed while the job ran."""
    folder.append("metrics", [{"step": 1, "top1": 90.0}])
    folder.finish({"top1": 90.0}, weights)
    names = ("result.json", "model.safetensors", "metrics.parquet")
    before = {name: (folder.path / name).read_bytes() for name in names}
    for name in names:
        (folder.path / name).unlink()
    assert not folder.complete()
    assert folder.restore()
    assert {name: (folder.path / name).read_bytes() for name in names} == before


def test_damaged_final_files_are_not_put_back(folder):
    folder.finish({"top1": 90.0}, weights)
    (folder.path / "result.json").unlink()
    (folder.path / "sealed" / "model.safetensors").write_bytes(b"wEights")
    assert folder.damaged() == ["model.safetensors"]
    assert not folder.restore()
    assert folder.result() is None


def test_nothing_is_written_once_the_guard_objects(folder):
    def objects():
        raise RuntimeError("lock lost")

    folder.append("metrics", [{"step": 1}])
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    folder.guard = objects
    writes = [
        lambda: folder.append("metrics", [{"step": 2}]),
        lambda: folder.event("started"),
        lambda: folder.rewind(0),
        lambda: folder.write_json("run.json", {}),
        lambda: folder.finish({}, weights),
    ]
    for write in writes:
        with pytest.raises(RuntimeError, match="lock lost"):
            write()
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == before


@pytest.mark.parametrize(
    ("step", "kept"), [(None, []), (0, [0]), (2, [0, 1, 2]), (9, [0, 1, 2, 3])]
)
def test_rewinding_drops_what_came_later(folder, step, kept):
    for table in ("metrics", "layers"):
        folder.append(table, [{"step": s} for s in range(4)])
    folder.rewind(step)
    assert [row["step"] for row in folder.rows("metrics")] == kept
    assert [row["step"] for row in folder.rows("layers")] == kept


def test_result_comes_last(folder, monkeypatch):
    folder.append("metrics", [{"step": 1, "top1": 90.0}])

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr("pyarrow.parquet.write_table", broken)
    with pytest.raises(OSError, match="disk full"):
        folder.finish({"top1": 90.0}, weights)
    assert folder.result() is None
    assert [p.name for p in folder.path.rglob("*") if "tmp" in p.name or "parquet" in p.name] == []
    monkeypatch.undo()
    folder.finish({"top1": 90.0}, weights)
    assert folder.result()["top1"] == 90.0
    assert pd.read_parquet(folder.path / "metrics.parquet").to_dict("records") == [
        {"step": 1, "top1": 90.0}
    ]


def test_table_has_every_column_that_any_row_has(folder):
    folder.append(
        "metrics", [{"step": 0, "train_loss": None}, {"step": 1, "train_loss": 2.0, "x": 1}]
    )
    folder.finish({}, weights)
    table = pd.read_parquet(folder.path / "metrics.parquet")
    assert list(table.columns) == ["step", "train_loss", "x"]
    assert table["train_loss"].isna().tolist() == [True, False]


def test_run_goes_on_after_an_option_was_added(folder):
    """A new option is at its default in every older run, whose name stays; so must its folder."""
    folder.open({"id": "a/b/c", "config": {"seed": 1, "option": None}})
    assert folder.description() == DESCRIPTION


def test_run_goes_on_after_an_option_that_decided_nothing_was_removed(tmp_path):
    before = {"id": "a/b/c", "config": {"seed": 1, "training": {"lr": 1.0, "trajectories": 0}}}
    folder = RunFolder(tmp_path / "run")
    folder.open(before)
    folder.open({"id": "a/b/c", "config": {"seed": 1, "training": {"lr": 1.0}}})
    assert folder.description() == before


def test_folder_of_another_config_is_refused(folder):
    folder.open(DESCRIPTION)
    with pytest.raises(UserError, match="another config"):
        folder.open({"id": "a/b/c", "config": {"seed": 2}})


def test_damaged_and_missing_records_are_explained(folder):
    (folder.path / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run.json: not valid JSON"):
        folder.description()
    with pytest.raises(UserError, match=r"no such file; is .* a run folder"):
        folder.provenance()


def test_failed_write_leaves_the_old_content(tmp_path):
    path = tmp_path / "data.json"
    path.write_text("old")

    def fails(temporary):
        temporary.write_text("ne")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_file(path, fails)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_events_carry_their_time(folder):
    folder.event("interrupted", cause="SIGTERM")
    (event,) = folder.events()
    assert event["event"] == "interrupted"
    assert event["cause"] == "SIGTERM"
    assert json.loads((folder.path / "events.jsonl").read_text())["time"] > 1.7e9
