import json

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


def test_rows_come_back_in_order_and_a_torn_last_one_is_left_out(folder):
    folder.append("metrics", [{"step": 1}, {"step": 2}])
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    assert folder.rows("metrics") == [{"step": 1}, {"step": 2}]


def test_record_after_a_torn_one_is_whole(folder):
    with (folder.path / "events.jsonl").open("a") as file:
        file.write('{"event": "star')
    folder.event("opened")
    folder.event("resumed")
    assert [event["event"] for event in folder.events()] == ["opened", "resumed"]


def test_run_without_its_weights_is_not_complete(folder):
    folder.finish({"top1": 1.0})
    assert not folder.complete()
    (folder.path / "model.safetensors").write_bytes(b"")
    assert folder.complete()


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
        folder.finish({"top1": 90.0})
    assert folder.result() is None
    assert [p.name for p in folder.path.iterdir() if "tmp" in p.name or "parquet" in p.name] == []
    monkeypatch.undo()
    folder.finish({"top1": 90.0})
    assert folder.result() == {"top1": 90.0}
    assert pd.read_parquet(folder.path / "metrics.parquet").to_dict("records") == [
        {"step": 1, "top1": 90.0}
    ]


def test_table_has_every_column_that_any_row_has(folder):
    folder.append(
        "metrics", [{"step": 0, "train_loss": None}, {"step": 1, "train_loss": 2.0, "x": 1}]
    )
    folder.finish({})
    table = pd.read_parquet(folder.path / "metrics.parquet")
    assert list(table.columns) == ["step", "train_loss", "x"]
    assert table["train_loss"].isna().tolist() == [True, False]


def test_run_goes_on_after_an_option_was_added(folder):
    """A new option is at its default in every older run, whose name stays; so must its folder."""
    folder.open({"id": "a/b/c", "config": {"seed": 1, "option": None}})
    assert folder.description() == DESCRIPTION


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
