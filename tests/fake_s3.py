"""An S3 server in memory whose conditional writes misbehave as a test wants."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest

Obedience = Literal["obeys", "ignores", "answers 501", "always refuses"]


@dataclass
class FakeS3:
    """What a server does with the conditions of a PUT, what it holds, and what it was asked."""

    if_none_match: Obedience = "obeys"
    if_match: Obedience = "obeys"
    may_delete: bool = True
    url: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)  # by `bucket/key`
    requests: list[str] = field(default_factory=list)  # `PUT bucket/key`
    lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, name: str, data: bytes, if_none_match: str | None, if_match: str | None) -> tuple[int, str]:
        """Status and error code of a PUT."""
        with self.lock:
            found = _etag(self.objects[name]) if name in self.objects else None
            for obedience, asked, holds in (
                (self.if_none_match, if_none_match, found is None),
                (self.if_match, if_match, found == (if_match or "").strip('"')),
            ):
                if asked is None or obedience == "ignores":
                    continue
                if obedience == "answers 501":
                    return 501, "NotImplemented"
                if obedience == "always refuses" or not holds:
                    return 412, "PreconditionFailed"
            self.objects[name] = data
        return 200, ""


@contextmanager
def serving(server: FakeS3, patch: pytest.MonkeyPatch) -> Iterator[FakeS3]:
    """Serve on a free port, with the environment of this process pointing there."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, code = server.put(self.name(), data, self.headers["If-None-Match"], self.headers["If-Match"])
            self.answer(status, _error(code) if code else b"", etag=_etag(data))

        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            if "list-type" in query:
                return self.answer(200, _listing(server.objects, self.name().strip("/"), query.get("prefix", [""])[0]))
            name = self.name()
            if "/" not in name:  # HeadBucket
                return self.answer(200)
            data = server.objects.get(name)
            if data is None:
                return self.answer(404, _error("NoSuchKey"))
            return self.answer(200, data, etag=_etag(data))

        do_HEAD = do_GET

        def do_DELETE(self) -> None:
            if not server.may_delete:
                return self.answer(403, _error("AccessDenied"))
            server.objects.pop(self.name(), None)
            return self.answer(204)

        def name(self) -> str:
            name = unquote(urlsplit(self.path).path)[1:]
            server.requests.append(f"{self.command} {name}")
            return name

        def answer(self, status: int, body: bytes = b"", *, etag: str | None = None) -> None:
            self.send_response(status)
            if etag:
                self.send_header("ETag", f'"{etag}"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True  # boto3 keeps its connections open
    http.block_on_close = False
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    environment = {"AWS_ENDPOINT_URL": server.url, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    for name, value in (environment | {"AWS_DEFAULT_REGION": "us-east-1"}).items():
        patch.setenv(name, value)
    patch.setattr("raydis.store.s3_conditions._proved", set())  # a port may come again
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def _etag(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def _error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>said so</Message></Error>".encode()


def _listing(objects: dict[str, bytes], bucket: str, prefix: str) -> bytes:
    keys = [name.removeprefix(f"{bucket}/") for name in sorted(objects) if name.startswith(f"{bucket}/{prefix}")]
    rows = "".join(f"<Contents><Key>{quote(key)}</Key></Contents>" for key in keys)
    document = f"<EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>{rows}"
    return f"<ListBucketResult>{document}</ListBucketResult>".encode()
