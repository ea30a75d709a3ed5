"""A checkpoint that goes into a folder store while it is sealed: the `Upload` of `FolderStore`."""

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from plugins.checkpoints.disk import Progress, create_file
from plugins.checkpoints.manifest import FileEntry, Manifest
from plugins.checkpoints.stores.fed_files import FedFiles
from plugins.errors import StoreError

if TYPE_CHECKING:
    from plugins.checkpoints.stores.folder import FolderStore


class FolderUpload:
    """See `Upload`. What is fed goes to a staging folder, whose lock marks it as alive until the upload ends."""

    def __init__(
        self,
        store: "FolderStore",
        of: tuple[str, str, int, int],
        staging: Path,
        held: int,
        progress: Progress | None,
    ) -> None:
        """of: run id, stage, iteration and token. held: file descriptor that holds the lock of `staging`."""
        self._store, self._of, self._staging, self._held, self._progress = store, of, staging, held, progress
        self._lock = threading.Lock()
        self._files = FedFiles(self._create)
        self._uri: str | None = None
        self._ended = False

    def feed(self, path: str, offset: int, chunk: memoryview) -> None:
        """See `Upload.feed`. Offset 0 begins a file anew."""
        self._files.feed(self._staging / path, offset, chunk)
        if self._progress and chunk:
            self._progress(len(chunk))

    def publish(self, manifest: Manifest, save_dir: Path) -> str:
        """See `Upload.publish`. After a StoreError it may be tried again."""
        with self._lock:
            if self._uri:
                return self._uri
            if self._ended:
                raise StoreError(f"{self._staging}: this upload was abandoned: put the checkpoint")
            if self._of != (manifest.run_id, manifest.stage, manifest.iteration, manifest.token):
                raise StoreError(f"{self._staging}: was begun for another checkpoint: put this one")
            self._files.close()
            self._uri = self._store.publish_staging(manifest, save_dir, self._staging, self._progress, self._holds)
            self._finish()
            return self._uri

    def abandon(self) -> None:
        """See `Upload.abandon`."""
        with self._lock:
            if not self._ended:
                self._files.close()
                self._finish()

    def _holds(self, entry: FileEntry) -> bool:
        """Whether a file was fed to its end: then it is what was sealed, because the sealing pass read it."""
        return self._files.size_bytes(self._staging / entry.path) == entry.size_bytes

    def _create(self, path: Path) -> int:
        _make_folders(self._staging, path.parent)
        path.unlink(missing_ok=True)
        return create_file(path)

    def _finish(self) -> None:
        self._ended = True
        self._store.remove_staging(self._staging, self._held)


def _make_folders(root: Path, folder: Path) -> None:
    """As `Disk.make_folder`: the mode is not left to the umask. Their names become durable with the whole staging."""
    if folder != root:
        _make_folders(root, folder.parent)
        folder.mkdir(mode=0o755, exist_ok=True)
