"""Several stores as one: what a recipe that names more than one gives to everybody who only reads or claims.

Nearest first. Reading takes the first store that has what is asked for; a store that does not answer is passed over,
and that is said. Publishing to all of them, each at its own speed, is the business of `publisher.py`: see `members`.
"""

import builtins
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from plugins.checkpoints.disk import Progress
from plugins.checkpoints.landing import Only
from plugins.checkpoints.manifest import Manifest
from plugins.checkpoints.stores import CheckpointStore, Upload
from plugins.errors import Fenced, StoreError, TornCheckpoint

T = TypeVar("T")


class SeveralStores:
    """A `CheckpointStore` over others, nearest first."""

    def __init__(self, members: Sequence[CheckpointStore], log: Callable[[str], None] = lambda _line: None) -> None:
        assert members
        self.members, self._log = list(members), log
        self.silent: builtins.list[str] = []
        """URIs of the stores that did not answer the last `list`."""

    @property
    def uri(self) -> str:
        """All URIs, nearest first, with ', ' between them."""
        return ", ".join(store.uri for store in self.members)

    def uri_of(self, manifest: Manifest) -> str:
        """URI in the first store that has the checkpoint; in the first one when none answers that it has."""
        for store in self.members:
            try:
                if manifest in store.list(manifest.run_id, manifest.stage):
                    return store.uri_of(manifest)
            except StoreError:
                continue
        return self.members[0].uri_of(manifest)

    def check(self) -> None:
        """Prove by writing that each store can be written. Raises StoreError or UserError of the first that cannot."""
        for store in self.members:
            store.check()

    def claim(self, run_id: str, stage: str, token: int) -> None:
        """Announce an attempt to every store that answers; the others see its token with its first checkpoint.

        Raises Fenced when any store knows a larger token, StoreError when none answers.
        """
        self._each("was not told of this attempt", lambda store: store.claim(run_id, stage, token))

    def begin(
        self, run_id: str, stage: str, iteration: int, token: int, progress: Progress | None = None
    ) -> Upload | None:
        """None: see `members`."""
        return None

    def put(self, manifest: Manifest, save_dir: Path, progress: Progress | None = None) -> str:
        """Store it in every store that answers; the URI in the nearest one. Raises StoreError when none takes it."""
        return self._each("did not take a checkpoint", lambda store: store.put(manifest, save_dir, progress))[0]

    def latest(self, run_id: str, stage: str) -> Manifest | None:
        """The newest that any store names."""
        found = self._each("does not answer", lambda store: store.latest(run_id, stage))
        known = [manifest for manifest in found if manifest]
        return max(known, key=lambda one: (one.token, one.iteration), default=None)

    def list(self, run_id: str, stage: str) -> "builtins.list[Manifest]":
        """What any store has, newest first; equal ones once. `silent` names the stores that did not answer."""
        self.silent = []
        found: dict[tuple[int, int, str], Manifest] = {}
        for manifests in self._each("does not answer", lambda store: store.list(run_id, stage), self.silent):
            for manifest in manifests:
                found.setdefault((manifest.iteration, manifest.token, manifest.digest()), manifest)
        return sorted(found.values(), key=lambda one: (one.iteration, one.token), reverse=True)

    def get(
        self, manifest: Manifest, save_dir: Path, progress: Progress | None = None, *, only: Only | None = None
    ) -> None:
        """Fetch from the nearest store that has it whole; a copy that is damaged is set aside where it is.

        Raises TornCheckpoint when no store has it whole, StoreError when the ones that may have it do not answer.
        """
        problems: list[StoreError] = []
        for store in self.members:
            try:
                if manifest not in store.list(manifest.run_id, manifest.stage):
                    continue
                store.get(manifest, save_dir, progress, only=only)
                return
            except TornCheckpoint as error:
                self._log(f"WARNING {manifest.name} in {store.uri} is broken: {error}")
                _set_aside(store, manifest, str(error))
                problems.append(error)
            except StoreError as error:
                self._log(f"WARNING {store.uri} does not give {manifest.name}: {error}")
                problems.append(error)
        silent = next((error for error in problems if not isinstance(error, TornCheckpoint)), None)
        raise silent or TornCheckpoint(
            "; ".join(str(error) for error in problems) or f"{manifest.name} of {manifest.run_id} is in no store"
        )

    def verify(self, manifest: Manifest, progress: Progress | None = None) -> None:
        """Read every copy. Raises TornCheckpoint when one is damaged, or none is there."""
        holding = [store for store in self.members if manifest in store.list(manifest.run_id, manifest.stage)]
        if not holding:
            raise TornCheckpoint(f"{manifest.name} of {manifest.run_id}/{manifest.stage} is in no store")
        for store in holding:
            store.verify(manifest, progress)

    def set_aside(self, manifest: Manifest, reason: str) -> None:
        """Take it out of every list."""
        self._each("still lists a broken checkpoint", lambda store: store.set_aside(manifest, reason))

    def delete(self, manifest: Manifest) -> None:
        """Remove it from every store."""
        self._each("still has a checkpoint", lambda store: store.delete(manifest))

    def _each(
        self, what: str, ask: Callable[[CheckpointStore], T], silent: "builtins.list[str] | None" = None
    ) -> "builtins.list[T]":
        """Answers of the stores that answer. Raises Fenced, TornCheckpoint; StoreError when all fail."""
        answers: builtins.list[T] = []
        failed: StoreError | None = None
        for store in self.members:
            try:
                answers.append(ask(store))
            except (Fenced, TornCheckpoint):
                raise
            except StoreError as error:
                failed = error
                if silent is not None:
                    silent.append(store.uri)
                self._log(f"WARNING {store.uri} {what}: {error}")
        if failed and not answers:
            raise failed
        return answers


def _set_aside(store: CheckpointStore, manifest: Manifest, reason: str) -> None:
    try:
        store.set_aside(manifest, reason)
    except StoreError:  # a store that cannot be written may still hold a good older checkpoint
        return
