"""A hub on the loopback: the part of the HTTP interface that downloads use, served from memory.

    with FakeHub() as hub:
        commit = hub.add_dataset("someone/reviews", {"train.parquet": raw, "test.parquet": raw})
        hub.add_model("someone/tiny-bert", {"config.json": raw, "model.safetensors": raw})
        subprocess.run(..., env=hub.environment(hf_home))

``HF_ENDPOINT`` is read when ``huggingface_hub`` is imported, so what talks to this hub runs in a process
of its own, with :meth:`FakeHub.environment`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.conftest import REPOSITORY

_API = re.compile(r"/api/(?P<kind>dataset|model)s/(?P<rest>.+)")
_RESOLVE = re.compile(r"/(?P<dataset>datasets/)?(?P<repo>[^/]+(?:/[^/]+)?)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


@dataclass
class Repo:
    """One repository: its commits, newest last, and its branches and tags."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, revision: str) -> str | None:
        commit = self.refs.get(revision, revision)
        return commit if commit in self.commits else None


class FakeHub:
    """Serves what was added until it is closed. ``requests`` lists ``"METHOD path"`` of all that came."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.requests: list[str] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def __enter__(self) -> FakeHub:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add_dataset(self, repo_id: str, files: dict[str, bytes], *, revision: str = "main") -> str:
        """Commit ``files`` to the branch ``revision``; returns the commit."""
        return self._add("dataset", repo_id, files, revision)

    def add_model(self, repo_id: str, files: dict[str, bytes], *, revision: str = "main") -> str:
        """Commit ``files`` to the branch ``revision``; returns the commit."""
        return self._add("model", repo_id, files, revision)

    def _add(self, kind: str, repo_id: str, files: dict[str, bytes], revision: str) -> str:
        repo = self.repos.setdefault((kind, repo_id), Repo())
        digest = hashlib.sha1(repr([repo_id, sorted(files.items())]).encode()).hexdigest()
        repo.commits[digest] = dict(files)
        repo.refs[revision] = digest
        repo.refs.setdefault("main", digest)
        return digest

    def call(self, hf_home: Path, *words: str) -> str:
        """What ``peftlab words…`` prints, with this hub in the place of the real one; it must succeed."""
        command = [sys.executable, "-m", "peftlab", *words]
        environment = self.environment(hf_home, PYTHONPATH=str(REPOSITORY / "src"))
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def environment(self, hf_home: Path, **more: str) -> dict[str, str]:
        """An environment whose hub is this one and whose caches are in ``hf_home``."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE"))}
        ours |= {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(hf_home), "NO_PROXY": "127.0.0.1"}
        return ours | {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"} | more


def _blob_id(raw: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.hub.requests.append(f"{self.command} {url.path}")
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length).decode() if length else ""
        if match := _RESOLVE.fullmatch(url.path):
            self._file("dataset" if match["dataset"] else "model", match["repo"], match["revision"], match["file"])
        elif match := _API.fullmatch(url.path):
            self._api(match["kind"], match["rest"], body)
        else:
            self._send(404, b"", {})

    def _api(self, kind: str, rest: str, body: str) -> None:
        for known_kind, repo_id in sorted(self.hub.repos, key=lambda key: -len(key[1])):
            if known_kind == kind and (rest == repo_id or rest.startswith(repo_id + "/")):
                verb, _, tail = rest[len(repo_id) + 1 :].partition("/")
                return self._repo_api(self.hub.repos[kind, repo_id], repo_id, verb, tail, body)
        return self._missing("RepoNotFound")

    def _repo_api(self, repo: Repo, repo_id: str, verb: str, tail: str, body: str) -> None:
        if verb == "refs":
            branches = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
                for name, commit in repo.refs.items()
            ]
            return self._json({"branches": branches, "tags": [], "converts": []})
        # The revision is quoted (a branch may contain slashes); a path below it is not.
        revision, _, folder = tail.partition("/")
        commit = repo.commit(unquote(revision) or "main")
        if commit is None:
            return self._missing("RevisionNotFound")
        files = repo.commits[commit]
        if verb in ("", "revision"):
            return self._json(_info(repo_id, commit, files))
        if verb == "tree":
            return self._json(_tree(files, unquote(folder)))
        if verb == "paths-info":
            return self._json(_paths_info(files, _posted_paths(body)))
        return self._missing("EntryNotFound")

    def _file(self, kind: str, repo_id: str, revision: str, name: str) -> None:
        repo = self.hub.repos.get((kind, unquote(repo_id)))
        if repo is None:
            return self._missing("RepoNotFound")
        commit = repo.commit(unquote(revision))
        if commit is None:
            return self._missing("RevisionNotFound")
        raw = repo.commits[commit].get(unquote(name))
        if raw is None:
            return self._missing("EntryNotFound", {"X-Repo-Commit": commit})
        headers = {
            "ETag": f'"{_blob_id(raw)}"',
            "X-Linked-Etag": f'"{_blob_id(raw)}"',
            "X-Linked-Size": str(len(raw)),
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
        }
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(asked[1]), min(int(asked[2] or len(raw) - 1), len(raw) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(raw)}"
            return self._send(206, raw[first : last + 1], headers)
        return self._send(200, raw, headers)

    def _json(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _missing(self, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(404, b"{}", {"X-Error-Code": code, "X-Error-Message": code} | (headers or {}))

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _info(repo_id: str, commit: str, files: dict[str, bytes]) -> dict[str, Any]:
    return {
        "id": repo_id,
        "modelId": repo_id,
        "sha": commit,
        "private": False,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": [{"rfilename": name} for name in sorted(files)],
    }


def _entry(name: str, raw: bytes) -> dict[str, Any]:
    return {"type": "file", "oid": _blob_id(raw), "size": len(raw), "path": name}


def _folder_entry(name: str) -> dict[str, Any]:
    return {"type": "directory", "oid": _blob_id(name.encode()), "size": 0, "path": name}


def _folders(files: dict[str, bytes]) -> list[str]:
    return sorted({str(parent) for name in files for parent in Path(name).parents} - {"."})


def _tree(files: dict[str, bytes], folder: str) -> list[dict[str, Any]]:
    below = f"{folder}/" if folder else ""
    return [_folder_entry(name) for name in _folders(files) if name.startswith(below)] + [
        _entry(name, raw) for name, raw in sorted(files.items()) if name.startswith(below)
    ]


def _paths_info(files: dict[str, bytes], paths: list[str]) -> list[dict[str, Any]]:
    entries = [_entry(path, files[path]) for path in paths if path in files]
    return entries + [_folder_entry(path) for path in paths if path in _folders(files)]


def _posted_paths(body: str) -> list[str]:
    """``paths`` of a form or a JSON body; both have been in use."""
    if body.startswith("{"):
        paths = json.loads(body)["paths"]
        return [paths] if isinstance(paths, str) else list(paths)
    return parse_qs(body)["paths"]
