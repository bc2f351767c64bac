"""Passwords stay out of config files, logs and what is printed."""

import subprocess

import pytest

from ofq.config import Workspace
from ofq.errors import UserError
from ofq.redact import holds_secrets, redact, redact_uri, refuse_credentials
from ofq.runs.folder import RunFolder
from ofq.runs.provenance import gather

from tests.support.tracking_commands import ofq

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


@pytest.mark.parametrize(
    "text",
    [
        "password: {}",
        '+  db_password: "{}"',
        "-password: {} and {}",
        '{{"password": "{}", "x": 1}}',
        r"{{\"password\": \"{}\"}}",
        "{{user: me, api_key: {}}}",
        "export AWS_SECRET_ACCESS_KEY={}",
        "aws_secret_access_key = {}",
        "HF_TOKEN={}",
        "run with DB_PASS={} now",
        "https://host/x?a=1&api_key={}&b=2",
        "https://host/x?sig={}",
        "X-Api-Key: {}",
        "Authorization: Bearer {}",
        '"Authorization": "Basic {}"',
        "curl -H 'Authorization: Bearer {}' http://host",
        "curl -u me:{} http://host",
        "sent Bearer {}",
        "tool --api-key {} --epochs 3",
        "tool --password={}",
        'os.environ["DB_PASSWORD"] = "{}"',
        'os.environ.setdefault("DB_PASSWORD", "{}")',
        'def connect(user, password: str = "{}"):',
        'connect(token="{}", user=me)',
        "<password>{}</password>",
        "machine host login me password {}",
        "Server=x;Uid=y;Pwd={};Database=z",
        "clientSecret: {}",
        "redis://:{}@host",
        "git+https://{}@github.com/x",
        "password: |\n  {}\n  {}\nx: 1",
        "+password: >-\n+  {}\n+x: 1",
        "+secrets:\n+  a: {}\n+x: 1",
        'password = """{}\n{}"""',
        "-----BEGIN RSA PRIVATE KEY-----\n+{}\n+-----END RSA PRIVATE KEY-----",
        "-----BEGIN OPENSSH PRIVATE KEY-----\n{}",
        "+- name: DB_PASSWORD\n+  value: {}",
        '{{"name": "DB_PASSWORD", "value": "{}"}}',
        '<add key="ApiKey" value="{}"/>',
        "+password = (\n+    '{}'\n+    '{}'\n+)",
        "+password = \\\n+    '{}'",
        '+password = os.getenv("PASSWORD", "{}")',
        "+auth = ('me', '{}')",
        "HTTPBasicAuth('me', '{}')",
        "mysql -u me -p{} db",
        "sshpass -p {} ssh host",
        "docker login -u me -p {}",
        "curl -ume:{} http://host",
        "wandb login {}",
        "wandb.login(key='{}')",
        "npm config set _authToken {}",
        "+requirepass {}",
        "+bindpw {}",
        "+COMET_API_KEY {}",
        "ALTER USER me WITH PASSWORD '{}'",
        "CREATE USER me IDENTIFIED BY '{}'",
        "# password {}",
        "# the password is {}",
        "FERNET_KEY={}",
        "twilio_auth={}",
        "sessionid={}",
        "Kennwort: {}",
        "https://host/x?X-Amz-Signature={}&b=2",
    ],
)
def test_what_is_given_to_a_secret_s_name_is_redacted(text):
    shown = redact(text.format(*["hunter2XYZ9"] * 2))
    assert "hunter2XYZ9" not in shown
    assert "***" in shown


@pytest.mark.parametrize(
    "token",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_" + "a1" * 18,
        "github_pat_" + "A1" * 20,
        "glpat-" + "x" * 20,
        "hf_" + "aB" * 17,
        "xoxb-1234567890-abcdef",
        "sk-proj-" + "a1" * 20,
        "AIza" + "b" * 35,
        "pypi-AgEI" + "x" * 30,
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIx.abc",
        "nvapi-" + "a1B" * 10,
        "gsk_" + "a1B" * 12,
        "shpat_" + "a1" * 16,
        "tskey-auth-" + "a1B" * 6,
        "wandb_v1_" + "a1B" * 10,
    ],
)
@pytest.mark.parametrize("text", ["{}", "+x: '{}'", "failed at http://host/{}: gone", "a={}"])
def test_tokens_of_known_forms_are_redacted_wherever_they_stand(token, text):
    assert token not in redact(text.format(token))


@pytest.mark.parametrize(
    "line",
    [
        "+    def login(self, password: str) -> None:",
        "-    tokens = tokenizer.encode(text)",
        "+  num_tokens: 196",
        "+    self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))",
        " class_token: bool = True",
        "+  passes: 3",
        "+    if token is None:",
        "+        pass",
        '+    password = os.environ["X"]',
        "+    token = next(stream)",
        "+    keys = sorted(data)",
        "+  key: value",
        "index 0123abc..4567def 100644",
        "+  sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "password: null",
        "ssh://git@host/x and git@github.com:org/repo.git",
        "OLDPWD=/home/me",
        "+    primary_key = columns[0]",
        "+def session(identity):",
        "+docker run --publish 8080:80 -p 80 image",
        "+  name: test",
        "+    author = 'me', 'you'",
        "+    token = get(stream)",
    ],
)
def test_ordinary_lines_of_a_diff_are_kept(line):
    assert redact(line) == line


def test_redacting_a_megabyte_takes_seconds_at_most():
    import time

    began = time.process_time()
    for text in ("token=" * 160_000, "://" * 300_000, "password \n" * 100_000, "a" * 1_000_000):
        redact(text)
    assert time.process_time() - began < 20


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://me:my pass@db/x",
        "http://me:p'a<b>@host",
        'mysql+pymysql://me:p"q@host/x',
        "https://to ken@host",
        "postgresql://me:a@b:c@d@host/x",
    ],
)
def test_password_of_any_characters_is_refused_and_never_shown(uri):
    with pytest.raises(UserError, match="holds credentials") as caught:
        refuse_credentials(uri, "--uri")
    userinfo = uri.partition("://")[2].rpartition("@")[0]
    assert userinfo not in str(caught.value) + redact_uri(uri)


@pytest.mark.parametrize(
    ("path", "held"),
    [
        ("config/.env", True),
        (".env.local", True),
        ("ofq/id_ed25519", True),
        ("config/credentials.json", True),
        ("config/.aws/config", True),
        ("ofq/credentials.py", False),
        ("config/studies/environment.yaml", False),
        ("id_rsa.pub", False),
    ],
)
def test_files_that_hold_secrets_are_known_by_their_names(path, held):
    assert holds_secrets(path) == held


def test_secrets_in_errors_are_not_recorded(tmp_path):
    folder = RunFolder(tmp_path)
    folder.event("failed", cause="https://me:hunter2@host gave 403; HF_TOKEN=hf_abcdef123")
    (event,) = folder.events()
    assert "hunter2" not in event["cause"]
    assert "hf_abcdef123" not in event["cause"]


def test_name_of_a_view_in_mlflow_is_no_secret():
    link = "http://127.0.0.1:5000/#/experiments/1/runs?viewStateShareKey=compare"
    assert redact(f"{link}&key=abc") == f"{link}&key=***"
