"""S3Store against a server that misbehaves as scripted; the contract suite runs it against one that does not."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from raydis.store import StoreConflict, StoreError, StoreMissing
from raydis.store.s3 import S3Store
from tests.fake_s3 import FakeS3, Obedience, serving


@dataclass(frozen=True)
class Answer:
    """One response; `code` fills an S3 error document, `cut_bytes` are announced but never sent."""

    status: int
    code: str = ""
    body: bytes = b""
    cut_bytes: int = 0
    hang: bool = False


@dataclass
class Script:
    """Answers in order, the last one for ever; and what was asked."""

    url: str
    answers: list[Answer] = field(default_factory=lambda: [Answer(200)])
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # answers "Expect: 100-continue", for which boto3 waits a second

        def answer(self) -> None:
            self.close_connection = True
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            script.requests.append((self.command, self.path, headers))
            answer = script.answers[0] if len(script.answers) == 1 else script.answers.pop(0)
            if answer.hang:
                script.closing.wait(10)
                return
            document = f"<Error><Code>{answer.code}</Code><Message>said so</Message></Error>".encode()
            body = b"" if self.command == "HEAD" else document if answer.code else answer.body
            self.send_response(answer.status)
            self.send_header("ETag", '"tag"')
            self.send_header("Content-Length", str(len(body) + answer.cut_bytes))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    script = Script(f"http://127.0.0.1:{http.server_port}")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", script.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr("raydis.store.s3_conditions._proved", set())  # a port may come again
    yield script
    script.closing.set()
    http.shutdown()
    thread.join()
    http.server_close()


def test_a_throttled_request_is_sent_again(server: Script) -> None:
    server.answers = [Answer(503, "SlowDown"), Answer(200, body=b"value")]
    assert S3Store("bucket", num_attempts=2).read("key") == b"value"
    assert len(server.requests) == 2


def test_retries_are_bounded_and_the_last_answer_is_told(server: Script) -> None:
    server.answers = [Answer(503, "SlowDown")]
    with pytest.raises(StoreError, match=r"cannot write key in s3://bucket/a: the server answered 503 .*SlowDown"):
        S3Store("bucket", "a", num_attempts=2).write("key", b"")
    assert len(server.requests) == 2


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
def test_a_refusal_names_the_code_and_where_credentials_come_from(server: Script, code: str) -> None:
    server.answers = [Answer(403, code)]
    with pytest.raises(StoreError, match=rf"write key in s3://bucket: permission denied \({code}\): check AWS_ACCESS"):
        S3Store("bucket").write("key", b"")


def test_a_missing_bucket_is_not_a_missing_key(server: Script) -> None:
    message = f"bucket buckt does not exist at {server.url}: create it or correct the URI"
    server.answers = [Answer(404, "NoSuchBucket")]
    for call in (lambda s: s.read("key"), lambda s: s.tag("key"), lambda s: list(s.list())):
        with pytest.raises(StoreError, match=message) as caught:
            call(S3Store("buckt"))
        assert not isinstance(caught.value, StoreMissing)


def test_a_silent_server_is_given_up_after_the_timeout(server: Script) -> None:
    server.answers = [Answer(200, hang=True)]
    with pytest.raises(StoreError, match=rf"no answer from {server.url} .*check AWS_ENDPOINT_URL and the network"):
        S3Store("bucket", num_attempts=1, timeout_s=0.2).read("key")


def test_an_endpoint_where_nobody_listens_is_named(server: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    with pytest.raises(StoreError, match=f"cannot list keys in s3://bucket: no answer from {url}"):
        list(S3Store("bucket", num_attempts=1).list())


def test_missing_credentials_are_one_clear_line(
    server: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreError, match=r"no S3 credentials .*: check AWS_ACCESS_KEY_ID and") as caught:
        S3Store("bucket").read("key")
    assert "\n" not in str(caught.value)
    assert not server.requests


def test_an_unknown_profile_is_told_when_the_store_is_opened(server: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreError, match=r"cannot set up S3 for s3://bucket: The config profile .nobody. could not"):
        S3Store("bucket")


def test_a_bucket_name_that_cannot_be_is_one_clear_line(server: Script) -> None:
    with pytest.raises(StoreError, match=r"^'my bucket' is not a bucket name: use letters, digits, .*environment.*$"):
        S3Store("my bucket")


@pytest.mark.parametrize(("status", "code"), [(412, "PreconditionFailed"), (409, "ConditionalRequestConflict")])
def test_both_answers_to_a_lost_condition_are_conflicts(server: Script, status: int, code: str) -> None:
    proof = [Answer(200), Answer(412), Answer(412), Answer(200), Answer(204)]
    server.answers = [*proof, Answer(status, code)]
    with pytest.raises(StoreConflict, match=f"another process wrote it first .{code}"):
        S3Store("bucket").write("key", b"", if_absent=True)


def test_conditions_and_checksums_are_sent_as_other_servers_accept_them(server: Script) -> None:
    proof = [Answer(200), Answer(412), Answer(412), Answer(200), Answer(204)]
    server.answers = [*proof, Answer(200)]
    store = S3Store("bucket", "a")
    tag = store.write("key", b"value", if_absent=True)
    store.write("key", b"value", if_match=tag)
    (method, path, first), (_, _, second) = [row for row in server.requests if row[1] == "/bucket/a/key"]
    assert (method, path) == ("PUT", "/bucket/a/key")
    assert first["if-none-match"] == "*"
    assert second["if-match"] == "tag"
    assert not [name for name in first if "checksum" in name or "trailer" in name or name == "content-encoding"]


def test_a_cut_connection_is_an_error_not_a_short_value(server: Script) -> None:
    server.answers = [Answer(200, body=b"half", cut_bytes=4)]
    with pytest.raises(StoreError, match=r"cannot read key in s3://bucket: no answer from"):
        S3Store("bucket").read("key")


def test_a_download_that_is_cut_each_time_leaves_no_file(server: Script, tmp_path: Path) -> None:
    server.answers = [Answer(200, body=b"half", cut_bytes=4)]
    with pytest.raises(StoreError, match=r"cannot download key in s3://bucket: "):
        S3Store("bucket").download("key", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_version_is_asked_for_in_the_request_that_reads_it(server: Script, tmp_path: Path) -> None:
    server.answers = [Answer(200, body=b"value")]
    S3Store("bucket", "a").download("key", tmp_path / "out", if_match="tag")
    ((method, path, headers),) = server.requests
    assert (method, path, headers["if-match"]) == ("GET", "/bucket/a/key", "tag")
    assert (tmp_path / "out").read_bytes() == b"value"


def test_a_server_that_ignores_the_condition_does_not_pass_another_version_off(server: Script, tmp_path: Path) -> None:
    server.answers = [Answer(200, body=b"newer")]  # its ETag is "tag"
    with pytest.raises(StoreConflict, match=r"key in s3://bucket was not downloaded: expected version old, found tag"):
        S3Store("bucket").download("key", tmp_path / "out", if_match="old")
    assert list(tmp_path.iterdir()) == []


def test_a_cut_download_of_a_version_goes_on_where_it_stopped(server: Script, tmp_path: Path) -> None:
    server.answers = [
        Answer(200, body=b"half", cut_bytes=6),
        Answer(206, body=b"and ", cut_bytes=2),
        Answer(206, body=b"so"),
    ]
    S3Store("bucket").download("key", tmp_path / "out", if_match="tag")
    assert (tmp_path / "out").read_bytes() == b"halfand so"
    assert [headers.get("range") for _, _, headers in server.requests] == [None, "bytes=4-", "bytes=8-"]
    assert {headers["if-match"] for _, _, headers in server.requests} == {"tag"}


def test_a_server_that_ignores_the_range_is_read_from_the_start(server: Script, tmp_path: Path) -> None:
    server.answers = [Answer(200, body=b"half", cut_bytes=4), Answer(200, body=b"halfrest")]
    S3Store("bucket").download("key", tmp_path / "out", if_match="tag")
    assert (tmp_path / "out").read_bytes() == b"halfrest"


def test_a_version_whose_download_is_cut_each_time_leaves_no_file(server: Script, tmp_path: Path) -> None:
    server.answers = [Answer(206, body=b"half", cut_bytes=4)]
    with pytest.raises(StoreError, match=r"cannot download key in s3://bucket: "):
        S3Store("bucket", num_attempts=2).download("key", tmp_path / "out", if_match="tag")
    assert len(server.requests) == 2
    assert list(tmp_path.iterdir()) == []


def test_tags_come_from_the_listing_without_a_request_an_object(server: Script) -> None:
    line = "<Contents><Key>a/{}</Key><Size>{}</Size>{}</Contents>"
    tags = [f"<ETag>&quot;tag{number}&quot;</ETag>" for number in range(3)]
    lines = "".join(line.format(f"k{number}", number, tag) for number, tag in enumerate(tags))
    server.answers = [Answer(200, body=f"<ListBucketResult>{lines}</ListBucketResult>".encode())]
    found = [(entry.key, entry.tag, entry.size_bytes) for entry in S3Store("bucket", "a").entries()]
    assert found == [("k0", "tag0", 0), ("k1", "tag1", 1), ("k2", "tag2", 2)]
    assert len(server.requests) == 1


def test_a_listing_without_tags_has_them_asked_for(server: Script) -> None:
    listing = b"<ListBucketResult><Contents><Key>logs//run.txt</Key><Size>4</Size></Contents></ListBucketResult>"
    server.answers = [Answer(200, body=listing), Answer(200)]
    (entry,) = S3Store("bucket").entries()
    assert (entry.key, entry.tag) == ("logs//run.txt", "tag")
    assert [method for method, _, _ in server.requests] == ["GET", "HEAD"]


@pytest.mark.parametrize(
    ("if_none_match", "if_match", "found"),
    [
        ("ignores", "ignores", "it overwrote an object in spite of If-None-Match"),
        ("obeys", "ignores", "it overwrote an object in spite of If-Match with another tag"),
        ("obeys", "always refuses", "it refused If-Match with the object's own tag"),
        ("answers 501", "answers 501", "it answered 501 to If-None-Match"),
        ("obeys", "answers 501", "it answered 501 to If-Match"),
    ],
)
def test_a_server_without_conditional_writes_is_refused_before_anything_is_claimed(
    if_none_match: Obedience, if_match: Obedience, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(FakeS3(if_none_match, if_match), monkeypatch) as server:
        store = S3Store("bucket", "a")
        tag = store.write("there", b"old")  # without a condition it works as ever
        conditions: tuple[dict[str, Any], ...] = ({"if_absent": True}, {"if_match": tag})
        for condition in conditions:
            with pytest.raises(
                StoreError, match=rf"^{server.url} does not implement conditional writes: {found}\. .*"
            ) as caught:
                store.write("registry/key", b"new", **condition)
            assert "Use a server that implements conditional writes (AWS S3, Ceph RGW 18)" in str(caught.value)
            assert "\n" not in str(caught.value)
        assert server.objects == {"bucket/a/there": b"old"}


def test_of_many_claims_at_once_none_succeeds_where_the_server_ignores_conditions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(FakeS3("ignores", "ignores"), monkeypatch) as server:

        def claim(number: int) -> str:
            with pytest.raises(StoreError, match="does not implement conditional writes"):
                S3Store("bucket").write("claim", str(number).encode(), if_absent=True)
            return "refused"

        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(claim, range(6))) == ["refused"] * 6
        assert server.objects == {}


def test_conditions_are_tried_out_once_a_process_and_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(FakeS3(), monkeypatch) as server:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: S3Store("bucket").write(f"{number}", b"", if_absent=True), range(8)))
        assert server.objects.keys() == {f"bucket/{number}" for number in range(8)}
        probing = [request for request in server.requests if ".raydis-probe-" in request]
        assert [request.split()[0] for request in probing] == ["PUT", "PUT", "PUT", "PUT", "DELETE"]
        assert len({request.split()[1] for request in probing}) == 1
        S3Store("another").write("key", b"", if_absent=True)  # a bucket may lie on another server
        assert len([request for request in server.requests if ".raydis-probe-" in request]) == 10


def test_who_only_reads_or_writes_without_a_condition_never_probes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with serving(FakeS3("ignores", "ignores"), monkeypatch) as server:
        store = S3Store("bucket", "a")
        store.write("key", b"value")
        store.read("key")
        store.tag("key")
        store.exists("other")
        assert list(store.list()) == ["key"]
        store.download("key", tmp_path / "file")
        store.upload(tmp_path / "file", "copy")
        store.delete("copy")
        assert not [request for request in server.requests if "probe" in request]


def test_without_permission_to_delete_the_probe_stays_hidden_and_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(FakeS3(may_delete=False), monkeypatch) as server:
        store = S3Store("bucket", "a")
        store.write("runs/one/key", b"value", if_absent=True)
        (left,) = [name for name in server.objects if "probe" in name]
        assert left.startswith("bucket/a/runs/one/.raydis-probe-")  # where the key is: policies allow by prefix
        assert list(store.list()) == ["runs/one/key"]
    (message,) = caplog.messages
    assert message.startswith(f"cannot delete {left.removeprefix('bucket/a/')} in s3://bucket/a: permission denied")
    assert message.endswith("The object is empty and remains in the bucket; raydis does not list it")


def test_a_probe_that_could_not_be_made_proves_nothing_and_is_made_again(server: Script) -> None:
    proof = [Answer(200), Answer(412), Answer(412), Answer(200), Answer(204)]
    server.answers = [Answer(403, "AccessDenied"), *proof, Answer(200)]
    store = S3Store("bucket")
    with pytest.raises(StoreError, match=r"permission denied \(AccessDenied\)"):
        store.write("key", b"value", if_absent=True)
    assert store.write("key", b"value", if_absent=True) == "tag"
    assert len(server.requests) == 1 + 5 + 1
