import json

import numpy as np
import pandas as pd
import pytest

from ofq.atomic import write_file
from ofq.errors import UserError
from ofq.tracking import RunFolder

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
