"""What a store keeps that takes a checkpoint while it is sealed. `test_store_contract.py` runs this for each."""

import pytest

from plugins.checkpoints.seal import seal
from plugins.checkpoints.stores import CheckpointStore
from plugins.errors import Fenced, StoreError
from tests.plugins.checkpoints.store_kits import RUN, STAGE
from tests.plugins.checkpoints.stores_contract import Look, deaths, only_listed, whole


def fed(store: CheckpointStore, trainer, iteration: int, token: int = 1, **more):
    """Seal an iteration and feed it to an upload of the store."""
    trainer.save(iteration, export=True)
    upload = store.begin(RUN, STAGE, iteration, token, more.get("progress"))
    assert upload
    who = {"run_id": RUN, "stage": STAGE, "attempt": token, "token": token}
    sink = more.get("sink") or upload.feed
    return upload, seal(trainer.save_dir, iteration, **who, export=True, sink=sink)


class UploadsContract:
    """Needs the fixtures `kit`, `trainer`, `tree` and `tmp_path`."""

    def test_what_is_fed_while_it_is_sealed_is_the_same_as_what_is_put(self, kit, trainer, tmp_path, tree) -> None:
        done: list[int] = []
        store = kit.open()
        upload, manifest = fed(store, trainer, 19, progress=done.append)
        assert store.list(RUN, STAGE) == []
        for _ in range(2):
            assert upload.publish(manifest, trainer.save_dir) == store.uri_of(manifest)
        assert sum(done) == manifest.size_bytes
        upload.abandon()
        assert whole(kit.open()) == [19]
        store.get(manifest, tmp_path / "pod")
        assert tree(tmp_path / "pod") == tree(trainer.save_dir)
        only_listed(kit)
        assert store.begin(RUN, STAGE, 19, 1) is None  # it may be the same: `put` finds out and sends nothing

    def test_what_was_not_fed_whole_is_read_from_the_save_dir(self, kit, trainer) -> None:
        store = kit.open()
        trainer.save(19, export=True)
        upload = store.begin(RUN, STAGE, 19, 1)

        def sink(path: str, offset: int, chunk: memoryview) -> None:
            if path.endswith("common.pt") or (path.endswith("__0_1.distcp") and not chunk):
                return
            upload.feed(path, offset, chunk)

        who = {"run_id": RUN, "stage": STAGE, "attempt": 1, "token": 1}
        manifest = seal(trainer.save_dir, 19, **who, export=True, sink=sink)
        upload.publish(manifest, trainer.save_dir)
        assert whole(kit.open()) == [19]

    def test_a_file_may_be_fed_anew_but_not_out_of_order(self, kit) -> None:
        upload = kit.open().begin(RUN, STAGE, 19, 1)
        name = "iter_0000019/common.pt"
        for offset, chunk in ((0, b"abc"), (0, b"abcd"), (4, b"e"), (5, b"")):
            upload.feed(name, offset, memoryview(chunk))
        upload.feed("iter_0000019/empty", 0, memoryview(b""))
        upload.feed(name, 0, memoryview(b"abc"))
        with pytest.raises(StoreError, match="out of order"):
            upload.feed(name, 5, memoryview(b"x"))
        with pytest.raises(StoreError, match="out of order"):
            upload.feed("iter_0000019/other", 5, memoryview(b"x"))
        upload.abandon()
        with pytest.raises(StoreError, match="ended"):
            upload.feed(name, 0, memoryview(b"x"))

    def test_an_upload_that_is_abandoned_leaves_nothing(self, kit, trainer) -> None:
        store = kit.open()
        upload, manifest = fed(store, trainer, 19)
        for _ in range(2):
            upload.abandon()
        assert store.list(RUN, STAGE) == []
        assert not [name for name in kit.names() if "iter_" in name]
        with pytest.raises(StoreError, match="abandoned"):
            upload.publish(manifest, trainer.save_dir)
        store.put(manifest, trainer.save_dir)
        upload.abandon()
        assert whole(kit.open()) == [19]

    def test_an_upload_that_is_superseded_never_becomes_visible(self, kit, trainer) -> None:
        store = kit.open()
        upload, manifest = fed(store, trainer, 19)
        kit.open().claim(RUN, STAGE, 2)
        with pytest.raises(Fenced):
            upload.publish(manifest, trainer.save_dir)
        upload.abandon()
        assert store.list(RUN, STAGE) == []
        assert not [name for name in kit.names() if "iter_" in name]

    def test_an_upload_that_dies_at_any_operation_is_invisible_and_the_next_put_gets_through(
        self, kit, trainer
    ) -> None:
        kit.open().put(trainer.sealed(19), trainer.save_dir)
        trainer.save(39)
        who = {"run_id": RUN, "stage": STAGE, "attempt": 1, "token": 1}

        def feed_and_publish(store: CheckpointStore) -> None:
            upload = store.begin(RUN, STAGE, 39, 1)
            if upload is None:
                store.put(seal(trainer.save_dir, 39, **who), trainer.save_dir)
                return
            try:
                upload.publish(seal(trainer.save_dir, 39, **who, sink=upload.feed), trainer.save_dir)
            except StoreError:
                upload.abandon()
                raise

        look = Look(kit)
        for through in deaths(kit, feed_and_publish, at_least=3):
            assert look() in ([19], [39, 19])
            assert not through or whole(kit.open()) == [39, 19]
