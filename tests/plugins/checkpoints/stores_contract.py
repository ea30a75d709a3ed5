"""What every checkpoint store keeps, whatever it is made of. `test_store_contract.py` runs this for each of them."""

import threading
from collections.abc import Callable, Iterator

import pytest

from plugins.checkpoints.manifest import Manifest, read_local
from plugins.checkpoints.restore import restore
from plugins.checkpoints.stores import CheckpointStore
from plugins.errors import Fenced, StoreError, TornCheckpoint, UserError
from plugins.slime import layout
from tests.plugins.checkpoints.store_kits import RUN, STAGE, Kit


class Dead(StoreError):
    """The process is dead: this operation, and every one after it, does not happen."""


class DiesBefore:
    """Lets a number of operations through; `done` says whether none was stopped."""

    def __init__(self, operations: int) -> None:
        self.left, self.done = operations, True
        self._lock = threading.Lock()

    def __call__(self, _what: str) -> None:
        with self._lock:
            self.left -= 1
            if self.left < 0:
                self.done = False
                raise Dead("killed by the test")


def deaths(kit: Kit, act: Callable[[CheckpointStore], object], *, at_least: int) -> Iterator[bool]:
    """Do `act` with a store that dies before its first operation, its second, and so on; yield whether it got through.

    It is done again and again in the same place, so it begins each time from what the death before left there.
    """
    for operations in range(1000):
        dies = DiesBefore(operations)
        try:
            act(kit.open(dies))
        except StoreError:
            assert not dies.done, "failed without having been stopped"
        yield dies.done
        if dies.done:
            assert operations >= at_least
            return
    raise AssertionError("it never got through")


def iterations(store: CheckpointStore) -> list[int]:
    return [manifest.iteration for manifest in store.list(RUN, STAGE)]


def whole(store: CheckpointStore) -> list[int]:
    """Iterations that are listed; each is verified."""
    for manifest in store.list(RUN, STAGE):
        store.verify(manifest)
    return iterations(store)


class Look:
    """What the store offers after each of many deaths; files are read only when the offer is another one, or often."""

    def __init__(self, kit: Kit) -> None:
        self._kit, self._looks, self._seen = kit, 0, []

    def __call__(self) -> list[int]:
        store = self._kit.open()
        found = store.list(RUN, STAGE)
        assert store.latest(RUN, STAGE) in found
        if found != self._seen or self._looks % 8 == 0:
            whole(store)
        self._looks, self._seen = self._looks + 1, found
        return [manifest.iteration for manifest in found]


def only_listed(kit: Kit) -> None:
    """Nothing is in the store but what is listed and what the store keeps for itself."""
    store = kit.open()
    wanted = {kit.key(manifest, entry.path) for manifest in store.list(RUN, STAGE) for entry in manifest.files}
    found = {name for name in kit.names() if name.endswith((".pt", ".distcp", ".metadata", ".safetensors"))}
    assert found == {name for name in wanted if name in found} and len(wanted) >= len(found)


class StoreContract:
    """Needs the fixtures `kit`, `trainer`, `second`, `tree` and `tmp_path`."""

    def test_a_checkpoint_comes_back_byte_for_byte_with_the_tracker(self, kit, trainer, tmp_path, tree) -> None:
        manifest = trainer.sealed(19, export=True)
        store, done = kit.open(), []
        uri = store.put(manifest, trainer.save_dir, done.append)
        assert uri == store.uri_of(manifest) and uri.startswith(store.uri.partition("?")[0])
        assert sum(done) == manifest.size_bytes
        again = kit.open()
        assert again.latest(RUN, STAGE) == manifest and again.list(RUN, STAGE) == [manifest]
        done.clear()
        again.verify(manifest, done.append)
        assert sum(done) == manifest.size_bytes
        done.clear()
        again.get(manifest, tmp_path / "pod", done.append)
        assert sum(done) == manifest.size_bytes
        assert tree(tmp_path / "pod") == tree(trainer.save_dir)
        assert layout.read_tracker(tmp_path / "pod") == 19

    def test_an_empty_store_has_nothing_and_the_check_leaves_nothing(self, kit) -> None:
        store = kit.open()
        store.check()
        assert store.latest(RUN, STAGE) is None and store.list(RUN, STAGE) == []
        assert kit.names() == set()

    def test_the_list_is_newest_first_and_an_older_upload_does_not_move_the_pointer_back(self, kit, trainer) -> None:
        store = kit.open()
        manifests = {number: trainer.sealed(number) for number in (19, 39, 9)}
        for manifest in manifests.values():
            store.put(manifest, trainer.save_dir)
        assert iterations(store) == [39, 19, 9]
        assert store.latest(RUN, STAGE) == manifests[39]

    def test_only_a_part_can_be_fetched_and_is_no_checkpoint(self, kit, trainer, tmp_path) -> None:
        manifest, store = trainer.sealed(19, export=True), kit.open()
        store.put(manifest, trainer.save_dir)
        for _ in range(2):
            store.get(manifest, tmp_path / "init", only=lambda path: path.startswith("hf/"))
            assert (tmp_path / "init" / "hf" / "19" / "model.safetensors").exists()
        assert layout.read_tracker(tmp_path / "init") is None and read_local(tmp_path / "init", 19) is None
        assert not layout.iteration_dir(tmp_path / "init", 19).exists()
        with pytest.raises(StoreError, match="no such file"):
            store.get(manifest, tmp_path / "init", only=lambda _path: False)

    def test_what_is_there_with_equal_hashes_is_not_sent_again(self, kit, trainer) -> None:
        seen: list[str] = []
        store = kit.open(seen.append)
        store.put(trainer.sealed(19), trainer.save_dir)
        assert any(kit.sends_data(what) for what in seen)
        for attempt, mark in ((1, "sealed again"), (2, "by the next attempt"), (2, "by the next attempt")):
            seen.clear()
            again, done = trainer.sealed(19, attempt=attempt, mark=mark), []
            store.put(again, trainer.save_dir, done.append)
            assert not any(kit.sends_data(what) for what in seen)
            assert sum(done) == again.size_bytes
            assert kit.open().list(RUN, STAGE) == [again] and store.latest(RUN, STAGE) == again
            store.verify(again)
        with pytest.raises(Fenced):
            store.put(trainer.sealed(19), trainer.save_dir)
        only_listed(kit)

    def test_other_bytes_of_the_same_iteration_replace_it(self, kit, trainer, second) -> None:
        store = kit.open()
        store.put(trainer.sealed(19), trainer.save_dir)
        for attempt, seed in ((2, "other"), (2, "and again")):
            second.save_dir = second.save_dir.with_name(seed)
            other = second.sealed(19, seed=seed, attempt=attempt)
            store.put(other, second.save_dir)
            assert store.list(RUN, STAGE) == [other]
            store.verify(other)
            only_listed(kit)

    def test_a_stored_copy_that_lost_a_file_is_stored_again(self, kit, trainer) -> None:
        manifest, store = trainer.sealed(19), kit.open()
        store.put(manifest, trainer.save_dir)
        kit.write(kit.key(manifest, "iter_0000019/common.pt"), None)
        assert store.latest(RUN, STAGE) is None
        store.put(manifest, trainer.save_dir)
        store.verify(manifest)
        assert store.latest(RUN, STAGE) == manifest

    def test_data_that_changed_after_the_seal_is_never_stored(self, kit, trainer) -> None:
        manifest, store = trainer.sealed(19), kit.open()
        path = layout.iteration_dir(trainer.save_dir, 19) / "__0_1.distcp"
        path.write_bytes(bytes(reversed(path.read_bytes())))
        with pytest.raises(TornCheckpoint, match=r"__0_1\.distcp.*changed after it was sealed"):
            store.put(manifest, trainer.save_dir)
        path.unlink()
        with pytest.raises(TornCheckpoint, match="missing from"):
            store.put(manifest, trainer.save_dir)
        assert store.latest(RUN, STAGE) is None and store.list(RUN, STAGE) == []

    def test_a_stale_token_is_refused(self, kit, trainer) -> None:
        manifest, store = trainer.sealed(19), kit.open()
        store.claim(RUN, STAGE, 2)
        store.claim(RUN, STAGE, 2)
        with pytest.raises(Fenced, match="token 1 was superseded by token 2"):
            store.put(manifest, trainer.save_dir)
        with pytest.raises(Fenced):
            kit.open().claim(RUN, STAGE, 1)
        with pytest.raises(Fenced):
            store.begin(RUN, STAGE, 19, 1)
        assert store.list(RUN, STAGE) == []
        store.claim(RUN, "rl", 1)  # another stage is another claim

    def test_an_attempt_superseded_at_any_moment_of_a_put_publishes_before_or_never(self, kit, trainer) -> None:
        refused = 0
        for operations in range(0, 400, 2):
            token, number = 2 * operations + 2, 100 + operations
            left = [operations]

            def take_over(what: str, left: list[int] = left, token: int = token) -> None:
                left[0] -= kit.is_open(what)
                if left[0] == -1:
                    left[0] -= 1
                    kit.open().claim(RUN, STAGE, token + 1)

            late = trainer.sealed(number, attempt=token)
            try:
                kit.open(take_over).put(late, trainer.save_dir)
            except Fenced:
                refused += 1
                assert iterations(kit.open()) == []
            else:
                assert whole(kit.open()) == [number]
                kit.open().delete(late)
                if left[0] >= 0:
                    break  # it was through before it could be superseded
        else:
            raise AssertionError("it never got through")
        assert refused >= 2

    def test_of_two_writers_only_the_newer_publishes(self, kit, trainer, second) -> None:
        old, new = trainer.sealed(39), second.sealed(39, seed="new", attempt=2)
        for store, token in ((kit.open(), 1), (kit.open(), 2)):
            store.claim(RUN, STAGE, token)
        results: dict[int, str] = {}
        start = threading.Barrier(2)

        def write(manifest: Manifest, save_dir) -> None:
            start.wait(timeout=30)
            try:
                kit.open().put(manifest, save_dir)
                results[manifest.token] = "published"
            except Fenced:
                results[manifest.token] = "fenced"

        threads = [
            threading.Thread(target=write, args=one) for one in ((old, trainer.save_dir), (new, second.save_dir))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert results == {1: "fenced", 2: "published"}
        assert kit.open().list(RUN, STAGE) == [new]
        kit.open().verify(new)

    def test_writers_of_one_attempt_that_race_leave_every_checkpoint_whole(self, kit, trainer) -> None:
        manifests = [trainer.sealed(number) for number in (9, 19, 29, 39)]
        errors: list[BaseException] = []
        start = threading.Barrier(len(manifests))

        def write(manifest: Manifest) -> None:
            start.wait(timeout=30)
            try:
                kit.open().put(manifest, trainer.save_dir)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=write, args=(manifest,)) for manifest in manifests]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert not errors
        assert whole(kit.open()) == [39, 29, 19, 9]

    def test_what_is_set_aside_is_not_listed_and_its_data_is_kept(self, kit, trainer) -> None:
        store = kit.open()
        for number in (19, 39):
            store.put(trainer.sealed(number), trainer.save_dir)
        broken = store.list(RUN, STAGE)[0]
        for _ in range(2):
            store.set_aside(broken, "to see")
            assert iterations(kit.open()) == [19]
        with pytest.raises(TornCheckpoint, match="not in the store any more"):
            store.get(broken, trainer.save_dir)
        kept = {name for name in kit.names() if "iter_0000039" in name}
        assert len(kept) > len(broken.files)
        assert any(b"to see" in kit.read(name) for name in kept if name.endswith("broken.json"))
        store.put(broken, trainer.save_dir)  # the trainer's copy may be good
        assert whole(kit.open()) == [39, 19]
        store.put(trainer.sealed(59, attempt=2), trainer.save_dir)
        assert {name for name in kit.names() if name.endswith("broken.json")}  # no leftover, whatever its token

    def test_delete_is_for_good_and_the_pointer_goes_back(self, kit, trainer) -> None:
        store = kit.open()
        old, new = (trainer.sealed(number) for number in (19, 39))
        for manifest in (old, new):
            store.put(manifest, trainer.save_dir)
        for _ in range(2):
            store.delete(new)
        assert store.latest(RUN, STAGE) == old
        assert not [name for name in kit.names() if "iter_0000039" in name]
        store.delete(old)
        assert store.latest(RUN, STAGE) is None
        assert not [name for name in kit.names() if "iter_" in name]
        store.put(new, trainer.save_dir)
        assert whole(kit.open()) == [39]

    @pytest.mark.parametrize(
        "state", [None, b"", b"{", b"[]", b'{"iteration": 39}', b'{"iteration": 99, "manifest": "x"}']
    )
    def test_a_lost_or_damaged_state_costs_nothing(self, kit, trainer, state: bytes | None) -> None:
        store = kit.open()
        for number in (19, 39):
            store.put(trainer.sealed(number), trainer.save_dir)
        kit.damage_state(state)
        assert store.latest(RUN, STAGE) == store.list(RUN, STAGE)[0]
        assert whole(kit.open()) == [39, 19]
        store.put(trainer.sealed(59), trainer.save_dir)
        assert whole(kit.open()) == [59, 39, 19]

    def test_a_manifest_that_is_damaged_is_left_out_and_can_be_stored_again(self, kit, trainer) -> None:
        store = kit.open()
        manifests = {number: trainer.sealed(number) for number in (9, 19, 39)}
        for manifest in manifests.values():
            store.put(manifest, trainer.save_dir)
        newest = kit.key(manifests[39], "manifest.json")
        text = kit.read(newest)
        kit.write(newest, text[:-30])
        kit.write(kit.key(manifests[19], "manifest.json"), None)
        assert iterations(kit.open()) == [9]
        store.put(manifests[39], trainer.save_dir)
        assert whole(kit.open()) == [39, 9]

    def test_a_file_that_is_damaged_is_named_and_the_save_dir_is_as_it_was(self, kit, trainer, second, tree) -> None:
        manifest, store = trainer.sealed(19), kit.open()
        store.put(manifest, trainer.save_dir)
        second.save(9)
        before = tree(second.save_dir)
        for entry in manifest.files:
            name = kit.key(manifest, entry.path)
            good = kit.read(name)
            for damaged in (good[:-1], bytes([good[0] ^ 1]) + good[1:], None):
                kit.write(name, damaged)
                for read in (lambda: store.get(manifest, second.save_dir), lambda: store.verify(manifest)):
                    with pytest.raises(TornCheckpoint, match=name.rpartition("/")[2]):
                        read()
                assert tree(second.save_dir) == before
            kit.write(name, good)
        store.verify(manifest)

    def test_a_restore_takes_the_one_before_when_the_newest_is_broken(self, kit, trainer, tmp_path) -> None:
        store = kit.open()
        for number in (19, 39):
            store.put(trainer.sealed(number), trainer.save_dir)
        name = kit.key(store.list(RUN, STAGE)[0], "iter_0000039/__0_0.distcp")
        kit.write(name, kit.read(name)[::-1])
        store.claim(RUN, STAGE, 2)
        restored = restore(store, RUN, STAGE, tmp_path / "pod")
        assert restored and restored.iteration == 19 and iterations(kit.open()) == [19]

    def test_names_cannot_lead_out_of_the_store(self, kit) -> None:
        store = kit.open()
        for run_id, stage in (("../up", "sft"), ("run", "../../x"), ("/abs", "sft"), ("run", "")):
            for ask in (store.list, store.latest, lambda *of: store.claim(*of, 1), lambda *of: store.begin(*of, 1, 1)):
                with pytest.raises(UserError):
                    ask(run_id, stage)
        assert kit.names() == set()

    def test_a_publisher_that_dies_at_any_operation_leaves_the_old_checkpoint_or_the_new_one(
        self, kit, trainer, second
    ) -> None:
        """A new iteration, then other bytes of it, each time from where the last one died."""
        kit.open().put(second.sealed(19, mark="old"), second.save_dir)
        new = trainer.sealed(39, mark="new")
        seen, look = [], Look(kit)
        for through in deaths(kit, lambda store: store.put(new, trainer.save_dir), at_least=4):
            seen.append(look())
            assert seen[-1] in ([19], [39, 19])
            if seen[-1] == [39, 19] and not through:
                break  # what a put does after that has nothing left to do
        assert seen[0] == [19] and seen[-1] == [39, 19] and seen == sorted(seen, key=len)
        other = second.sealed(39, seed="other", attempt=2, mark="other")
        for _ in deaths(kit, lambda store: store.put(other, second.save_dir), at_least=4):
            assert look() == [39, 19]
        assert kit.open().list(RUN, STAGE)[0] == other
        kit.open().put(trainer.sealed(59, attempt=3), trainer.save_dir)  # the next attempt clears what the dead left
        assert whole(kit.open()) == [59, 39, 19]
        only_listed(kit)

    @pytest.mark.parametrize("verb", ["delete", "set_aside", "claim"])
    def test_dying_while_the_index_changes_never_shows_half_a_checkpoint(self, kit, trainer, verb: str) -> None:
        store = kit.open()
        for number in (19, 39):
            store.put(trainer.sealed(number), trainer.save_dir)
        newest, look = store.list(RUN, STAGE)[0], Look(kit)
        acts = {
            "delete": lambda store: store.delete(newest),
            "set_aside": lambda store: store.set_aside(newest, "to see"),
            "claim": lambda store: store.claim(RUN, STAGE, 2),
        }
        for through in deaths(kit, acts[verb], at_least=1):
            assert look() in ([39, 19], [19])
            if through:
                assert whole(kit.open()) == ([39, 19] if verb == "claim" else [19])
        if verb == "delete":
            assert not [name for name in kit.names() if "iter_0000039" in name and "deleted" not in name]
