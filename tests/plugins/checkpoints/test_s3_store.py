"""What is special about S3: parts, cut uploads, broken downloads, and endpoints without conditions."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from plugins.checkpoints.disk import sha256_of
from plugins.checkpoints.seal import seal
from plugins.checkpoints.stores.backend import Change, LostSwap
from plugins.checkpoints.stores.objects import ObjectStore
from plugins.checkpoints.stores.s3 import S3Backend
from plugins.checkpoints.stores.s3_client import S3Client
from plugins.checkpoints.stores.s3_feed import S3Feed
from plugins.checkpoints.stores.s3_send import MIN_PART_BYTES, Arrived, begin_upload, part_size
from plugins.errors import Fenced, StoreError, TornCheckpoint
from plugins.slime import layout
from tests.plugins.checkpoints import s3_case
from tests.plugins.checkpoints.s3_case import PART, change, content, source
from tests.plugins.checkpoints.s3_server import s3_server
from tests.plugins.checkpoints.store_kits import RUN, STAGE, S3Kit

credentials, server, kit = s3_case.credentials, s3_case.server, s3_case.kit


def test_a_large_file_goes_in_parts_and_says_its_hash(kit, server, tmp_path) -> None:
    for parts in (0, 0.5, 1, 1.5, 7, 20.25):
        file = source(tmp_path, content(parts), f"run-1/sft/iter_0000019.a1/{parts}")
        done: list[int] = []
        kit.backend().publish(Change("t", f"{parts}/state.json", "{}", None, (file,)), done.append)
        head = kit.client().head(file.key)
        assert head and head["Metadata"] == {"sha256": file.sha256} and head["ContentLength"] == file.size_bytes
        assert sum(done) == file.size_bytes
        assert kit.backend().download(file.key, None, threading.Event()) == file.sha256
    assert len([line for line in server.requests if line.startswith("PUT") and "partNumber" in line]) == 2 + 7 + 21


@pytest.mark.parametrize("setting", ["when_supported", "when_required"])
def test_parts_carry_checksums_unless_boto3_is_told_that_the_endpoint_takes_none(
    kit, tmp_path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", setting)
    client = S3Client(kit.place)
    sums: list[bool] = []
    client._client().meta.events.register(
        "before-send.s3.UploadPart", lambda request, **_: sums.append("x-amz-checksum-crc32" in request.headers)
    )
    file = source(tmp_path, content(3))
    S3Backend(client, part_bytes=PART, conditional=True).publish(change(file))
    assert sums == [setting == "when_supported"] * 3
    assert kit.backend().download(file.key, None, threading.Event()) == file.sha256


def test_an_upload_that_was_cut_goes_on_where_it_was_cut(kit, server, tmp_path) -> None:
    file, sent = source(tmp_path, content(12)), []

    def cut(what: str) -> None:
        sent.append(what)
        if len([one for one in sent if one.startswith("upload_part")]) > 5:
            raise StoreError("the pod is gone")

    with pytest.raises(StoreError, match="pod is gone"):
        kit.backend(cut).publish(change(file))
    assert kit.client().head(file.key) is None
    sent.clear()
    done: list[int] = []
    kit.backend(sent.append).publish(change(file), done.append)
    assert len([one for one in sent if one.startswith("upload_part")]) == 12 - 5
    assert sum(done) == file.size_bytes and not list(kit.client().uploads(""))
    assert kit.backend().download(file.key, None, threading.Event()) == file.sha256


def test_of_several_cut_uploads_the_older_ones_are_forgotten(kit, tmp_path) -> None:
    file = source(tmp_path, content(3))
    for _ in range(3):
        begin_upload(kit.client(), file.key, file.sha256)
    kit.backend().publish(change(file))
    assert not list(kit.client().uploads(""))
    assert kit.backend().download(file.key, None, threading.Event()) == file.sha256


def test_a_cut_upload_of_other_bytes_is_not_mistaken(kit, tmp_path) -> None:
    file = source(tmp_path, content(3))
    begin_upload(kit.client(), file.key, "0" * 64)
    with pytest.raises(StoreError, match="earlier upload got in the way: try again"):
        kit.backend().publish(change(file))
    kit.backend().publish(change(file))
    head = kit.client().head(file.key)
    assert head and head["Metadata"] == {"sha256": file.sha256}


def test_a_file_that_changes_while_it_is_sent_leaves_no_upload(kit, tmp_path) -> None:
    for parts in (0.5, 3):
        file = source(tmp_path, content(parts))
        file.path.write_bytes(content(parts))
        with pytest.raises(TornCheckpoint, match="changed after it was sealed"):
            kit.backend().publish(change(file))
        assert kit.client().head(file.key) is None and not list(kit.client().uploads(""))


def test_an_upload_whose_last_answer_was_lost_is_found_to_be_there(kit, tmp_path) -> None:
    real = kit.boto

    class Lossy:
        def __getattr__(self, name: str):
            return getattr(real, name)

        def complete_multipart_upload(self, **arguments):
            real.complete_multipart_upload(**arguments)
            raise ClientError({"Error": {"Code": "NoSuchUpload"}}, "CompleteMultipartUpload")

    kit.boto = Lossy()
    file = source(tmp_path, content(3))
    kit.backend().publish(change(file))
    assert kit.backend().download(file.key, None, threading.Event()) == file.sha256


def test_of_two_swaps_from_the_same_state_one_is_lost(kit) -> None:
    one, other = kit.backend(), kit.backend()
    one.publish(change())
    with pytest.raises(LostSwap):
        other.publish(change())
    found = one.read("run-1/sft/state.json")
    assert found
    second = replace(change(), tag=found[1])
    other.publish(second)
    with pytest.raises(LostSwap):
        one.publish(replace(change(), tag=found[1]))
    found = one.read("run-1/sft/state.json")
    assert found and found[0] == second.state.encode()
    kit.client().remove(["run-1/sft/state.json"])
    with pytest.raises(LostSwap):
        one.publish(replace(change(), tag=found[1]))


def test_parts_are_large_enough_that_ten_thousand_hold_the_file() -> None:
    assert part_size(0) == part_size(1) == part_size(10_000 * MIN_PART_BYTES) == MIN_PART_BYTES == 8 * 2**20
    for size_bytes in (10_000 * MIN_PART_BYTES + 1, 10**12, 5 * 2**40):
        assert -(-size_bytes // part_size(size_bytes)) <= 10_000
        assert part_size(size_bytes) % 2**20 == 0


def test_uploads_that_dead_writers_never_finished_go_at_the_next_put(kit, trainer) -> None:
    kit.open().claim(RUN, STAGE, 1)
    begin_upload(kit.client(), f"{RUN}/{STAGE}/iter_0000019.a1/iter_0000019/x")
    begin_upload(kit.client(), f"{RUN}/{STAGE}/iter_0000019.a9/iter_0000019/x")
    kit.open().put(trainer.sealed(39, attempt=2), trainer.save_dir)
    assert [key for key, _ in kit.client().uploads("")] == [f"{RUN}/{STAGE}/iter_0000019.a9/iter_0000019/x"]


@pytest.mark.parametrize("made_of", ["put", "feed"])
def test_a_put_after_a_failure_sends_nothing_twice(server, trainer, made_of: str) -> None:
    kit = S3Kit(s3_server(), part_bytes=64, feed_part_bytes=64)
    sent: list[str] = []
    down = [True]

    def before(what: str) -> None:
        sent.append(what)
        if down[0] and what.startswith("put_object") and "manifest" in what:
            raise StoreError("the network is down")

    store = kit.open(before)  # the same one again: what was fed in parts, only the process that sent it can tell
    trainer.save(19, export=True)
    upload = store.begin(RUN, STAGE, 19, 1) if made_of == "feed" else None
    who = {"run_id": RUN, "stage": STAGE, "attempt": 1, "token": 1}
    manifest = seal(trainer.save_dir, 19, **who, export=True, sink=upload.feed if upload else None)
    with pytest.raises(StoreError, match="network is down"):
        upload.publish(manifest, trainer.save_dir) if upload else store.put(manifest, trainer.save_dir)
    if upload:
        upload.abandon()
    assert any(what.startswith("upload_part") for what in sent)
    down[0] = False
    sent.clear()
    store.put(manifest, trainer.save_dir)
    assert not [what for what in sent if kit.sends_data(what)]
    kit.open().verify(manifest)


def test_a_file_that_grows_beyond_what_parts_can_hold_is_read_from_the_disk(kit, tmp_path) -> None:
    file = source(tmp_path, content(7))
    feed = S3Feed(kit.client(), Arrived(), None, part_bytes=PART, max_parts=3)
    data = memoryview(file.path.read_bytes())
    for offset in range(0, len(data), 1000):
        feed.feed(file.key, offset, data[offset : offset + 1000])
    feed.feed(file.key, len(data), memoryview(b""))
    assert not feed.holds(file) and not list(kit.client().uploads(""))
    kit.backend().publish(change(file), feed=feed)
    assert kit.backend().download(file.key, None, threading.Event()) == file.sha256


def test_a_feed_that_is_abandoned_leaves_neither_objects_nor_uploads(kit) -> None:
    feed = kit.backend().begin()
    for name, size in (("small", 10), ("large", 5 * PART)):
        feed.feed(name, 0, memoryview(bytes(size)))
        feed.feed(name, size, memoryview(b""))
    feed.feed("unfinished", 0, memoryview(bytes(3 * PART)))
    assert kit.names() == {"small", "large", "unfinished"}
    feed.abandon()
    assert kit.names() == set()


def test_memory_is_bounded_whatever_the_size_of_a_file(kit, tmp_path) -> None:
    """48 MiB in parts of 1 MiB, put, fed and fetched by a process of its own: the server's memory does not count."""
    size_bytes = 48 * 2**20
    with (tmp_path / "big").open("wb") as file:
        for _ in range(48):
            file.write(os.urandom(2**20))
    program = f"""
import hashlib, json, pathlib, sys, threading, tracemalloc
from plugins.checkpoints.stores.backend import Change, Source
from plugins.checkpoints.stores.s3 import S3Backend
from plugins.checkpoints.stores.s3_client import S3Client, S3Place
from plugins.checkpoints.stores.s3_send import Sender
path = pathlib.Path({str(tmp_path / "big")!r})
digest = hashlib.sha256(path.read_bytes()).hexdigest()
client = S3Client(S3Place({kit.place.bucket!r}, "", {kit.place.endpoint!r}, "us-east-1"))
backend = S3Backend(client, conditional=True, part_bytes=2**20, feed_part_bytes=2**20)
client.head("warm-up")
peaks = []
def measure(act):
    tracemalloc.start()
    act()
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
def feed():
    feed, offset = backend.begin(), 0
    with path.open("rb") as file:
        while chunk := file.read(2**18):
            feed.feed("fed", offset, memoryview(chunk))
            offset += len(chunk)
    feed.feed("fed", offset, memoryview(b""))
measure(lambda: backend.publish(Change("t", "state.json", "{{}}", None, (Source("put", path, {size_bytes}, digest),))))
measure(feed)
measure(lambda: print(backend.download("put", pathlib.Path({str(tmp_path / "back")!r}), threading.Event()) == digest))
print(json.dumps(peaks))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=Path.cwd())
    assert run.returncode == 0, run.stderr
    good, peaks = run.stdout.splitlines()
    assert good == "True"
    assert all(peak < 16 * 2**20 for peak in json.loads(peaks)), peaks


def test_a_download_that_breaks_off_goes_on_where_it_broke(server, tmp_path) -> None:
    kit = S3Kit(s3_server())
    file = source(tmp_path, os.urandom(3 * 2**20))
    kit.backend().publish(change(file))
    server.requests.clear()
    breaks = [1_500_000, 700_000]
    server.change = lambda method, path, body: (
        body[: breaks.pop()] if method == "GET" and path.endswith("/x?") and breaks else body
    )
    done: list[int] = []
    digest = kit.backend().download(file.key, tmp_path / "back", threading.Event(), done.append)
    assert digest == file.sha256 == sha256_of((tmp_path / "back").read_bytes())
    assert sum(done) == file.size_bytes and len(server.requests) == 3


def test_a_download_that_always_breaks_off_ends_with_an_error(kit, server, tmp_path) -> None:
    file = source(tmp_path, content(3))
    kit.backend().publish(change(file))
    server.change = lambda method, path, body: b"" if method == "GET" else body
    with pytest.raises(StoreError, match=r"cannot be reached or does not answer|ended after"):
        kit.backend().download(file.key, None, threading.Event())


def test_a_key_that_is_not_there_is_a_torn_checkpoint(kit) -> None:
    with pytest.raises(TornCheckpoint, match=r"some/prefix/nowhere: is missing from the store"):
        kit.backend().download("nowhere", None, threading.Event())


def test_the_check_proves_conditions_and_leaves_nothing(kit, server, caplog) -> None:
    ObjectStore(S3Backend(kit.client())).check()
    assert kit.names() == set() and not caplog.records
    verbs = {line.split(" ")[0] for line in server.requests}
    assert verbs >= {"PUT", "GET", "POST"}


@pytest.mark.parametrize("how", ["ignores", "refuses", "refuses what is right"])
def test_an_endpoint_without_conditions_is_found_out_and_said_once(trainer, server, caplog, how: str) -> None:
    kit = S3Kit(s3_server(conditions=how != "ignores"), conditional=None)
    if how == "refuses":
        real = kit.boto

        class Old:
            def __getattr__(self, name: str):
                return getattr(real, name)

            def put_object(self, **arguments):
                if {"IfMatch", "IfNoneMatch"} & set(arguments):
                    raise ClientError({"Error": {"Code": "NotImplemented"}}, "PutObject")
                return real.put_object(**arguments)

        kit.boto = Old()
    if how == "refuses what is right":
        real = kit.boto

        class Odd:
            def __getattr__(self, name: str):
                return getattr(real, name)

            def put_object(self, **arguments):
                return real.put_object(**{**arguments, **({"IfMatch": "'no'"} if "IfMatch" in arguments else {})})

        kit.boto = Odd()
    store = kit.open()
    store.check()
    store.claim(RUN, STAGE, 1)
    store.put(trainer.sealed(19), trainer.save_dir)
    assert len([one for one in caplog.records if "ignores conditions" in one.message]) == 1
    kit.open().claim(RUN, STAGE, 2)
    with pytest.raises(Fenced):
        store.put(trainer.sealed(39), trainer.save_dir)
    assert [manifest.iteration for manifest in kit.open().list(RUN, STAGE)] == [19]


def test_without_conditions_an_overwritten_state_is_noticed(kit) -> None:
    def overwrite(_s: float) -> None:
        kit.client().put("run-1/sft/state.json", b'{"by": "another"}')

    backend = S3Backend(kit.client(), conditional=False, sleep=overwrite)
    with pytest.raises(LostSwap, match="overwritten by another writer"):
        backend.publish(change())
    with pytest.raises(LostSwap, match="changed since it was read"):
        backend.publish(change())


def test_layout_of_the_pieces_is_what_the_trainer_wrote(kit, trainer) -> None:
    manifest = trainer.sealed(19)
    kit.open().put(manifest, trainer.save_dir)
    folder = f"{RUN}/{STAGE}/iter_0000019.a1"
    assert kit.names() == {
        f"{RUN}/{STAGE}/state.json",
        f"{folder}/manifest.json",
        *(f"{folder}/{entry.path}" for entry in manifest.files),
    }
    assert f"{folder}/{layout.dataset_state_file(Path(), 19)}" in kit.names()
