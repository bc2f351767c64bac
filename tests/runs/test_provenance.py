"""Whatever git does or doesn't, an attempt has its provenance."""

import json
import os
import subprocess
import sys
import time

import pytest

from ofq.config import Workspace
from ofq.runs import provenance
from ofq.runs.provenance import gather

from tests.support.own_process import run_ofq


def git(root, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", root, *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(checkout):
    (checkout / "config/.env").write_text("A=1\n")
    (checkout / "config/notes.txt").write_text("one\n")
    git(checkout, "init", "--quiet")
    git(checkout, "add", "--force", ".")
    git(checkout, "commit", "--quiet", "--message", "all")
    return checkout


@pytest.fixture
def false_git(tmp_path, monkeypatch):
    """Puts a script in git's place."""

    def place(script):
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "git").write_text(f"#!{sys.executable}\n{script}\n")
        (folder / "git").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return place


def test_commit_and_changes_are_recorded(repository):
    (repository / "config/notes.txt").write_text("two\n")
    (repository / "config/new.txt").write_text("new\n")
    facts = gather(repository)
    assert len(facts["commit"]) == 40
    assert facts["git_reason"] is None
    assert "+two" in facts["diff"]
    assert facts["untracked"] == ["config/new.txt"]
    assert facts["withheld"] == []


@pytest.mark.parametrize(
    "content", [b"caf\xe9\n", b"\0\1\2" * 9, b"\xff\xfe", b"\xed\xa0\x80", b"\x1b[2J\r\n"]
)
def test_bytes_of_a_changed_file_end_no_run(repository, content):
    (repository / "config/notes.txt").write_bytes(content)
    facts = gather(repository)
    assert "notes.txt" in facts["diff"]
    json.dumps(facts).encode()
    if content.startswith(b"caf"):
        assert "+caf\\xe9" in facts["diff"]


def test_name_of_a_changed_file_ends_no_run(repository):
    with open(os.fsencode(repository / "config") + b"/caf\xe9.txt", "wb") as file:
        file.write(b"x")
    assert gather(repository)["untracked"] == ["config/caf\\udce9.txt"]


@pytest.mark.parametrize(
    "name", [".env", "server.pem", "id_rsa", ".netrc", ".pypirc", "secrets.yaml"]
)
def test_files_that_hold_secrets_are_named_and_left_out_of_the_diff(repository, name):
    path = repository / "config" / name
    path.write_text("plain\n")
    git(repository, "add", "--force", ".")
    git(repository, "commit", "--quiet", "--allow-empty", "--message", "secret")
    path.write_text("hunter2\n")
    (repository / "config/notes.txt").write_text("two\n")
    facts = gather(repository)
    assert facts["withheld"] == [f"config/{name}"]
    assert "+two" in facts["diff"]
    assert "hunter2" not in json.dumps(facts)


def test_large_diff_is_cut(repository):
    (repository / "config/notes.txt").write_text("line\n" * 1_000_000)
    facts = gather(repository)
    assert len(facts["diff"]) < 1_100_000
    assert facts["diff"].endswith("[cut after 1,000,000 bytes]")


def test_settings_of_git_change_no_diff(repository):
    for key, value in (
        ("color.ui", "always"),
        ("diff.noprefix", "true"),
        ("diff.external", "false"),
    ):
        git(repository, "config", key, value)
    (repository / "config/notes.txt").write_text("two\n")
    assert "\n-one\n+two" in gather(repository)["diff"]
    assert "\x1b" not in gather(repository)["diff"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import sys; sys.exit('fatal: detected dubious ownership in repository')", "dubious"),
        ("import sys; sys.exit(3)", "exit code 3"),
        ("print('hello')", "'hello', which is no commit"),
        ("import os; os.write(1, b'\\xff\\0' * 9)", "no commit"),
        ("while True: print('x' * 9999)", "no commit"),
        ("import time; time.sleep(60)", "hasn't answered"),
        ("import os, time; os.fork() or time.sleep(60); print('x', flush=True)", "no commit"),
    ],
)  # fmt: skip
def test_git_that_gives_no_commit_is_quoted(checkout, false_git, monkeypatch, script, reason):
    monkeypatch.setattr(provenance, "_PATIENCE", 2.0)
    false_git(script)
    began = time.monotonic()
    facts = gather(checkout)
    assert time.monotonic() - began < 15
    assert facts["commit"] is facts["diff"] is None
    assert reason in facts["git_reason"]
    assert facts["git_reason"].isprintable()


def test_without_git_the_reason_says_so(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert gather(checkout)["git_reason"] == "git can't be run: No such file or directory"


def test_folder_without_a_checkout_is_said_on_record(checkout):
    assert "not a git repository" in gather(checkout)["git_reason"]


def test_editors_lock_beside_the_source_ends_no_run(checkout, tmp_path, monkeypatch):
    package = tmp_path / "package"
    package.mkdir()
    (package / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(provenance, "_PACKAGE", package)
    before = provenance.code_sha256()
    (package / ".#a.py").symlink_to("me@host.1:2")
    (package / "folder.py").mkdir()
    assert provenance.code_sha256() == before


def test_training_says_in_a_line_why_the_commit_is_unknown(checkout, false_git):
    false_git("import sys; sys.exit(\"fatal: detected dubious ownership in repository at '/x'\")")
    run = next(iter(Workspace(checkout).grid("tiny").runs()))
    done = run_ofq(checkout, "train", run, "--no-track")
    assert done.returncode == 0, done.stderr
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "dubious" in line]
    assert len(lines) == 1
    (attempt,) = json.loads((checkout / "results/runs" / run / "provenance.json").read_text())[
        "attempts"
    ]
    assert attempt["commit"] is None
    assert "dubious ownership" in attempt["git_reason"]


def test_credentials_on_the_command_line_are_not_recorded(checkout, monkeypatch):
    words = ["/bin/ofq", "track", "--password", "two words", "--epochs", "3", "token=abcdefgh1"]
    monkeypatch.setattr(sys, "argv", words)
    assert gather(checkout)["command"] == "ofq track --password '***' --epochs 3 'token=***'"
