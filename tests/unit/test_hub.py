"""Models from a Hub that is a real HTTP server: asked once, waited for when it was asked too often, then shared."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from pmray.errors import CandidateUnavailable
from pmray.spec import Candidate
from pmray.training import model as models
from tests.tiny import tiny_model

COMMIT = "a" * 40


class Hub:
    """Serves one model at one commit; answers 429 so many times first."""

    def __init__(self, folder: Path, refusals: int = 0) -> None:
        self.files = {file.name: file.read_bytes() for file in folder.iterdir()}
        self.asked: Counter[str] = Counter()
        self.refusals = refusals
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.answer(body=False)

            def do_GET(self):
                self.answer(body=True)

            def answer(self, body):
                path = self.path.partition("?")[0]
                hub.asked[path] += 1
                if hub.refusals:
                    hub.refusals -= 1
                    return self.send(429, b"", {"Retry-After": "1"}, body)
                if "/tree/" in path:
                    told = [
                        {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                        for name, content in hub.files.items()
                    ]
                    return self.send(200, json.dumps(told).encode(), {"Content-Type": "application/json"}, body)
                if path.startswith("/api/models/"):
                    names = [{"rfilename": name} for name in hub.files]
                    told = {"id": "team/tiny", "sha": COMMIT, "siblings": names}
                    return self.send(200, json.dumps(told).encode(), {"Content-Type": "application/json"}, body)
                name = path.rpartition("/")[2]
                if name not in hub.files:
                    return self.send(404, b"", {}, body)
                content = hub.files[name]
                headers = {"ETag": f'"{sha256(content).hexdigest()[:40]}"', "X-Repo-Commit": COMMIT}
                return self.send(200, content, headers, body)

            def send(self, status, content, headers, body):
                self.send_response(status)
                for key, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if body:
                    self.wfile.write(content)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


LOCATE = """
import json, sys, logging
from pathlib import Path
logging.basicConfig(level=logging.WARNING)
from pmray.spec import Candidate
from pmray.training.model import copied, locate
one = locate(Candidate(model="team/tiny"))
shared = copied(one, Path(sys.argv[1]), sys.argv[1])
print(json.dumps([one.revision, shared.folder]))
"""

OPEN = """
import json, sys
from pathlib import Path
from pmray.spec import Candidate
from pmray.training.model import Pretrained, on_this_node
where = {"folder": sys.argv[1], "shared": str(Path(sys.argv[1]).parent)}
facts = {"revision": "a", "family": "bert", "parameters": 1, "layer_parameters": 1, "layers": 2, "processor": "p"}
one = Pretrained(candidate=Candidate(model="team/tiny"), **where, **facts, max_positions=64)
print(on_this_node(one).folder)
"""


def run(code: str, argument: Path, url: str, home: Path) -> subprocess.CompletedProcess[str]:
    """A process with a Hub, and caches, of its own: the library reads these at import."""
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home)}
    return subprocess.run(
        [sys.executable, "-c", code, str(argument)], env=environment, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip


def test_one_process_asks_the_hub_once_and_all_others_the_shared_copy(tmp_path):
    hub = Hub(tiny_model(tmp_path / "source"), refusals=1)
    done = run(LOCATE, tmp_path / "cache", hub.url, tmp_path / "home")
    assert done.returncode == 0, done.stderr[-3000:]
    revision, folder = json.loads(done.stdout.splitlines()[-1])
    assert (revision, Path(folder)) == (COMMIT, tmp_path / "cache" / f"model-{COMMIT}")
    assert {"config.json", "model.safetensors", "manifest.json"} <= {file.name for file in Path(folder).iterdir()}
    weights = sum(count for path, count in hub.asked.items() if path.endswith(f"{COMMIT}/model.safetensors"))
    assert 1 <= weights <= 3, "one question about the file, and one download"
    before = hub.asked.total()
    shutil.rmtree(tmp_path / "home")
    # A trial on another node: no cache of its own, and a Hub that it must not ask.
    there = run(OPEN, Path(folder), hub.url, tmp_path / "another home")
    assert there.stdout.strip() == folder, there.stderr[-2000:]
    assert hub.asked.total() == before


def refusing(monkeypatch, times: int, wait: str):
    """A download that is refused so many times, with no time really spent."""
    from types import SimpleNamespace

    from huggingface_hub.errors import HfHubHTTPError

    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    left = [times]

    class TooMany(HfHubHTTPError):
        def __init__(self):
            Exception.__init__(self, "429")
            self.response = SimpleNamespace(status_code=429, headers={"Retry-After": wait} if wait else {})

    def download() -> str:
        if left[0]:
            left[0] -= 1
            raise TooMany
        return "folder"

    return download, slept


def test_a_hub_that_was_asked_too_often_is_waited_for_as_long_as_it_says(monkeypatch):
    download, slept = refusing(monkeypatch, 3, "7")
    assert models._waiting(download, "team/tiny") == "folder"
    assert slept == [7.0, 7.0, 7.0]


def test_and_longer_each_time_where_it_does_not_say_but_not_for_ever(monkeypatch):
    download, slept = refusing(monkeypatch, 100, "")
    with pytest.raises(CandidateUnavailable, match="has been asked too often"):
        models._waiting(download, "team/tiny")
    assert slept == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0]


def test_other_refusals_are_not_waited_for(monkeypatch):
    with pytest.raises(CandidateUnavailable, match="cannot be reached"):
        models.locate(Candidate(model="team/never-downloaded"))
