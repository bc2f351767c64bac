"""Passwords stay out of config files, logs and what is printed."""

import subprocess

import pytest
from commands import ofq

from ofq.credentials import redact, refuse_credentials
from ofq.study import Workspace
from ofq.tracking.provenance import gather

SECRET = "s3cr:et/p@ss"


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("at postgresql://ofq:pa/ss@db:5432/mlflow:", "at postgresql://***@db:5432/mlflow:"),
        ("https://me:p@ss@host/x, again", "https://***@host/x, again"),
        ("https://token@host", "https://***@host"),
        ("postgresql://db/mlflow?user=a&password=b&x=1", "postgresql://db/mlflow?user=a&password=***&x=1"),
        ("postgresql://ofq@db:5432/mlflow", "postgresql://ofq@db:5432/mlflow"),
        ("http://host:5000 and mail a@b.org", "http://host:5000 and mail a@b.org"),
        ("sqlite:////data/a@b/mlflow.db", "sqlite:////data/a@b/mlflow.db"),
    ],
)  # fmt: skip
def test_credentials_of_uris_are_redacted(text, redacted):
    assert redact(text) == redacted


def test_secrets_of_the_environment_are_redacted_wherever_they_stand(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://ofq:a%40b@db/mlflow")
    assert redact("login with hunter2, 'a%40b' or 'a@b'") == "login with ***, '***' or '***'"


def test_password_taken_out_of_a_committed_config_is_not_in_the_recorded_diff(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True)

    config = tmp_path / "config/config.yaml"
    config.parent.mkdir()
    config.write_text("tracking_uri: postgresql://ofq:hunter2@db/mlflow\n")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "a password")
    config.write_text("tracking_uri: postgresql://db/mlflow\n")
    diff = gather(tmp_path)["diff"]
    assert "+tracking_uri: postgresql://db/mlflow" in diff
    assert "hunter2" not in diff


@pytest.mark.parametrize("uri", ["postgresql://ofq@db/mlflow", "http://host:5000", "sqlite:///a"])
def test_uri_without_a_password_is_accepted(uri):
    refuse_credentials(uri, "--uri")


def test_password_in_the_config_is_refused_without_being_shown(checkout):
    run = next(iter(Workspace(checkout).grid("tiny").runs()))
    site = checkout / "config/config.yaml"
    site.write_text(site.read_text() + f"tracking_uri: http://me:{SECRET}@127.0.0.1:9\n")
    for command in (
        ["train", run],
        ["runs", "tiny"],
        ["track", "uri"],
        ["track", "sync"],
        ["track", "ui"],
    ):
        done = ofq(checkout, *command)
        assert done.returncode == 2
        assert "config.yaml: key 'tracking_uri' holds credentials" in done.stderr
        for name in ("USERNAME", "PASSWORD", "URI"):
            assert f"MLFLOW_TRACKING_{name}" in done.stderr
        assert SECRET not in done.stdout + done.stderr


def test_password_on_the_command_line_is_refused(checkout):
    done = ofq(checkout, "track", "sync", "--uri", f"http://me:{SECRET}@127.0.0.1:9")
    assert done.returncode == 2
    assert "--uri holds credentials" in done.stderr
    assert SECRET not in done.stderr


def test_uri_of_the_environment_is_used_and_its_password_not_printed(checkout):
    shown = ofq(checkout, "track", "uri", MLFLOW_TRACKING_URI=f"postgresql://me:{SECRET}@db/x")
    assert shown.stdout == "postgresql://***@db/x\n"
    site = checkout / "config/config.yaml"
    site.write_text(site.read_text() + "tracking_uri: http://host:5000\n")
    shown = ofq(checkout, "track", "uri", MLFLOW_TRACKING_URI=f"postgresql://me:{SECRET}@db/x")
    assert shown.stdout == "http://host:5000\n"
