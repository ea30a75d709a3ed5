"""Places that keep sealed checkpoints, and what they all promise.

A reader never sees half a checkpoint: `put` writes data, then the manifest, then the pointer. One writer per stage: a
token that grows with every attempt is checked before anything becomes visible. `open.py` finds the store of a URI.
"""

from pathlib import Path
from typing import Protocol

from plugins.checkpoints.disk import Progress
from plugins.checkpoints.landing import Only
from plugins.checkpoints.manifest import Manifest

__all__ = ["CheckpointStore", "Upload", "seen_from_afar"]


def seen_from_afar(uri: str) -> bool:
    """Whether a store can be read where the pod is not: a Lium volume hangs on one pod at a time."""
    return not uri.startswith("volume:")


class Upload(Protocol):
    """A checkpoint on its way into a store while it is being hashed, so that its files are read once.

    Nothing is visible before `publish`. Either that or `abandon` ends it; both return as well when called again.
    """

    def feed(self, path: str, offset: int, chunk: memoryview) -> None:
        """Take bytes of one file, in order, one thread a file, several files at once. An empty chunk ends the file.

        The view is valid during the call only. Raises StoreError; the upload is then of no use but to be abandoned.
        """

    def publish(self, manifest: Manifest, save_dir: Path) -> str:
        """Make it visible; return its URI. A file that was not fed whole is read from `save_dir`. See `put`."""

    def abandon(self) -> None:
        """Remove what was sent. Never raises."""


class CheckpointStore(Protocol):
    """What a store does. Every method may raise StoreError: the store failed, the checkpoint is where it was.

    `progress` gets the number of bytes just done, from several threads.
    """

    @property
    def uri(self) -> str:
        """What `open_store` opens again."""

    def uri_of(self, manifest: Manifest) -> str:
        """URI of one checkpoint in this store, whether it is there or not."""

    def check(self) -> None:
        """Prove by writing that the store can be written; call it before money is spent."""

    def claim(self, run_id: str, stage: str, token: int) -> None:
        """Announce an attempt. From now on smaller tokens are refused, this one included if a larger is known.

        Raises Fenced.
        """

    def put(self, manifest: Manifest, save_dir: Path, progress: Progress | None = None) -> str:
        """Store a sealed checkpoint from `save_dir`; return its URI. What is there with equal hashes is not sent again.

        The pointer moves unless it names a later iteration.

        Raises:
            Fenced: the manifest's token is older than the store knows; nothing became visible.
            TornCheckpoint: a file is no longer what was sealed; nothing became visible.
        """

    def begin(
        self, run_id: str, stage: str, iteration: int, token: int, progress: Progress | None = None
    ) -> Upload | None:
        """Begin to store a checkpoint that is about to be sealed; None: this store reads the files itself, by `put`.

        Raises Fenced.
        """

    def latest(self, run_id: str, stage: str) -> Manifest | None:
        """What the pointer names, or the newest whole checkpoint when the pointer is lost or names a broken one."""

    def list(self, run_id: str, stage: str) -> "list[Manifest]":
        """All checkpoints of the stage, newest first. Their manifests are read, their files are not."""

    def get(
        self, manifest: Manifest, save_dir: Path, progress: Progress | None = None, *, only: Only | None = None
    ) -> None:
        """Bring a checkpoint into `save_dir`, every file verified, the tracker last.

        With `only` just the files wanted, and neither manifest nor tracker: say, the export that another stage starts
        from. Raises TornCheckpoint when it is damaged or gone; `save_dir` is as it was.
        """

    def verify(self, manifest: Manifest, progress: Progress | None = None) -> None:
        """Read every file in the store and compare it with the manifest. Raises TornCheckpoint."""

    def set_aside(self, manifest: Manifest, reason: str) -> None:
        """Take a broken checkpoint out of the list, keeping its data and the reason. Returns as well if it is gone."""

    def delete(self, manifest: Manifest) -> None:
        """Remove a checkpoint for good. Returns as well when it is gone."""
