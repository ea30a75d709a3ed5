"""What the object store adds to the contract: places, leftovers, a lost state, a lost answer."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from plugins.checkpoints.disk import sha256_of
from plugins.checkpoints.seal import seal
from plugins.checkpoints.stores.backend import Change, LostSwap
from plugins.checkpoints.stores.objects import ObjectStore
from plugins.checkpoints.stores.places import Places
from plugins.errors import Fenced, StoreError, TornCheckpoint
from tests.plugins.checkpoints.store_kits import RUN, STAGE, VolumeKit

HERE = f"{RUN}/{STAGE}"


class Backend:
    """A volume that does something of its own when it publishes."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.publish = inner.publish

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@pytest.fixture
def kit(tmp_path: Path) -> VolumeKit:
    return VolumeKit(tmp_path)


def state(kit: VolumeKit) -> dict[str, Any]:
    found = kit.backend().read(f"{HERE}/state.json")
    assert found
    return json.loads(found[0])


def places(kit: VolumeKit) -> set[str]:
    return {name.split("/")[2] for name in kit.names() if "/iter_" in name}


def test_the_store_lies_as_documented(kit, trainer) -> None:
    manifest = trainer.sealed(19, export=True, attempt=2)
    kit.open().put(manifest, trainer.save_dir)
    place = f"{HERE}/iter_0000019.a2"
    assert kit.names() - {f"{place}/{entry.path}" for entry in manifest.files} == {
        f"{place}/manifest.json",
        *(name for name in kit.names() if "/state." in name),
    }
    text = kit.read(f"{place}/manifest.json")
    entry = {
        "iteration": 19,
        "token": 2,
        "place": "iter_0000019.a2",
        "manifest": sha256_of(text),
        "file": "manifest.json",
    }
    assert state(kit) == {
        "format": 1,
        "token": 2,
        "change": state(kit)["change"],
        "checkpoints": [entry],
        "broken": [],
    }


def test_a_put_that_failed_sends_only_what_is_missing(kit, trainer) -> None:
    manifest = trainer.sealed(19)
    sent: list[str] = []

    def fails(what: str) -> None:
        if kit.sends_data(what):
            sent.append(what)
            if len(sent) == 4:
                raise StoreError("the network is down")

    store = kit.open(fails)
    with pytest.raises(StoreError, match="network is down"):
        store.put(manifest, trainer.save_dir)
    whole = set(sent[:2])  # two at once: the third may have been under way
    sent.clear()
    done: list[int] = []
    sent += ["", "", "", ""]
    store.put(manifest, trainer.save_dir, done.append)
    assert not whole & set(sent) and sum(done) == manifest.size_bytes
    kit.open().verify(manifest)


def test_what_dead_writers_left_goes_at_the_next_put_and_what_a_newer_one_has_stays(kit, trainer) -> None:
    dead = trainer.sealed(39)
    backend = Backend(kit.backend())
    backend.publish = lambda change, progress=None, feed=None: kit.backend().publish(
        Change(change.title, change.state_key, change.state, "gone", change.files, change.texts), progress
    )
    kit.open().claim(RUN, STAGE, 1)
    with pytest.raises(StoreError):
        ObjectStore(backend, sleep=lambda _s: None).put(dead, trainer.save_dir)
    assert places(kit) == {"iter_0000039.a1"}  # whole, with a manifest; but the state does not name it
    assert kit.open().list(RUN, STAGE) == []
    newer = kit.root / HERE / "iter_0000099.a9" / "iter_0000099" / "x"
    newer.parent.mkdir(parents=True)
    newer.touch()
    kit.open().put(trainer.sealed(59), trainer.save_dir)
    assert places(kit) == {"iter_0000039.a1", "iter_0000059.a1", "iter_0000099.a9"}  # a writer of token 1 may live
    kit.open().put(trainer.sealed(79, attempt=2), trainer.save_dir)
    assert places(kit) == {"iter_0000059.a1", "iter_0000079.a2", "iter_0000099.a9"}


def test_what_a_store_gave_up_goes_with_its_next_checkpoint_unless_somebody_writes_there(kit, trainer) -> None:
    failing = [True]

    def fails(what: str) -> None:
        if failing[0] and "__0_1.distcp" in what:
            raise StoreError("the network is down")

    store = kit.open(fails)
    given_up, other = trainer.sealed(39), trainer.sealed(59)
    with pytest.raises(StoreError):
        store.put(given_up, trainer.save_dir)
    upload = store.begin(RUN, STAGE, 79, 1)
    upload.feed("iter_0000079/x", 0, memoryview(b"x"))
    assert places(kit) == {"iter_0000039.a1", "iter_0000079.a1"}
    failing[0] = False
    store.put(other, trainer.save_dir)
    assert places(kit) == {"iter_0000059.a1", "iter_0000079.a1"}
    upload.abandon()
    assert places(kit) == {"iter_0000059.a1"}


def test_places_are_not_removed_while_written_nor_taken_while_removed() -> None:
    here = Places()
    assert here.take(["a", "b"]) == "a" == here.take(["a", "b"])
    assert here.begin_removing(["a", "b", "c"], lambda name, _: name != "c") == ["b"]
    assert here.take(iter(["b", "c"])) == "c"
    here.end_removing(["b"])
    assert here.take(["b"]) == "b"
    here.leave(["a"])
    assert here.begin_removing(["a"]) == []
    here.leave(["a"], given_up=["a"])
    assert here.begin_removing(["a", "b"], lambda _, given_up: given_up) == ["a"]


def test_when_the_state_is_lost_the_token_does_not_fall_back(kit, trainer) -> None:
    kit.open().put(trainer.sealed(19, attempt=3), trainer.save_dir)
    kit.damage_state(None)
    store = kit.open()
    with pytest.raises(Fenced, match="token 2 was superseded by token 3"):
        store.put(trainer.sealed(39, attempt=2), trainer.save_dir)
    with pytest.raises(Fenced):
        store.claim(RUN, STAGE, 2)
    store.claim(RUN, STAGE, 3)
    assert [entry["place"] for entry in state(kit)["checkpoints"]] == ["iter_0000019.a3"]


def test_when_the_state_is_lost_what_was_broken_or_is_not_whole_does_not_come_back(kit, trainer, caplog) -> None:
    store = kit.open()
    manifests = [trainer.sealed(number) for number in (9, 19, 29, 39)]
    for manifest in manifests:
        store.put(manifest, trainer.save_dir)
    store.set_aside(manifests[3], "to see")
    kit.write(kit.key(manifests[2], "iter_0000029/common.pt"), None)
    kit.write(kit.key(manifests[1], "manifest.json"), b"{")
    kit.damage_state(b"")
    assert kit.open().list(RUN, STAGE) == [manifests[0]]
    assert "what is listed now are the places that are whole" in caplog.text
    kit.open().put(trainer.sealed(59, attempt=2), trainer.save_dir)  # keeps what may be worth a look
    assert {broken["place"] for broken in state(kit)["broken"]} == {
        "iter_0000019.a1",
        "iter_0000029.a1",
        "iter_0000039.a1",
    }
    assert places(kit) >= {"iter_0000019.a1", "iter_0000029.a1", "iter_0000039.a1"}


def test_when_the_state_is_lost_the_largest_token_of_an_iteration_wins(kit, trainer, second) -> None:
    kit.open().put(trainer.sealed(19), trainer.save_dir)
    new = second.sealed(19, seed="other", attempt=2)
    blind = kit.open(lambda what: _refuse(what.startswith("remove ") and "iter_0000019.a1" in what))
    blind.put(new, second.save_dir)
    assert places(kit) == {"iter_0000019.a1", "iter_0000019.a2"}
    kit.damage_state(None)
    assert kit.open().list(RUN, STAGE) == [new]


def _refuse(yes: bool) -> None:
    if yes:
        raise StoreError("no")


@pytest.mark.parametrize("what", ["state", "manifest"])
def test_what_a_newer_trainstack_wrote_is_an_error_and_not_passed_over(kit, trainer, what: str) -> None:
    manifest = trainer.sealed(19)
    kit.open().put(manifest, trainer.save_dir)
    if what == "state":
        kit.damage_state(json.dumps({**state(kit), "format": 2}).encode())
    else:
        name = kit.key(manifest, "manifest.json")
        kit.write(name, kit.read(name).replace(b'"format": 1', b'"format": 2'))
        kit.damage_state(None)
    for ask in (lambda: kit.open().list(RUN, STAGE), lambda: kit.open().put(manifest, trainer.save_dir)):
        with pytest.raises(StoreError, match="install a newer one") as caught:
            ask()
        assert not isinstance(caught.value, TornCheckpoint)


def test_a_manifest_that_is_not_the_one_that_was_published_is_left_out(kit, trainer) -> None:
    """Whole and of this iteration, but not what the state names: somebody copied it there."""
    manifest, other = trainer.sealed(19, mark="published"), trainer.sealed(19, mark="another")
    kit.open().put(manifest, trainer.save_dir)
    kit.write(kit.key(manifest, "manifest.json"), other.to_json().encode())
    assert kit.open().list(RUN, STAGE) == []
    kit.open().put(manifest, trainer.save_dir)
    assert kit.open().list(RUN, STAGE) == [manifest]


def test_a_newer_attempt_fences_off_the_older_one_before_it_sends_anything(kit, trainer) -> None:
    seen: list[int] = []
    newer = kit.open(lambda what: seen.append(state(kit)["token"]) if kit.sends_data(what) else None)
    kit.open().put(trainer.sealed(9), trainer.save_dir)
    newer.put(trainer.sealed(19, attempt=2), trainer.save_dir)
    assert set(seen) == {2}


def test_what_is_removed_loses_its_manifest_first(kit, trainer) -> None:
    manifest, drops = trainer.sealed(19), []
    backend = Backend(kit.backend())
    backend.publish = lambda change, *more, **named: (
        drops.append(change.drop),
        backend.inner.publish(change, *more, **named),
    )
    store = ObjectStore(backend)
    store.put(manifest, trainer.save_dir)
    store.delete(manifest)
    place = f"{HERE}/iter_0000019.a1"
    assert drops[-1] == (f"{place}/manifest.json", f"{place}/")


def test_an_answer_that_was_lost_on_the_way_is_found_out(kit, trainer) -> None:
    backend = Backend(kit.backend())

    def publish(change: Change, progress=None, feed=None) -> None:
        backend.inner.publish(change, progress, feed=feed)
        raise LostSwap("a retry found the state changed, by the first try")

    backend.publish = publish
    manifest = trainer.sealed(19)
    ObjectStore(backend, sleep=lambda _s: None).put(manifest, trainer.save_dir)
    assert kit.open().list(RUN, STAGE) == [manifest] and places(kit) == {"iter_0000019.a1"}


def test_a_state_that_never_stands_still_is_an_error_after_bounded_tries(kit, trainer) -> None:
    backend, pauses = Backend(kit.backend()), []

    def publish(change: Change, progress=None, feed=None) -> None:
        raise LostSwap("somebody was faster")

    backend.publish = publish
    with pytest.raises(StoreError, match=r"changed by others \d+ times in a row"):
        ObjectStore(backend, sleep=pauses.append).put(trainer.sealed(19), trainer.save_dir)
    assert 5 < len(pauses) < 20 and sum(pauses) < 30


def test_an_upload_whose_publish_failed_is_not_sent_again(kit, trainer) -> None:
    sent: list[str] = []
    down = [False]

    def before(what: str) -> None:
        sent.append(what)
        if down[0] and "state." in what:
            raise StoreError("the network is down")

    store = kit.open(before)
    trainer.save(19)
    upload = store.begin(RUN, STAGE, 19, 1)
    manifest = seal(trainer.save_dir, 19, run_id=RUN, stage=STAGE, attempt=1, token=1, sink=upload.feed)
    down[0] = True
    with pytest.raises(StoreError, match="network is down"):
        upload.publish(manifest, trainer.save_dir)
    upload.abandon()
    down[0] = False
    sent.clear()
    assert store.begin(RUN, STAGE, 19, 1) is None  # something is there, so `put` shall look at it
    store.put(manifest, trainer.save_dir)
    assert not [what for what in sent if kit.sends_data(what)]
    kit.open().verify(manifest)


def test_a_delete_that_cannot_remove_the_data_says_so_and_the_next_one_does(kit, trainer) -> None:
    manifest = trainer.sealed(19)
    stuck = [True]
    store = kit.open(lambda what: _refuse(stuck[0] and what.startswith("remove ") and what.endswith("19.a1")))
    store.put(manifest, trainer.save_dir)
    with pytest.raises(StoreError, match=r"is not listed, but .* files stay: delete it again"):
        store.delete(manifest)
    assert store.list(RUN, STAGE) == [] and places(kit)
    stuck[0] = False
    store.delete(manifest)
    assert not places(kit)


def test_retention_beside_uploads_never_takes_what_is_written(kit, trainer) -> None:
    """One thread publishes and deletes, another one publishes the same iterations again: what is listed is whole."""
    store = ObjectStore(kit.backend())  # with real pauses: these two get in each other's way all the time
    manifests = [trainer.sealed(number) for number in (9, 19)]
    errors: list[BaseException] = []
    stop = threading.Event()

    def prune() -> None:
        while not stop.is_set():
            for manifest in manifests:
                try:
                    store.delete(manifest)
                except BaseException as error:
                    errors.append(error)

    thread = threading.Thread(target=prune)
    thread.start()
    try:
        for _ in range(10):
            for manifest in manifests:
                store.put(manifest, trainer.save_dir)
    finally:
        stop.set()
        thread.join(timeout=30)
    assert not [error for error in errors if "delete it again" not in str(error) and "in a row" not in str(error)]
    for manifest in store.list(RUN, STAGE):
        store.verify(manifest)
