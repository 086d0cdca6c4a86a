"""A hub of one process: the few routes of the Hugging Face Hub that pushing and loading use, repositories in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_secretsecretsecret"


class FakeHub:
    """The server; ``url`` is its address.

    Attributes:
        commits: repository to its commits, oldest first, each ``(id, {file name: bytes})``.
        private, gated: repositories of that kind.
        seen: requests as ``METHOD path``; ``tokens`` what they carried as authorisation.
    """

    def __init__(self) -> None:
        self.commits: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.blobs: dict[str, bytes] = {}
        self.seen: list[str] = []
        self.tokens: set[str | None] = set()
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Be gone: whoever asks now has no network."""
        self._server.shutdown()
        self._server.server_close()

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        """Add a commit; its id."""
        history = self.commits.setdefault(repo, [])
        made = {**(history[-1][1] if history else {}), **files}
        name = hashlib.sha1(f"{repo}{len(history)}".encode()).hexdigest()
        history.append((name, made))
        return name

    def at(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit that a revision names."""
        history = self.commits.get(repo, [])
        if revision == "main":
            return history[-1] if history else None
        return next((one for one in history if one[0] == revision), None)


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.0"  # a connection for each request, so that none outlives the server

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), Content_Type="application/json")

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, b"", X_Error_Code=code, X_Error_Message=code)

    def _start(self) -> tuple[str, bytes]:
        path = unquote(urlsplit(self.path).path)
        self.hub.seen.append(f"{self.command} {path}")
        token = self.headers.get("Authorization")
        self.hub.tokens.add(token)
        return path, self.rfile.read(int(self.headers.get("Content-Length") or 0))

    @property
    def _logged_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_HEAD(self) -> None:
        self._get()

    def do_GET(self) -> None:
        self._get()

    def _get(self) -> None:
        hub = self.hub
        path, _ = self._start()
        if path.startswith("/api/models/"):
            repo = path.removeprefix("/api/models/").partition("/revision/")[0]
            if repo not in hub.commits:
                return self._refuse(404, "RepoNotFound")
            commit = hub.at(repo, "main")
            files = commit[1] if commit else {}
            return self._json(
                {
                    "id": repo, "modelId": repo, "sha": commit[0] if commit else None, "private": repo in hub.private,
                    "siblings": [{"rfilename": name} for name in files], "tags": [], "downloads": 0, "likes": 0,
                }
            )  # fmt: skip
        repo, _, rest = path.strip("/").partition("/resolve/")
        if repo not in hub.commits or (repo in hub.private and not self._logged_in):
            return self._refuse(401, "RepoNotFound")
        if repo in hub.gated:
            return self._refuse(403, "GatedRepo")
        revision, _, name = rest.rpartition("/")
        commit = hub.at(repo, revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        if name not in commit[1]:
            return self._answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit[0])
        content = commit[1][name]
        tag = hashlib.sha256(content).hexdigest()
        return self._answer(
            200,
            content,
            ETag=f'"{tag}"',
            X_Repo_Commit=commit[0],
            Content_Length=str(len(content)),
            Accept_Ranges="none",
        )

    def do_PUT(self) -> None:
        path, body = self._start()
        self.hub.blobs[path.rpartition("/")[2]] = body
        self._answer(200)

    def do_POST(self) -> None:
        hub = self.hub
        path, body = self._start()
        if path == "/api/validate-yaml":
            front = json.loads(body)["content"].split("---")
            good = len(front) > 2 and "library_name" in front[1]
            return self._json(
                {"errors": [] if good else [{"message": "no YAML"}], "warnings": []}, 200 if good else 400
            )
        if not self._logged_in:
            return self._answer(401, b"{}", X_Error_Message="Invalid credentials in Authorization header")
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            if asked["organization"] != "acme":
                return self._answer(403, b'{"error":"no right to this namespace"}', Content_Type="application/json")
            if repo in hub.commits:
                return self._json({"url": f"{hub.url}/{repo}"}, 409)
            hub.commits[repo] = []
            if asked.get("visibility") == "private" or asked.get("private"):
                hub.private.add(repo)
            return self._json({"url": f"{hub.url}/{repo}"})
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            return self._json(
                {
                    "files": [
                        {
                            "path": one["path"], "shouldIgnore": False,
                            "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                        }
                        for one in files
                    ]
                }
            )  # fmt: skip
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            return self._json(
                {
                    "transfer": "basic",
                    "objects": [
                        {**one, "actions": {"upload": {"href": f"{hub.url}/lfs/{one['oid']}", "header": {}}}}
                        for one in objects
                    ],
                }
            )
        if "/commit/" in path:
            repo = path.removeprefix("/api/models/").partition("/commit/")[0]
            files = {}
            for line in body.decode().splitlines():
                item = json.loads(line)
                value = item["value"]
                if item["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif item["key"] == "lfsFile":
                    files[value["path"]] = hub.blobs[value["oid"]]
            name = hub.commit(repo, files)
            return self._json(
                {"success": True, "commitOid": name, "commitUrl": f"{hub.url}/{repo}/commit/{name}", "hookOutput": ""}
            )
        return self._answer(404)
