"""A stand-in for the Hub on the loopback interface: the endpoints that pushing and pulling a model use."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants


COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_ThisIsNoTokenOfAnybody0123456789"


class StandIn:
    """
    What the stand-in holds and has seen.

    `files` are those of each commit by repository and path, `commits` the lists of files as they came, `requests` the
    methods and paths, `secrets` the authorisations. A request whose path contains `broken` loses its connection.
    """

    def __init__(self, url: str):
        self.url = url
        self.files: dict[str, dict[str, bytes]] = {}
        self.commits: list[tuple[str, str, list[str]]] = []
        self.created: list[dict] = []
        self.requests: list[tuple[str, str]] = []
        self.bodies: list[bytes] = []
        self.secrets: set[str | None] = set()
        self.large: dict[str, bytes] = {}
        self.broken: str | None = None

    def create(self, body: dict) -> tuple[int, dict]:
        name = f"{body['organization'] or 'me'}/{body['name']}"
        status = 409 if name in self.files else 200
        self.created.append(body)
        self.files.setdefault(name, {})
        return status, {"url": f"{self.url}/{name}"}

    def validate(self, body: dict) -> tuple[int, dict]:
        errors = [] if body["content"].startswith("---\n") else [{"message": "no metadata"}]
        return (400 if errors else 200), {"errors": errors, "warnings": []}

    def preupload(self, body: dict) -> tuple[int, dict]:
        modes = {True: "lfs", False: "regular"}
        files = [
            {"path": path, "uploadMode": modes[path.endswith(".safetensors")], "shouldIgnore": False, "oid": None}
            for path in (entry["path"] for entry in body["files"])
        ]
        return 200, {"files": files}

    def batch(self, body: dict) -> tuple[int, dict]:
        objects = [
            {**entry, "actions": {"upload": {"href": f"{self.url}/large/{entry['oid']}"}}} for entry in body["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}

    def commit(self, name: str, revision: str, lines: list[dict]) -> tuple[int, dict]:
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
        self.files[name].update(files)
        self.commits.append((name, revision, sorted(files)))
        return 200, {"commitUrl": f"{self.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT, "hookOutput": ""}


class Handler(BaseHTTPRequestHandler):
    """Answers a request from the state of the server's `stand_in`."""

    protocol_version = "HTTP/1.1"
    stand_in: StandIn

    def log_message(self, *args):
        pass

    def do_POST(self):
        path, body = self.begin()
        if path is None:
            return
        stand_in, parts = self.stand_in, path.strip("/").split("/")
        if path == "/api/repos/create":
            self.answer(*stand_in.create(json.loads(body)))
        elif path == "/api/validate-yaml":
            self.answer(*stand_in.validate(json.loads(body)))
        elif path.endswith("/info/lfs/objects/batch"):
            self.answer(*stand_in.batch(json.loads(body)))
        elif parts[-2] == "preupload":
            self.answer(*stand_in.preupload(json.loads(body)))
        elif parts[-2] == "branch":
            self.answer(200, {})
        elif parts[-2] == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            self.answer(*stand_in.commit("/".join(parts[2:4]), parts[-1], lines))
        else:
            self.answer(404, {})

    def do_PUT(self):
        path, body = self.begin()
        if path is not None:
            assert hashlib.sha256(body).hexdigest() == path.rpartition("/")[2]
            self.stand_in.large[path.rpartition("/")[2]] = body
            self.answer(200, {})

    def do_GET(self):
        path, _ = self.begin()
        if path is None:
            return
        name, _, file = path.strip("/").partition("/resolve/")
        if path.startswith("/api/models/"):
            name = "/".join(path.split("/")[3:5])
            files = self.stand_in.files.get(name, {})
            self.answer(200, {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]})
            return
        content = self.stand_in.files.get(name, {}).get(file.partition("/")[2])
        if content is None:
            self.answer(404, {}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        else:
            etag = hashlib.sha256(content).hexdigest()
            self.answer(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'})

    do_HEAD = do_GET

    def begin(self) -> tuple[str | None, bytes]:
        """The path and the body of a request, or no path where its connection was broken."""
        path = unquote(urlsplit(self.path).path)
        stand_in = self.stand_in
        stand_in.requests.append((self.command, path))
        stand_in.secrets.add(self.headers.get("Authorization"))
        if stand_in.broken and stand_in.broken in path:
            self.close_connection = True
            self.connection.close()
            return None, b""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        stand_in.bodies.append(body)
        return path, body

    def answer(self, status: int, content: dict | bytes, headers: dict[str, str] | None = None) -> None:
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """A stand-in on a free port of the loopback interface, for as long as the context lasts."""
    handler = type("BoundHandler", (Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.stand_in = StandIn(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield handler.stand_in
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def taken_for_the_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[StandIn]:
    """A stand-in that the libraries in this process take for the Hub, with [`TOKEN`] for it."""
    with stand_in() as server:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        # Transformers keeps a client that knows the endpoint of its first use.
        monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        # Xet's protocol goes past the endpoints that a stand-in could have.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        # Uploads are tried again after seconds.
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        huggingface_hub.close_session()
        yield server
        huggingface_hub.close_session()
