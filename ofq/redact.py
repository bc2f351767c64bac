"""Redaction of credentials in output and records, and checks that refuse them in files."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import PurePosixPath
from typing import Any, TextIO, cast
from urllib.parse import unquote

from ofq.errors import UserError

_HIDDEN = "***"
_SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD")
_URI = "MLFLOW_TRACKING_URI"
_LONGEST = 2000  # characters; a longer line that may hold a secret is redacted as a whole
_LEAST = 4  # characters; a shorter secret is replaced only as a word of its own

_STRONG = (
    r"pass(?:word|wd|phrase|code)|secret|credential|authorization|cookie|"
    r"(?:api|access|private|account|signing|encryption|master|auth|shared)[-_. ]?key|"
    r"passwort|kennwort|wachtwoord|contrase(?:ñ|n)a|mot[-_ ]?de[-_ ]?passe|пароль|密码|"
    r"(?<![a-z])jwt(?![a-z])|session[-_]?id(?![a-z])|(?-i:(?<=[A-Z0-9]_)KEY(?![A-Za-z]))"
)
_WEAK = (
    r"(?<![a-z])(?:pass|pwd|pswd|psw|pw)(?![a-z])|token(?![a-z])|(?<=[-_])(?:auth|salt)(?![a-z])"
)
_WORD = rf"(?:{_STRONG}|{_WEAK})[\w.-]{{0,40}}"
_VARIABLE = re.compile(
    r"(?:PASS|PASSWORD|PASSWD|PASSPHRASE|SECRET|TOKEN|(?:API|ACCESS|SECRET|PRIVATE)_?KEY)$", re.I
)


class _Pattern:
    """Pattern that is compiled when it is first used.

    To compile all of them takes 50 ms, which would be a tenth of each command's start.
    """

    def __init__(self, pattern: str, flags: int = 0) -> None:
        self._pattern, self._flags = pattern, flags

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._compiled = re.compile(self._pattern, self._flags)
        for method in ("sub", "search", "match", "fullmatch"):
            setattr(self, method, getattr(self._compiled, method))
        return getattr(self._compiled, name)


_USERINFO = _Pattern(r"(?P<scheme>\w*)://(?P<user>[^\s'\"<>]*)@")
_PARAMETER = _Pattern(
    r"(?<=[?&;])(?!viewStateShareKey=)"  # MLflow's name of a view
    r"([\w.-]*(?:password|passwd|pwd|token|secret|key|signature|credential|auth)|sig)"
    r"=(?!\*)[^&\s'\"<>]+",
    re.I,
)
_SHAPES = _Pattern(
    r"\b(?:A[KS]IA|A(?:GPA|IDA|ROA|NPA|NVA|BIA|CCA))[A-Z0-9]{16}\b"  # AWS
    r"|\bgh[pousr]_\w{16,}|\bgithub_pat_\w{16,}|\bgl(?:pat|dt|rt|ft|cbt|ptt|imt|agent|soat)-[\w-]{16,}"
    r"|\bhf_[A-Za-z0-9]{16,}|\bapi_org_[A-Za-z0-9]{16,}"
    r"|\bsk-[\w-]{16,}|\b[srp]k_(?:live|test)_\w{8,}"
    r"|\bxox[a-z](?:\.[a-z]+)?-[\w-]{8,}|\bxapp-[\w-]{8,}|hooks\.slack\.com/[\w/-]+"
    r"|\bAIza[\w-]{30,}|\bya29\.[\w-]{16,}|\bGOCSPX-[\w-]{16,}"
    r"|\beyJ[\w-]{8,}\.[\w-]{4,}(?:\.[\w-]*)?"  # a JSON web token
    r"|\bpypi-[\w-]{16,}|\bnpm_\w{16,}|\bdckr_(?:pat|oat)_[\w-]{16,}|\bdo[opr]_v1_\w{16,}"
    r"|\bSG\.[\w-]{16,}\.[\w-]{16,}|\bdapi[0-9a-f]{32}|\bhv[sbr]\.[\w-]{16,}|\br8_\w{30,}"
    r"|\bnvapi-[\w-]{16,}|\bgsk_\w{16,}|\bpplx-\w{16,}|\blsv2_\w{16,}|\brpa_\w{16,}|\bwandb_v1_\w{16,}"
    r"|\bshp(?:at|ca|pa|ss)_\w{16,}|\bsq0[a-z]{3}-[\w-]{16,}|\bkey-[0-9A-Za-z]{32,}|\btskey-[\w-]{8,}"
    r"|\b\w*\.?atlasv1\.[\w-]{16,}|\brubygems_\w{16,}|\bPMAK-[\w-]{16,}|\bxkeysib-[\w-]{16,}"
    r"|\bEAA[A-Za-z0-9]{20,}|/api/webhooks/\d+/[\w-]{16,}"
    r"|\bglsa_\w{16,}|\blin_api_\w{16,}|\bAGE-SECRET-KEY-\w+|\b\d{8,10}:AA[\w-]{30,}"
)
_KAGGLE = _Pattern(r"(\\*[\"']key\\*[\"']\s*:\s*\\*[\"'])[0-9a-f]{32}(?![0-9a-f])")
_PRIVATE_KEY = _Pattern(
    r"(-----BEGIN [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----).*?"
    r"(?:(-----END [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----)|\Z)",
    re.S,
)
_BLOB = _Pattern(r"([+\- ]?\s*)(?=\S*[A-Z])(?=\S*[a-z])[A-Za-z0-9+/]{60,}={0,2}\s*")
_BLOB_LENGTH = 60
_SCHEME = _Pattern(r"\b(bearer|negotiate)([ \t]+|%20)(?!\*)[\w.~+/=-]{6,}", re.I)
_LOGIN = _Pattern(
    rf"(\blogin\s+\S+\s+password\s+|(?:{_WORD})[ \t]+is[ \t]+(?=\S*[^\W\d]\d|\d+[^\W\d])"
    rf"|^[+\- ]?[ \t]*(?:[#;]+[ \t]*)?(?:[\w.-]*?(?:{_WORD})|requirepass|masterauth|\w*pw|\w*pass)"
    r"[ \t]+(?:is[ \t]+)?(?=\S+[ \t]*$))(?![:=*|{(\[])\S+",
    re.M | re.I,
)
_LOGGED_IN = _Pattern(
    r"(\blogin[ \t]+(?:-\S+[ \t]+)*|\blogin\((?:\w+[ \t]*=[ \t]*)?['\"])(?=\w*\d)[\w-]{8,}", re.I
)
_SHORT = _Pattern(
    r"(\b(?:mysql\w*|mariadb|sshpass|docker|podman|helm|az|htpasswd|mongo\w*|redis-cli)\b[^\n|;]*?"
    r"[ \t](?:-[pa][ \t]*|-P[ \t]+))(?![-*])(?=[^\s/]*[^\d\s:/])[^\s/:]{4,}"
)
_LOGIN_PAIR = _Pattern(
    r"(\bauth[ \t]*=[ \t]*\([ \t]*|\b\w*auth\([ \t]*)"
    r"([\"'])([^\"'\n]*)\2[ \t]*,[ \t]*[rbfu]?([\"'])[^\"'\n]+\4",
    re.I,
)
_SQL = _Pattern(
    rf"(\b(?:identified[ \t]+(?:\w+[ \t]+\w+[ \t]+)?by|{_WORD})[ \t]+['\"])[^'\"\n]+(?=['\"])", re.I
)
_NAMED = _Pattern(
    rf"(\b(?:name|key|var|variable)[\"']?[ \t]*[:=][ \t]*[\"']?[\w.-]*?(?:{_WORD})[\"']?[ \t,;]*"
    r"[{\"']?[ \t]*\bvalue[\"']?[ \t]*[:=][ \t]*)(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s,}]+)",
    re.I,
)
_NAME = _Pattern(
    rf"[+\- ]?[ \t]*(?:- )?[\"']?(?:name|key|var|variable)[\"']?[ \t]*[:=][ \t]*[\"']?[\w.-]*?"
    rf"(?:{_WORD})[\"']?,?[ \t]*$",
    re.I,
)
_VALUE = _Pattern(r"([+\- ]?[ \t]*[\"']?value[\"']?[ \t]*[:=][ \t]*)(?!\*).+", re.I)
_CONTINUED = _Pattern(rf".*(?:{_WORD})[\"']?\]?[ \t]*[:=]?=?[ \t]*[({{\[\\]?[ \t]*$", re.I)
_STRING = _Pattern(r"[+\- ]?[ \t]*=?[ \t]*[rbfu]{0,2}[\"']", re.I)
_LITERAL = _Pattern(r"([rbfu]{0,2}([\"']))(?:(?!\2)(?:\\.|[^\\\n]))+(?=\2)")
_FALLBACK = _Pattern(
    r"(,[ \t]*(?:\w+[ \t]*=[ \t]*)?|\bor[ \t]+)[rbfu]{0,2}(\"[^\"\n]+\"|'[^'\n]+')"
)
_USER = _Pattern(r"((?:^|\s)(?:-u|--user|--proxy-user)[ =]*['\"]?[^\s:'\"]+:)[^\s'\"]+", re.M)
_OPTION = _Pattern(
    r"((?:--|\b(?:ENV|setx|setenv|set[ \t]+-\w+|config[ \t]+set)[ \t]+)"
    rf"[\w-]{{0,40}}?(?:{_STRONG}|token)[\w-]*[ \t]+)(?![-*])"
    r"(?:\"[^\"\n]*\"|'[^'\n]*'|\S+)",
    re.I,
)
_ELEMENT = _Pattern(rf"(<[\w:]*?({_WORD})>)(?!\*)[^<]+", re.I)
_QUOTED = r"(?P<quote>\\*(?:\"\"\"|'''|[\"'`]))(?P<inner>(?:(?!(?P=quote))(?:\\.|[^\\\n]))*)"
_PAIR = _Pattern(
    rf"(?P<word>{_WORD})(?P<between>\\*[\"'`][ \t]*,[ \t]*)[rbfu]{{0,2}}{_QUOTED}"
    r"(?!\\*[\"'`][ \t]*:)",
    re.I,
)
_ASSIGNED = _Pattern(
    rf"(?P<word>{_WORD})(?P<between>\\*[\"'`]?[\])]*[ \t]*"
    r"(?::=|=>|%3D|(?::[ \t]*[\w.|\[\] ]{1,40})?=(?!=)|:)[ \t]*)"
    rf"(?:[rbfu]{{0,2}}{_QUOTED}|(?P<bare>[^\n]{{0,2000}}))",
    re.I,
)
_TRIPLE = _Pattern(
    rf"(?P<head>(?:{_WORD})[\"']?\]?[ \t]*[:=][ \t]*[rbfu]{{0,2}}(?P<quote>\"\"\"|'''))"
    r"(?:(?!(?P=quote)).){0,5000}",
    re.I | re.S,
)
_OPENED = _Pattern(
    rf"^(?P<indent>[+\- ]?[ \t]*(?:- )?)[\"']?[\w.-]*?(?:{_WORD})[\"']?[ \t]*:[ \t]*"
    r"(?:[|>][-+\d]*[ \t]*(?:#.*)?)?$",
    re.I,
)
_STARTS_LINE = _Pattern(r"[+\- ]?\s*(?:export\s+|set\s+|ENV\s+)?[\w.-]*$", re.I)
_CODE = _Pattern(
    r"(?:(?:str|bytes|bool|int|float|object|Any|None|null|true|false|SecretStr|Path)"
    r"|[A-Za-z_][\w.]*[(\[].*[)\]]|\[\])\s*(?:[,)\]=|:#}].*|->.*)?$",
    re.I,
)
_CALL = _Pattern(r"(?:os\.)?(?:getenv|environ\.get|\w*\.?get\w*)\(", re.I)
_NO_SECRET = _Pattern(r"(?:cls|class|dist|mask|pad|[eb]os|num|patch|reg|image|pool)[_-]?$", re.I)

_HINTS = (
    *("pass", "pw", "secret", "credential", "authorization", "cookie", "key", "token", "bearer"),
    *("negotiate", "://", "-u", "--user", "sig=", "ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
    *("github_pat_", "glpat-", "gldt-", "glrt-", "glft-", "glcbt-", "glptt-", "glimt-", "glagent-"),
    *(
        "glsoat-",
        "hf_",
        "api_org_",
        "sk-",
        "k_live_",
        "k_test_",
        "xox",
        "xapp-",
        "hooks.slack",
        "aiza",
    ),
    *(
        "ya29.",
        "gocspx-",
        "eyj",
        "pypi-",
        "npm_",
        "dckr_",
        "_v1_",
        "sg.",
        "dapi",
        "hvs.",
        "hvb.",
        "hvr.",
    ),
    *("r8_", "glsa_", "lin_api_", ":aa", "akia", "asia", "agpa", "aida", "aroa", "anpa", "anva"),
    *("abia", "acca", "auth", "signature", "login", "identified", "mysql", "mariadb", "docker"),
    *("podman", "helm", "mongo", "redis", "wort", "kennwort", "wachtwoord", "contrase", "пароль"),
    *("密码", "jwt", "session", "salt", "pswd", "psw", "nvapi-", "gsk_", "pplx-", "lsv2_", "rpa_"),
    *("wandb_v1_", "shp", "sq0", "atlasv1", "rubygems_", "pmak-", "xkeysib", "eaa", "webhooks"),
)
"""Substrings, in lower case, one of which any text that a pattern above matches contains."""

_SECRET_NAMES = _Pattern(
    r"(?:.*\.)?env(?:\..*|rc)?|.*\.(?:pem|key|p12|pfx|ppk|jks|keystore|kdbx|gpg|asc|tfvars|ovpn)"
    r"|id_(?:rsa|dsa|ecdsa|ed25519)(?!\.pub$).*|[._]?(?:netrc|pypirc|npmrc|htpasswd|pgpass|dockercfg)"
    r"|\.?my\.cnf|\.?git-credentials|kaggle\.json|kubeconfig.*|\.?s3cfg|\.boto"
    r"|.*(?:secret|credential|passw(?:or)?d|service[-_]account).*(?<!\.py)",
    re.I,
)
_SECRET_FOLDERS = {".aws", ".ssh", ".gnupg", ".kube", ".docker", "secrets"}


def holds_secrets(path: str) -> bool:
    """Return whether a file is meant to hold credentials, judging by its name.

    Args:
        path: A path with ``/`` between its parts.
    """
    *folders, name = PurePosixPath(path).parts or ("",)
    hidden = _SECRET_FOLDERS.intersection(folder.lower() for folder in folders)
    return bool(hidden) or _SECRET_NAMES.fullmatch(name) is not None


def refuse_credentials(uri: str, source: str) -> None:
    """Refuse a tracking URI that holds a password.

    Args:
        uri: The URI.
        source: Where the URI comes from, for the error.

    Raises:
        UserError: It holds one.
    """
    if redact_uri(uri) != uri:
        raise UserError(
            f"{source} holds credentials, which would end up in logs and backups; leave them out, "
            "and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for a tracking server, "
            "or MLFLOW_TRACKING_URI (with no 'tracking_uri' in config/config.yaml) for a database"
        )


def redact_uri(uri: str) -> str:
    """Return a URI without its credentials, whatever characters they have.

    Unlike :func:`redact`, which searches text for URIs, it takes its argument as one URI.
    """
    scheme, separator, rest = uri.partition("://")
    userinfo, at, place = rest.rpartition("@")
    secret = scheme.lower() in ("http", "https") or ":" in userinfo
    if separator and at and secret and not scheme.lower().startswith(("sqlite", "file")):
        uri = f"{scheme}://{_HIDDEN}@{place}"
    return _PARAMETER.sub(rf"\1={_HIDDEN}", uri)


def redact(text: str) -> str:
    """Return text without the credentials in it.

    These are secrets in environment variables; user names and passwords of URIs; private keys;
    tokens of known formats; and values assigned to a name such as ``password``, ``api_key`` or
    ``Authorization``, in YAML, JSON, code, shells, headers and query strings.
    """
    for secret in _secrets():
        if len(secret) < _LEAST:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", _HIDDEN, text)
        else:
            text = text.replace(secret, _HIDDEN)
    if "PRIVATE KEY" in text:
        text = _PRIVATE_KEY.sub(lambda m: f"{m[1]}{_HIDDEN}{m[2] or ''}", text)
    if _hints(text) and ('"""' in text or "'''" in text):
        text = _TRIPLE.sub(rf"\g<head>{_HIDDEN}", text)
    return "\n".join(_lines(text.split("\n")))


def redact_command(words: Sequence[str]) -> list[str]:
    """Return a command's words, each without the credentials in it."""
    redacted: list[str] = []
    option = re.compile(rf"--?[\w-]*?(?:{_WORD})", re.I)
    for before, word in zip(("", *words), words, strict=False):
        redacted.append(_HIDDEN if option.fullmatch(before) else redact(word))
    return redacted


@contextmanager
def redacted_output() -> Iterator[None]:
    """Redact standard output and error within this context.

    Messages of libraries are covered too, since these may contain whole URIs.
    """
    import sys

    out, err = _Redacted(sys.stdout), _Redacted(sys.stderr)
    with redirect_stdout(cast(TextIO, out)), redirect_stderr(cast(TextIO, err)):
        yield


class _Redacted:
    """Text stream that redacts what is written to it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(redact(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _hints(text: str) -> bool:
    """Return whether text may hold a secret: a cheap test before the patterns are tried."""
    lower = text.lower()
    return any(hint in lower for hint in _HINTS)


def _lines(lines: list[str]) -> Iterator[str]:
    """Yield lines without secrets that are assigned in them, or lie below a YAML key."""
    depth = -1  # of that key
    before = ""  # the line before, if it is one that a secret may follow
    for line in lines:
        if before and line.strip(" +-"):
            if _CONTINUED.match(before) and _STRING.match(line):
                yield _LITERAL.sub(rf"\1{_HIDDEN}", line)
                continue  # there may be several strings, one below the other
            if _NAME.match(before) and (value := _VALUE.match(line)):
                before = ""
                yield value[1] + _HIDDEN
                continue
            before = ""
        start = 1 if depth >= 0 and line[:1] in ("+", "-", " ") else 0
        indent = start + len(line[start:]) - len(line[start:].lstrip())
        if depth >= 0 and line.strip(" +-") and indent > depth:
            yield line[:indent] + _HIDDEN
            continue
        depth = -1
        if len(line) >= _BLOB_LENGTH and (blob := _BLOB.fullmatch(line)):
            yield blob[1] + _HIDDEN
        elif not _hints(line):
            yield line
        elif len(line) > _LONGEST:
            yield _HIDDEN
        else:
            before = line
            opened = _OPENED.match(line)
            depth = len(opened["indent"]) if opened else -1
            yield _line(line)


def _line(line: str) -> str:
    line = _PARAMETER.sub(rf"\1={_HIDDEN}", _USERINFO.sub(_without_user, line))
    line = _SHAPES.sub(_HIDDEN, line)
    for pattern in (_KAGGLE, _USER, _OPTION, _LOGIN, _ELEMENT, _NAMED, _SHORT, _LOGGED_IN, _SQL):
        line = pattern.sub(rf"\g<1>{_HIDDEN}", line)
    line = _LOGIN_PAIR.sub(rf"\1\2\3\2, \4{_HIDDEN}\4", line)
    line = _PAIR.sub(_without_value, line)
    return _SCHEME.sub(rf"\1\2{_HIDDEN}", _assigned(line))


def _without_user(match: re.Match[str]) -> str:
    # the pattern runs to the last @, since a password may contain one; a user name alone is a
    # secret only in HTTP, where it may be a token
    secret = match["scheme"].lower() in ("http", "https") or ":" in match["user"]
    return f"{match['scheme']}://{_HIDDEN}@" if secret else match[0]


def _assigned(text: str) -> str:
    """Return text without the values assigned to names of secrets."""
    parts, place = [], 0
    while match := _ASSIGNED.search(text, place):
        shown = _without_value(match)
        unchanged = shown == match[0]  # the rest of its line may hold another
        end = match.end("between") if unchanged else match.end()
        parts.append(text[place:end] if unchanged else text[place : match.start()] + shown)
        place = end
    return "".join([*parts, text[place:]])


def _without_value(match: re.Match[str]) -> str:
    """Return an assignment to the name of a secret, without the value."""
    word, quote = match["word"], match["quote"]
    head = match[0][: match.end("between") - match.start()]
    start = match.string.rfind("\n", 0, match.start()) + 1
    before = match.string[start : match.start()]
    weak = re.match(r"token|pass(?![a-z])|pwd|pw", word, re.I) is not None
    if (weak and _NO_SECRET.search(before)) or word == "PWD":
        return match[0]
    if quote is not None:
        inner, listed = match["inner"], "," in match["between"]
        if not inner.strip(" *") or (listed and re.search(_STRONG, inner, re.I)):
            return match[0]
        return head + match[0][len(head) : match.start("inner") - match.start()] + _HIDDEN
    bare = match["bare"]
    if _is_no_literal(word, bare, before, weak):
        return head + _FALLBACK.sub(rf"\1'{_HIDDEN}'", bare) if _CALL.match(bare) else match[0]
    whole = head[-1].isspace() or _STARTS_LINE.match(before) is not None
    end = len(bare) if whole else re.match(r"[^\s\"'<>]*", bare).end()  # type: ignore[union-attr]
    return head + _HIDDEN + bare[end:] if end else match[0]


def _is_no_literal(word: str, bare: str, before: str, weak: bool) -> bool:
    """Return whether the unquoted text after a name is code or prose rather than a secret."""
    if not bare.strip() or bare.startswith(_HIDDEN) or _CODE.match(bare):
        return True
    if re.match(rf"(?:\w+\.)*{re.escape(word)}[,)]", bare):  # password=password, in a call
        return True
    shell = word.isupper()
    return weak and not shell and re.search(r"\s|^[\d.]{1,5}$", bare.strip()) is not None


def _secrets() -> list[str]:
    """Return the passwords and tokens in the environment, as they are and percent-decoded."""
    secrets = [os.environ.get(name, "") for name in _SECRETS]
    secrets += [
        value
        for name, value in os.environ.items()
        if _VARIABLE.search(name) and len(value) >= 2 * _LEAST
    ]
    userinfo = os.environ.get(_URI, "").partition("://")[2].rpartition("@")[0]
    secrets.append(userinfo.partition(":")[2])
    both = {form for secret in secrets if secret for form in (secret, unquote(secret))}
    return sorted(both, key=len, reverse=True)
