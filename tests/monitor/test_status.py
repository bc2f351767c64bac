"""`ofq status` and `ofq runs`: what is counted, what is said of it, and how it fits a terminal."""

import io
import re
import signal
import subprocess
import sys

import pytest
from rich.console import Console

from ofq.config import Workspace
from ofq.monitor.span import Range
from ofq.monitor.status import runs
from ofq.monitor.status.figures import duration, significant
from ofq.monitor.status.fit import fitting, shares
from ofq.monitor.status.remaining import time_left, waiting_for
from ofq.monitor.status.runs import RunStatus, StudyStatus, last_error
from ofq.monitor.status.table import Page
from ofq.runs.attempt import run_folder

from tests.support.own_process import run_ofq
from tests.support.terminals import read_terminal, start_in_terminal

OFQ = [sys.executable, "-m", "ofq"]
PARTS = {
    "fp": "fp",
    "lsq": "w2a2-lsq",
    "qat": "w2a2-statsq-qkr",
    "cga": "w2a2-statsq-qkr-cga0.005",
}
NAN = "step 7: blocks.0.attn: its output holds nan\nmore of it"


class Study:
    """The tiny study: fp, lsq, qat and cga, each of two seeds."""

    def __init__(self, checkout, name="tiny"):
        self.root = checkout
        self.workspace = Workspace(checkout)
        self.runs = self.workspace.grid(name).runs()

    def id(self, part, seed=0):
        (found,) = [name for name in self.runs if f"/{PARTS[part]}-s{seed}-" in name]
        return found

    def folder(self, run_id):
        folder = run_folder(self.workspace, self.runs[run_id])
        folder.make()
        return folder

    def ends(self, run_id, event, **facts):
        folder = self.folder(run_id)
        folder.event("opened")
        folder.event(event, **facts)
        return folder

    def done(self, run_id, seconds=10.0):
        folder = self.ends(run_id, "finished")
        folder.finish({"id": run_id, "seconds": seconds}, lambda path: path.write_bytes(b"w"))

    def log(self, run_id, text):
        path = self.root / "logs" / "train" / f"{run_id}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def statuses(self):
        return StudyStatus(self.workspace, "tiny").read()


@pytest.fixture
def study(checkout):
    return Study(checkout)


def ofq(checkout, *arguments):
    return run_ofq(checkout, *arguments)


def table(output):
    """The columns of each cell by its method."""
    names, *lines = [line.split() for line in output.splitlines()]
    rows = [dict(zip(names, line, strict=True)) for line in lines if line[0] == "tiny"]
    return {row["method"]: row for row in rows}


@pytest.fixture
def mixed(study, hold):
    """One run in each state, and two that were killed without a word."""
    study.done(study.id("fp", 0))
    hold(study.folder(study.id("fp", 1)).path)
    progress = {"step": 250, "total": 1000, "seconds_per_step": 0.5}
    study.folder(study.id("fp", 1)).write_json("progress.json", progress)
    study.ends(study.id("lsq", 0), "failed", cause=NAN, code="abc")
    study.ends(study.id("lsq", 1), "interrupted", cause="SIGTERM")
    killed = study.folder(study.id("qat", 0))
    killed.event("opened")
    owner = hold(killed.path)
    owner.kill()
    owner.wait()
    return study


def test_each_state_is_counted_in_the_row_of_its_cell(mixed):
    rows = table(ofq(mixed.root, "status", "tiny").stdout)
    states = ("runs", "done", "running", "interrupted", "failed", "waiting")
    assert {method: [int(row[s]) for s in states] for method, row in rows.items()} == {
        "fp": [2, 1, 1, 0, 0, 0],
        "lsq": [2, 0, 0, 1, 1, 0],
        "statsq+qkr+cga": [4, 0, 0, 1, 0, 3],
    }
    assert [rows["fp"][name] for name in ("study", "model", "bits")] == [
        "tiny", "micro_deit_patch2_8", "FP"
    ]  # fmt: skip
    assert [rows["fp"][name] for name in ("percent", "steps/s", "left")] == ["25", "2.0", "0:06:15"]
    assert [rows["lsq"][name] for name in ("percent", "steps/s", "left")] == ["-", "-", "-"]


def test_sums_stand_below(mixed):
    last = ofq(mixed.root, "status", "tiny").stdout.splitlines()[-1]
    assert last == "tiny: 8 runs: 1 done, 1 running, 2 interrupted, 1 failed, 3 waiting"


def test_site_studies_are_shown_when_none_is_named(mixed):
    assert ofq(mixed.root, "status").stdout == ofq(mixed.root, "status", "tiny").stdout


def test_failure_is_listed_with_error_log_and_what_to_do(mixed):
    run = mixed.id("lsq", 0)
    without = ofq(mixed.root, "status", "tiny").stdout
    assert f"failed {run}: step 7: blocks.0.attn: its output holds nan\n  log: none; " in without
    assert f"ofq train {run} --again" in without
    mixed.log(run, "epoch 0\n")
    assert f"log: logs/train/{run}.log; " in ofq(mixed.root, "status", "tiny").stdout


def test_failure_that_a_user_can_mend_is_not_tried_again_by_force(study):
    run = study.id("lsq", 0)
    study.ends(run, "failed", cause="no such file")
    status = study.statuses()[run]
    assert status.failure.error == "no such file"
    assert f"ofq train {run} " in status.failure.todo
    assert "--again" not in status.failure.todo


def test_job_that_failed_before_its_folder_existed_is_known_by_its_log(study):
    study.log(study.id("lsq", 0), "warm\nerror: ImageNet isn't there\nset data.imagenet\n")
    study.log(study.id("lsq", 1), "training 28 steps\nstopped by SIGTERM; it goes on from here\n")
    statuses = study.statuses()
    assert statuses[study.id("lsq", 0)].state == "failed"
    assert statuses[study.id("lsq", 0)].failure.error == "ImageNet isn't there"
    assert statuses[study.id("lsq", 1)].state == "waiting"


def test_error_of_a_log_counts_only_until_an_attempt_began(study):
    run = study.id("lsq")
    study.log(run, "error: builds on another run\n")
    study.ends(run, "interrupted", cause="SIGTERM")
    assert study.statuses()[run].state == "interrupted"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", None),
        ("warning: no checkpoint\nfinished\n", None),
        ("error: first\nerror: second\n  and its details\n", "second"),
        ("Traceback (most recent call last):\n  File\nKeyError: 'x'\n", "KeyError: 'x'"),
        ("x" * 100_000 + "\nerror: at the end\n", "at the end"),
        ("error: early\n" + "x" * 100_000, None),
    ],
)  # fmt: skip
def test_last_error_of_a_log(tmp_path, text, error):
    log = tmp_path / "run.log"
    log.write_text(text)
    assert last_error(log) == error


def test_running_before_its_first_heartbeat_has_no_numbers(study, hold):
    hold(study.folder(study.id("fp")).path)
    row = table(ofq(study.root, "status").stdout)["fp"]
    assert [row[name] for name in ("running", "percent", "steps/s", "left")] == ["1", "-", "-", "-"]


def test_damaged_folder_does_not_hide_the_others(study):
    study.done(study.id("fp", 0))
    study.done(study.id("fp", 1))
    (study.folder(study.id("fp", 0)).path / "result.json").write_bytes(b"\xff{")
    statuses = study.statuses()
    assert [statuses[study.id("fp", seed)].state for seed in (0, 1)] == ["failed", "done"]
    assert f"ofq doctor {study.id('fp', 0)}" in statuses[study.id("fp", 0)].failure.todo


def test_each_folder_is_read_once_a_poll_and_done_ones_never_again(mixed, monkeypatch):
    seen = []
    read = runs._status_of
    monkeypatch.setattr(
        runs, "_status_of", lambda name, folder: seen.append(name) or read(name, folder)
    )
    status = StudyStatus(mixed.workspace, "tiny")
    first, second = status.read(), status.read()
    assert first == second
    assert seen.count(mixed.id("fp", 0)) == 1
    assert len(seen) == 1 + 2 * 4  # the waiting ones have no folder


def test_done_run_whose_folder_was_removed_waits_again(study):
    study.done(study.id("fp"))
    watch = StudyStatus(study.workspace, "tiny")
    assert watch.read()[study.id("fp")].state == "done"
    path = study.folder(study.id("fp")).path
    path.rename(path.with_name("away"))
    assert watch.read()[study.id("fp")].state == "waiting"


def test_stage_that_cells_share_is_counted_in_the_row_that_ends_with_it(checkout):
    path = checkout / "config/studies/tiny.yaml"
    methods = "methods: [statsq+qkr+cga, lsq, statsq+qkr]"
    path.write_text(path.read_text().replace("methods: [lsq, statsq+qkr+cga]", methods))
    watch = StudyStatus(Workspace(checkout), "tiny")
    stages = {row.cell.method: {run.config.stage for run in row.runs} for row in watch.rows}
    assert stages == {
        "fp": {"fp"},
        "lsq": {"qat"},
        "statsq+qkr": {"qat"},
        "statsq+qkr+cga": {"cga"},
    }
    assert sum(len(row.runs) for row in watch.rows) == len(watch.runs)


# Time left


def statuses(study, **states):
    """Looks at the tiny study: all waiting but for the stages that are given."""
    given = {study.id(key[:-2], int(key[-1])): status for key, status in states.items()}
    return {name: RunStatus("waiting") for name in study.runs} | given


FP = RunStatus("done", seconds=20.0)  # 2 epochs
HALF = RunStatus("running", 50, 100, 0.1)  # 5 s left, 10 s in all, 2 epochs


def test_time_left_is_work_over_runs_at_once(study):
    done = RunStatus("done", seconds=10.0)
    found = statuses(
        study, fp_0=FP, fp_1=FP, lsq_0=HALF, lsq_1=HALF, qat_0=done, qat_1=done, cga_0=done
    )
    # both that run end after 5 s; then cga_1 takes 10 s: one was measured, so 20 % more or less
    assert time_left(study.runs, found) == Range(5 + 10 / 1.2, 5 + 10 * 1.2)


def test_time_left_is_no_less_than_the_longest_chain(study):
    done = RunStatus("done", seconds=20.0)
    found = statuses(study, fp_0=FP, fp_1=FP, lsq_0=HALF, lsq_1=HALF, qat_1=done, cga_1=done)
    # both that run end after 5 s; then qat_0 and cga_0 follow each other: 20 s by measurement
    assert time_left(study.runs, found) == Range(5 + 40 / 1.2, 5 + 40 * 1.2)


def test_nothing_is_said_of_time_that_is_not_known(study):
    known = statuses(study, fp_0=HALF, fp_1=HALF)
    assert time_left(study.runs, known) is None  # nothing is known of quantized runs
    done = RunStatus("done", seconds=10.0)
    still = statuses(study, fp_0=FP, fp_1=FP, lsq_0=done, qat_0=done, cga_0=done)
    assert time_left(study.runs, still) is None  # nothing runs


def test_failed_runs_and_those_that_wait_for_them_count_for_nothing(study):
    done, failed = RunStatus("done", seconds=10.0), RunStatus("failed")
    found = statuses(study, fp_0=FP, fp_1=failed, lsq_0=HALF, qat_0=done, cga_0=done)
    held = {study.id("lsq", 1), study.id("qat", 1), study.id("cga", 1)}
    assert waiting_for(study.runs, found) == {study.id("fp", 1): held}
    assert time_left(study.runs, found) == Range(5.0, 5.0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (183784, "51:03:04")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0.0421, "0.042"), (0.5, "0.50"), (7.54, "7.5"), (120.4, "120")]
)
def test_rate(number, text):
    assert significant(number) == text


# In a terminal


def drawn(study, width, height, *, fit=True, names=("tiny",)):
    console = Console(
        file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None
    )
    page = Page([StudyStatus(study.workspace, name) for name in names], console)
    console.print(page.draw(fit=fit))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_table_says_what_matters_in_80_columns(mixed):
    lines = drawn(mixed, 80, 24)
    assert lines[0] == "tiny  8 runs: 1 done, 1 running, 2 interrupted, 1 failed, 3 waiting"
    text = "\n".join(lines)
    assert re.search(r"^FP +Full precision +1/2 +25 +2\.0 +0:06:15 +1 running$", text, re.M)
    assert re.search(r"^W2A2 +LSQ +0/2 +1 failed, 1 interrupted$", text, re.M)
    assert re.search(r"^W2A2 +OFQ +0/4 +1 interrupted$", text, re.M)
    assert f"failed {mixed.id('lsq', 0)}" in text
    assert "snakemake --cores 2 tiny" in text


def test_numbers_of_running_runs_take_no_room_when_none_runs(study):
    assert "steps/s" not in "\n".join(drawn(study, 80, 24))


def test_failure_says_how_many_wait_for_it(study):
    study.ends(study.id("fp", 1), "failed", cause="nan")
    assert f"failed {study.id('fp', 1)}  3 runs wait for it" in drawn(study, 80, 24)


@pytest.fixture
def tall(checkout):
    """A study of 2 models, 30 rows, with two failures and one interrupted run."""
    small = checkout / "config/recipes/small.yaml"
    small.write_text(
        small.read_text().replace("models: [micro_deit_patch2_8]", "models: [one, two]")
    )
    tiny = checkout / "config/studies/tiny.yaml"
    text = tiny.read_text().replace("models: [micro_deit_patch2_8]", "models: [one, two]")
    bits = ", ".join(f"W{w}A{a}" for w in (2, 3, 4) for a in (2, 3, 4, 5, 6))
    tiny.write_text(text.replace("bits: [W2A2]", f"bits: [{bits}]"))
    study = Study(checkout)
    names = list(study.runs)
    for name in names:
        if "/one/fp" in name or "w2a2-lsq" in name:
            study.done(name)
    study.ends(next(n for n in names if "/two/w4a6-lsq-s0" in n), "failed", cause="nan")
    study.ends(next(n for n in names if "/one/w4a6-lsq-s1" in n), "failed", cause="nan " * 40)
    study.ends(next(n for n in names if "/two/w3a3-lsq-s1" in n), "interrupted", cause="SIGTERM")
    return study


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("height", [20, 24, 40, 60])
def test_page_is_never_larger_than_the_terminal(tall, width, height):
    lines = drawn(tall, width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width


def test_what_wants_attention_comes_first_where_lines_are_scarce(tall):
    text = "\n".join(drawn(tall, 80, 20))
    assert len(re.findall(r"^W4A6 +LSQ .* 1 failed$", text, re.M)) == 2
    assert re.search(r"^W3A3 +LSQ .* 1 interrupted$", text, re.M)
    rows = [line for line in text.splitlines() if re.match(r"(FP|W\dA\d) ", line)]
    (rest,) = re.findall(r"… and (\d+) more cells, 3 of them done", text)
    assert len(rows) + int(rest) == 62
    assert "… and 1 more failed" in text


def test_whole_table_is_printed_once(tall):
    text = "\n".join(drawn(tall, 80, 20, fit=False))
    assert len(re.findall(r"^(FP|W\dA\d) ", text, re.M)) == 62
    assert "more" not in text
    assert text.replace("\n", " ").count("nan nan nan") >= 10  # an error isn't cut off
    models = re.findall(r"^(one|two)$", text, re.M)
    assert models == ["one", "two"]


def test_names_of_methods_differ_even_when_cut(study):
    path = study.root / "config/methods/known.yaml"
    long = "StatsQ + QKR + CGA, a form of it that is {}"
    text = path.read_text().replace("label: LSQ", f"label: {long.format('right')!r}")
    path.write_text(text.replace("label: OFQ", f"label: {long.format('wrong')!r}"))
    text = "\n".join(drawn(Study(study.root), 60, 24))
    assert re.search(r"StatsQ.*….*right", text)
    assert re.search(r"StatsQ.*….*wrong", text)


def test_lines_are_shared_by_need():
    assert shares([5, 30, 10], 60) == [5, 30, 10]
    assert shares([5, 30, 30], 25) == [5, 10, 10]
    assert shares([30, 5], 20) == [15, 5]


def test_order_of_rows_stays(tall):
    watch = StudyStatus(tall.workspace, "tiny")
    rows = fitting(watch.rows, watch.read(), 12)
    places = [watch.rows.index(row) for row in rows]
    assert places == sorted(places)


def terminal(checkout, *arguments):
    """A command in a terminal of 80 x 24: its process, and what to read it from."""
    return start_in_terminal(*arguments, cwd=checkout, columns=80, lines=24)


def test_live_table_ends_when_all_is_done(study, hold):
    for name in study.runs:
        if name != study.id("cga", 1):
            study.done(name)
    owner = hold(study.folder(study.id("cga", 1)).path)
    process, main = terminal(study.root, "status", "tiny")
    read_terminal(main, b"1 running")
    study.done(study.id("cga", 1))
    owner.kill()
    last = read_terminal(main).rpartition("\x1b[?1049l")[2]  # after the live screen
    assert process.wait(timeout=60) == 0
    assert "8 done" in last
    assert "running" not in last


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_live_table_ends_when_asked_to_and_leaves_its_last_state(study, number):
    process, main = terminal(study.root, "status", "tiny")
    read_terminal(main, b"8 waiting")
    process.send_signal(number)
    last = read_terminal(main).rpartition("\x1b[?1049l")[2]
    assert process.wait(timeout=60) == 0
    assert "8 waiting" in last
    assert "Traceback" not in last


def test_once_in_a_terminal_prints_and_leaves(study):
    process, main = terminal(study.root, "status", "--once")
    shown = read_terminal(main)
    assert process.wait(timeout=60) == 0
    assert "8 waiting" in shown
    assert "\x1b[?1049h" not in shown


# Runs, by id


def test_runs_in_a_state_are_one_id_per_line(mixed):
    assert ofq(mixed.root, "runs", "tiny", "--state", "failed").stdout == f"{mixed.id('lsq', 0)}\n"
    interrupted = ofq(mixed.root, "runs", "tiny", "--state", "interrupted").stdout.split()
    assert interrupted == [mixed.id("lsq", 1), mixed.id("qat", 0)]
    lines = ofq(mixed.root, "runs", "tiny").stdout.splitlines()
    states = dict(line.split("\t") for line in lines)
    assert list(states) == list(mixed.runs)
    assert [name for name, state in states.items() if state == "interrupted"] == interrupted


def test_no_runs_in_a_state_are_no_lines(study):
    done = ofq(study.root, "runs", "tiny", "--state", "done")
    assert (done.returncode, done.stdout) == (0, "")


def test_runs_have_their_state_in_a_terminal(mixed):
    process, main = terminal(mixed.root, "runs", "tiny")
    shown = re.sub(r"\x1b\[[\d;]*m", "", read_terminal(main))
    assert process.wait(timeout=60) == 0
    assert re.search(rf"{mixed.id('lsq', 0)} +failed", shown)
    assert re.search(rf"{mixed.id('fp', 1)} +running", shown)


@pytest.mark.parametrize(
    "arguments", [("status", "tinny"), ("runs", "tinny"), ("runs", "tiny", "--state", "lost")]
)
def test_unknown_names_are_refused(checkout, arguments):
    done = ofq(checkout, *arguments)
    assert done.returncode == 2
    assert "tiny" in done.stderr or "waiting" in done.stderr
    assert "Traceback" not in done.stderr


def test_looking_needs_no_torch():
    code = (
        "import sys, ofq.monitor.status.table, ofq.monitor.status.lines, ofq.monitor.doctor\n"
        "print({'torch', 'timm', 'mlflow', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n"
