"""``ofq data fetch``, from servers on loopback that do well or badly."""

import gzip
import hashlib
import signal
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ofq.config import Workspace

from tests.support.lab import wait_for
from tests.support.own_process import Forked, run_ofq
from tests.support.servers import dead_port

CONTENT = {"images.gz": bytes(range(256)) * 40, "labels.gz": b"0123456789"}
DIGESTS = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}


class Handler(BaseHTTPRequestHandler):
    """Answers as the folder in the address says."""

    def __init__(self, asked, released, *arguments):
        self.asked, self.released = asked, released
        super().__init__(*arguments)

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.asked.append(self.path)
        _, how, name = self.path.split("/")
        packed = gzip.compress(CONTENT[name], mtime=1)
        if how == "none":
            return self.send_error(404)
        body = {
            "wrong": gzip.compress(b"something else"),
            "page": b"<html>log in first</html>",
            "short": packed[:-30],
            "stalled": packed[:-30],
        }.get(how, packed)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body if how in ("wrong", "page") else packed)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        if how == "stalled":
            self.released.wait(60)
        return None


class Web:
    """A server: its base address, and the paths that were asked for."""

    def __init__(self):
        self.asked, self.released = [], threading.Event()
        handler = partial(Handler, self.asked, self.released)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.base = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = Web()
    yield server
    server.close()


def define(checkout, *addresses):
    """A data set of two public files, and another that is a part of it."""
    folder = checkout / "config/datasets"
    folder.mkdir()
    files = ", ".join(f"{name}: {digest}" for name, digest in DIGESTS.items())
    (folder / "small.yaml").write_text(
        "title: Small\nsource: idx\nplace: /nowhere/small\n"
        f"download: {{debian: dataset-small, address: [{', '.join(addresses)}], "
        f"files: {{{files}}}}}\n"
    )
    (folder / "tenth.yaml").write_text("title: Tenth\nsource: idx\npart_of: small\n")


def contents(folder):
    return {path.name: gzip.decompress(path.read_bytes()) for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["small", "tenth"])
def test_fetched_files_are_whole_and_found_by_runs(checkout, web, name):
    define(checkout, f"{web.base}/good/")
    done = run_ofq(checkout, "data", "fetch", name)
    assert done.returncode == 0, done.stderr
    assert contents(checkout / "data/small") == CONTENT
    assert done.stdout.count("verified") == 2
    for dataset in ("small", "tenth"):
        assert Workspace(checkout).data_place(dataset).at == str(checkout / "data/small")


def test_what_is_there_is_not_downloaded_again(checkout, web):
    define(checkout, f"{web.base}/good/")
    run_ofq(checkout, "data", "fetch", "small")
    (checkout / "data/small/labels.gz").unlink()
    done = run_ofq(checkout, "data", "fetch", "small")
    assert done.returncode == 0, done.stderr
    assert web.asked == ["/good/images.gz", "/good/labels.gz", "/good/labels.gz"]


def test_other_folder_is_used_and_said_how_to_name(checkout, web, tmp_path):
    define(checkout, f"{web.base}/good/")
    done = run_ofq(checkout, "data", "fetch", "small", "--to", tmp_path / "else where")
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "else where") == CONTENT
    assert f"data: {{small: {tmp_path}/else where}}" in done.stdout
    assert not (checkout / "data").exists()


FAILURES = {
    "none": "HTTP 404",
    "wrong": "a wrong file: its SHA-256 is",
    "page": "a wrong file: no gzip file came",
    "short": "broke off",
    "unreachable": "not reached",
}


@pytest.mark.parametrize("how", FAILURES)
def test_failed_download_leaves_nothing_and_names_the_other_ways(checkout, web, how):
    base = f"http://{dead_port()}" if how == "unreachable" else web.base
    define(checkout, f"{base}/{how}/")
    done = run_ofq(checkout, "data", "fetch", "small")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"{base}/{how}/images.gz: {FAILURES[how]}" in done.stderr
    assert "apt install dataset-small" in done.stderr
    assert "config/config.yaml: `data: {small: FOLDER}`" in done.stderr
    assert list((checkout / "data/small").iterdir()) == []


def test_next_address_has_what_the_first_lacks(checkout, web):
    define(checkout, f"{web.base}/none/", f"{web.base}/wrong/", f"{web.base}/good/")
    done = run_ofq(checkout, "data", "fetch", "small")
    assert done.returncode == 0, done.stderr
    assert contents(checkout / "data/small") == CONTENT


def test_other_file_of_the_name_is_kept_and_refused(checkout, web):
    define(checkout, f"{web.base}/good/")
    own = checkout / "data/small/labels.gz"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    done = run_ofq(checkout, "data", "fetch", "small")
    assert done.returncode == 2
    assert "data/small/labels.gz: is another file than the public one" in done.stderr
    assert own.read_bytes() == b"mine"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_download_leaves_nothing(checkout, web, number):
    define(checkout, f"{web.base}/stalled/")
    process = Forked(checkout, "data", "fetch", "small")
    folder = checkout / "data/small"
    wait_for(lambda: web.asked and list(folder.iterdir()))
    process.send_signal(number)
    assert process.wait(30) != 0
    assert list(folder.iterdir()) == []


def test_data_set_without_public_files_is_refused_with_those_that_have_some(checkout, web):
    define(checkout, f"{web.base}/good/")
    done = run_ofq(checkout, "data", "fetch", "digits")
    assert done.returncode == 2
    assert "'digits' has no public files" in done.stderr
    assert "allowed: small\n" in done.stderr


def test_bundle_of_others_downloads_nothing(checkout, web):
    define(checkout, f"{web.base}/good/")
    (checkout / "bundle.json").write_text("{}")
    done = run_ofq(checkout, "data", "fetch", "small")
    assert done.returncode == 2
    assert "can't download data in an unpacked bundle" in done.stderr
    assert web.asked == []
