"""A Hugging Face hub on loopback, as much of it as huggingface_hub asks to download a model."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

API = re.compile(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/?]+)")
FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)")


class Hub:
    """Models by name; each push of a folder is a commit, and the last one is `main`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[str] = []  # paths asked for
        self._commits: dict[str, dict[str, Path]] = {}  # by name: folders by revision

    def push(self, name: str, folder: Path) -> str:
        """Publish `folder` as the newest commit of `name`; returns the commit."""
        commits = self._commits.setdefault(name, {})
        commit = hashlib.sha1(f"{name} {len(commits)}".encode()).hexdigest()
        commits |= {commit: folder, "main": folder}
        return commit

    def environment(self, home: Path) -> dict[str, str]:
        """What a process needs in its environment to ask this hub, with an empty cache in `home`."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}

    def look(self, name: str, revision: str) -> tuple[str, Path] | None:
        """(commit, folder) of a revision."""
        commits = self._commits.get(name, {})
        folder = commits.get(revision)
        if folder is None:
            return None
        return next(one for one in commits if commits[one] == folder and one != "main"), folder


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub on a free port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        hub.requests.append(self.path)
        if match := API.match(self.path):
            name, what, revision = match.groups()
            snapshot = hub.look(name, revision)
            if snapshot is None:
                return self._missing("RepoNotFound")
            commit, folder = snapshot
            files = sorted(path for path in folder.iterdir() if path.is_file())
            if what == "tree":
                return self._json([_entry(path) for path in files])
            siblings = [{"rfilename": path.name} for path in files]
            return self._json({"id": name, "sha": commit, "siblings": siblings, "tags": []})
        if match := FILE.match(self.path):
            name, revision, file = match.groups()
            snapshot = hub.look(name, revision)
            if snapshot is None or not (snapshot[1] / file).is_file():
                return self._missing("EntryNotFound" if snapshot else "RepoNotFound")
            return self._send((snapshot[1] / file).read_bytes(), snapshot[0])
        return self._missing("RepoNotFound")

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def _json(self, value: Any) -> None:
        self._send(json.dumps(value).encode(), "", kind="application/json")

    def _send(self, body: bytes, commit: str, kind: str = "application/octet-stream") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _missing(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _entry(path: Path) -> dict[str, Any]:
    body = path.read_bytes()
    return {
        "type": "file",
        "path": path.name,
        "size": len(body),
        "oid": hashlib.sha1(body).hexdigest(),
    }
