"""What may be wrong with an S3 store: its URI, its endpoint, the rights and the way there; each has its message."""

import socket
import threading
import time

import pytest

from plugins.checkpoints.stores.open import open_store
from plugins.checkpoints.stores.s3 import S3Backend
from plugins.checkpoints.stores.s3_client import ANSWER_S, ATTEMPTS, CONNECT_S, S3Client, S3Place
from plugins.errors import StoreError, UserError
from tests.plugins.checkpoints import s3_case
from tests.plugins.checkpoints.s3_case import SECRET
from tests.plugins.checkpoints.s3_server import refusal

credentials, server, kit = s3_case.credentials, s3_case.server, s3_case.kit


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            refusal("NoSuchBucket", "404 Not Found"),
            r"there is no bucket bucket-\w+ at http://127\.0\.0\.1:\d+: make it",
        ),
        (refusal("AccessDenied", "403 Forbidden"), "access denied: these credentials need s3:PutObject on bucket"),
        (refusal("InvalidAccessKeyId", "403 Forbidden"), "does not accept these credentials"),
        (refusal("SignatureDoesNotMatch", "403 Forbidden"), "does not accept these credentials"),
        (refusal("ExpiredToken", "400 Bad Request"), "does not accept these credentials: are they expired"),
        (refusal("RequestTimeTooSkewed", "403 Forbidden"), "the clock of this machine is wrong"),
        (refusal("PermanentRedirect", "301 Moved"), r"is in another region: add \?region="),
        (refusal("XMinioStorageFull", "507 Insufficient Storage"), "is full: free space there"),
        (refusal("SlowDown", "503 Slow Down"), "is busy or failed: try again later"),
        (refusal("NotImplemented", "501 No"), "try AWS_REQUEST_CHECKSUM_CALCULATION=when_required"),
        (refusal("SomethingNew", "418 Teapot"), r"it was refused \(SomethingNew\)"),
    ],
)
def test_whatever_is_wrong_with_the_place_the_check_says_which_it_is(kit, server, answer, words: str) -> None:
    server.instead = lambda _method, _path: answer
    with pytest.raises(StoreError, match=words) as caught:
        S3Backend(kit.client()).check()
    assert str(caught.value).startswith(f"s3://{kit.place.bucket}/some/prefix/.probe-")
    assert SECRET not in str(caught.value) and "AKIA" not in str(caught.value)
    assert "secret-in-a-message" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "mark", "right"),
    [
        ("GET", "probe-", "s3:GetObject"),
        ("GET", "list-type", "s3:ListBucket"),
        ("GET", "uploads", "s3:ListBucketMultipartUploads"),
        ("POST", "delete", "s3:DeleteObject"),
    ],
)
def test_the_check_names_the_right_that_is_missing(kit, server, method: str, mark: str, right: str) -> None:
    server.instead = lambda verb, path: (
        refusal("AccessDenied", "403 Forbidden")
        if verb == method and (mark in path.partition("?")[mark != "probe-" and 2])
        else None
    )
    with pytest.raises(StoreError, match=f"these credentials need {right} on bucket"):
        S3Backend(kit.client()).check()


def test_without_credentials_it_is_said_how_to_give_them(kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreError, match=r"no credentials were found .*: set AWS_ACCESS_KEY_ID"):
        S3Backend(S3Client(kit.place)).check()
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreError, match=r"no credentials were found .ProfileNotFound"):
        S3Backend(S3Client(kit.place)).check()


def test_an_endpoint_where_nobody_listens_is_an_error_at_once() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    began = time.monotonic()
    store = open_store(f"s3://bucket/x?endpoint=http://127.0.0.1:{port}&region=us-east-1")
    with pytest.raises(StoreError, match=rf"http://127\.0\.0\.1:{port} cannot be reached or does not answer"):
        store.check()
    assert time.monotonic() - began < 20


def test_an_endpoint_that_takes_the_call_and_never_answers_is_an_error_in_bounded_time() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        place = S3Place("bucket", "x", f"http://127.0.0.1:{silent.getsockname()[1]}", "us-east-1")
        began = time.monotonic()
        with pytest.raises(StoreError, match="cannot be reached or does not answer"):
            S3Backend(S3Client(place, answer_s=0.3, attempts=2)).check()
        assert 0.6 <= time.monotonic() - began < 10
    longest_pauses_s = 1 + 2  # botocore's standard retries wait up to 2**n seconds
    assert ATTEMPTS * (CONNECT_S + ANSWER_S) + longest_pauses_s <= 63 and ATTEMPTS * ANSWER_S + longest_pauses_s < 60


def test_a_slow_network_is_not_a_dead_one() -> None:
    """A part that takes longer than every time-out, because the other side reads slowly."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
    listening.bind(("127.0.0.1", 0))
    listening.listen()

    def read_slowly() -> None:
        connection, _ = listening.accept()
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(1)
        if b"100-continue" in head:
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        left = 8 * 2**20
        while left and (piece := connection.recv(2**18)):
            left -= len(piece)
            time.sleep(0.02)
        connection.sendall(b'HTTP/1.1 200 OK\r\nETag: "x"\r\nContent-Length: 0\r\n\r\n')
        connection.close()

    threading.Thread(target=read_slowly, daemon=True).start()
    place = S3Place("bucket", "", f"http://127.0.0.1:{listening.getsockname()[1]}", "us-east-1")
    client, began = S3Client(place, connect_s=0.4, answer_s=3.0, attempts=1), time.monotonic()
    with listening:
        assert client.put("key", bytearray(8 * 2**20)) == '"x"'
    assert time.monotonic() - began > 0.6


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket",
        "s3://bucket/deep/prefix",
        "s3://bucket/p?endpoint=http://127.0.0.1:9000",
        "s3://bucket/p?endpoint=https://minio.example&region=eu-west-1",
    ],
)
def test_a_uri_opens_and_opens_again(uri: str, trainer) -> None:
    store = open_store(uri)
    assert store.uri == uri == open_store(store.uri).uri
    place, mark, query = uri.partition("?")
    assert store.uri_of(trainer.sealed(19)) == f"{place}/run-1/sft/iter_0000019{mark}{query}"


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://AKIAX:topsecret@bucket/x", "holds credentials"),
        ("s3://bucket/x?aws_secret_access_key=topsecret", "holds credentials"),
        ("s3://bucket/x?session_token=topsecret", "holds credentials"),
        ("s3://bucket/x?endpoint=http://me:topsecret@host:9000", "holds credentials"),
        ("s3://bucket/x?colour=red", "has no option colour; there are endpoint and region"),
        ("s3://bucket/x?endpoint=minio:9000", "its endpoint is no URL"),
        ("s3://bucket/x?endpoint=http://host:port", "its endpoint is no URL"),
        ("s3://bucket/../x", "a prefix has no empty part"),
        ("s3://bucket//x", "a prefix has no empty part"),
        ("s3:bucket/x", "names no bucket"),
        ("s3://", "names no bucket"),
        ("s3://Bad_Bucket", "names no bucket"),
    ],
)
def test_a_uri_that_is_wrong_is_the_users_error_and_shows_no_secret(uri: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        open_store(uri)
    assert "topsecret" not in str(caught.value)
