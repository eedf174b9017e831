"""A Hugging Face Hub on this machine: the part of its HTTP interface that huggingface_hub and datasets use here."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

Files = dict[str, bytes]
TOKEN = "hf_testing"
_API = re.compile(r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)(?:/(?P<verb>[a-z-]+)/(?P<rest>[^?]*))?")
_FILE = re.compile(r"(?:/(?P<kind>datasets))?/(?P<repo>[^/]+/[^/]+)/resolve/[^/]+/(?P<path>[^?]+)")


class Hub(ThreadingHTTPServer):
    """A server with the files of each repository, by `models/ORG/NAME` or `datasets/ORG/NAME`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Files] = {}
        self.private: dict[str, bool] = {}
        self.uploads: dict[str, bytes] = {}
        """Large files by their SHA-256, until a commit names them."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serve() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()


def _sha(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.path = unquote(self.path)
        if found := _FILE.match(self.path):
            files = self.server.repos.get(f"{found['kind'] or 'models'}/{found['repo']}")
            if files is None or found["path"] not in files:
                return self._refuse("RepoNotFound" if files is None else "EntryNotFound")
            return self._file(files, found["path"])
        found = _API.match(self.path)
        files = found and self.server.repos.get(f"{found['kind']}/{found['repo']}")
        if found is None or files is None:
            return self._refuse("RepoNotFound")
        if found["verb"] == "tree":
            entries = _tree(files, found["rest"].partition("/")[2], "recursive=true" in self.path.lower())
            return self._refuse("EntryNotFound") if entries is None else self._json(entries)
        return self._json(_info(found["repo"], files))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "Invalid username or password."}, 401)
        self.path = unquote(self.path)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            kind, name = asked.get("type") or "model", f"{asked['organization']}/{asked['name']}"
            self.server.private[f"{kind}s/{name}"] = bool(asked.get("private")) or asked.get("visibility") == "private"
            if f"{kind}s/{name}" in self.server.repos:
                return self._json({"error": "You already created this repo", "url": name}, 409)
            self.server.repos[f"{kind}s/{name}"] = {}
            return self._json({"url": f"{self.server.url}/{'datasets/' if kind == 'dataset' else ''}{name}"})
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for one in objects:
                one["actions"] = {"upload": {"href": f"{self.server.url}/upload/{one['oid']}"}}
            return self._json({"transfer": "basic", "objects": objects})
        found = _API.match(self.path)
        files = found and self.server.repos.get(f"{found['kind']}/{found['repo']}")
        if found is None or files is None:
            return self._refuse("RepoNotFound")
        if found["verb"] == "preupload":
            names = [one["path"] for one in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": _mode(name), "shouldIgnore": False} for name in names]
            return self._json({"files": modes})
        if found["verb"] == "paths-info":
            wanted = json.loads(body)["paths"]
            return self._json([_entry(path, files[path]) for path in wanted if path in files])
        if found["verb"] == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "lfsFile":
                    files[line["value"]["path"]] = self.server.uploads[line["value"]["oid"]]
                elif line["key"] == "deletedFile":
                    del files[line["value"]["path"]]
            url = f"{self.server.url}/{found['repo']}/commit/{_revision(files)}"
            return self._json({"commitUrl": url, "commitOid": _revision(files), "commitMessage": ""})
        return self._refuse("EntryNotFound")

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.uploads[self.path.rpartition("/")[2]] = content
        self.send_response(200)
        self._end(b"")

    def _file(self, files: Files, path: str) -> None:
        content = whole = files[path]
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part:
            content = content[int(part[1]) : int(part[2]) + 1 if part[2] else None]
        self.send_response(206 if part else 200)
        if part:
            self.send_header("Content-Range", f"bytes {part[1]}-{int(part[1]) + len(content) - 1}/{len(whole)}")
        self.send_header("ETag", f'"{_sha(whole)}"')
        self.send_header("X-Repo-Commit", _revision(files))
        self.send_header("Accept-Ranges", "bytes")
        self._end(content)

    def _json(self, value: Any, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self._end(json.dumps(value).encode())

    def _refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", f"{self.path}: not found")
        self._end(b"")

    def _end(self, content: bytes) -> None:
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _revision(files: Files) -> str:
    return _sha(repr(sorted(files.items())).encode())


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": _sha(content)}


def _mode(name: str) -> str:
    return "lfs" if name.endswith((".parquet", ".safetensors")) else "regular"


def _tree(files: Files, folder: str, recursive: bool) -> list[dict[str, Any]] | None:
    """Return what is in a folder; None if there is no such folder."""
    prefix = f"{folder}/" if folder else ""
    inside = {path.removeprefix(prefix): content for path, content in files.items() if path.startswith(prefix)}
    if folder and not inside:
        return None
    folders = {str(parent) for path in inside for parent in PurePosixPath(path).parents} - {"."}
    found = [_entry(prefix + path, content) for path, content in inside.items() if recursive or "/" not in path]
    names = sorted(name for name in folders if recursive or "/" not in name)
    return found + [
        {"type": "directory", "path": prefix + name, "size": 0, "oid": _sha(name.encode())} for name in names
    ]


def _info(repo: str, files: Files) -> dict[str, Any]:
    siblings = [{"rfilename": path, "size": len(content), "blobId": _sha(content)} for path, content in files.items()]
    facts = {"_id": "0", "id": repo, "author": repo.partition("/")[0], "sha": _revision(files), "siblings": siblings}
    return facts | {"private": False, "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0}
