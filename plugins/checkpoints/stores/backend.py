"""A place of keys and bytes, as far as a checkpoint store needs one: what S3, a Lium volume and the Hub have in common.

`objects.py` knows checkpoints and no provider; a backend knows its provider and no checkpoint. They meet here. Keys are
relative to the store's prefix, with '/' and no leading one: `run-1/sft/state.json`. All that is ever changed in place
is one small JSON object, the *state*, and that only by a swap: it is replaced if it is still the one that was read.
Everything else is written once under a key that nobody else writes, so the swap is the moment a change becomes visible.
"""

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from plugins.checkpoints.disk import Progress
from plugins.errors import StoreError

__all__ = ["STATE", "Backend", "Change", "Feed", "Item", "LostSwap", "Source"]

STATE = "state.json"
"""Last part of the key of every state, and of nothing else."""


class LostSwap(StoreError):
    """The state is not the one that was read: somebody changed it. Nothing became visible; read it and try again."""


@dataclass(frozen=True)
class Item:
    """A key that exists, and the size of its content in bytes."""

    key: str
    size_bytes: int


@dataclass(frozen=True)
class Source:
    """A file of this machine that shall lie under `key`. Size and hash (SHA-256, hex) are those that were sealed."""

    key: str
    path: Path
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Change:
    """What `Backend.publish` does, in this order; a backend with transactions may do it at once.

    Args:
        title: one line for people, such as a commit message: "run-1/sft: publish iteration 19 of attempt 2".
        state_key: key of the state; it ends in `/state.json`.
        state: its new text, one JSON object. Never twice the same, so a backend that lost an answer can look.
        tag: tag that `read` gave with the state this change was made from; None: there must be no state.
        files: to be sent first. What is there whole already need not be sent again.
        texts: key and content (UTF-8, small) of what is written between the files and the state.
        drop: removed last, in this order, only if the swap went well. A name that ends in '/' means all keys under it,
            together with uploads that were begun there and not finished. What does not exist is no error.
    """

    title: str
    state_key: str
    state: str
    tag: str | None
    files: tuple[Source, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    drop: tuple[str, ...] = ()


class Feed(Protocol):
    """Files on their way to the backend, given piece by piece by somebody who reads them anyway."""

    def feed(self, key: str, offset: int, chunk: memoryview) -> None:
        """Take the next bytes of the content of `key`; an empty chunk ends it. Offset 0 begins it anew.

        One thread a key, several keys at once; memory is bounded, so this waits for a slow provider. The view is valid
        during the call only. A backend may leave a key out (say, one that grows too large to be sent in pieces):
        `publish` then reads that file from its source. Raises StoreError.
        """

    def abandon(self) -> None:
        """Remove what was sent, and forget what is under way. Never raises. Returns as well when called again."""


class Backend(Protocol):
    """What a provider does. Every method may raise StoreError that says what failed, where, and what to do about it.

    Safe to be used by several threads. No message ever holds a credential.
    """

    @property
    def uri(self) -> str:
        """What `open_store` opens again: scheme, place and prefix, without '/' at the end and without credentials."""

    def check(self) -> None:
        """Prove that the place can be written, read, listed and cleaned, and find out what else must be known of it.

        Called before money is spent, so every usual mistake (no such place, no right, bad or no credentials, nobody
        answers) has a message of its own. Ends within a minute. Leaves nothing behind.
        """

    def read(self, key: str) -> tuple[bytes, str] | None:
        """Content and version tag of a small object, both of the same moment; None when there is none.

        The tag means something to `publish` for the state only. It is never empty. An answer that did not come is a
        StoreError and never None. A backend whose writes can be cut short gives the newest state that is whole.
        """

    def list(self, prefix: str, *, unfinished: bool = False) -> Iterable[Item]:
        """Every key that begins with `prefix` (it ends in '/'), in any order; empty when there is none.

        With `unfinished` also the keys of uploads that were begun and not finished, if the backend keeps such; their
        size says nothing.
        """

    def download(self, key: str, target: Path | None, stop: threading.Event, progress: Progress | None = None) -> str:
        """Write the content of `key` to the new file `target`; return the SHA-256 (hex) of the bytes that came.

        With None for `target` nothing is written: the bytes are only read. Memory is bounded. Ends with a StoreError
        soon after `stop` is set. `progress` gets the number of bytes just done.

        Raises:
            TornCheckpoint: there is no such key. (That the bytes are right is for the caller to see.)
            StoreError: the provider failed for good after bounded retries, or `target` cannot be written.
        """

    def publish(self, change: Change, progress: Progress | None = None, *, feed: Feed | None = None) -> None:
        """Carry out a change: files, texts, the swap of the state, then the drops. See `Change`.

        A file that is there with the size and SHA-256 that the backend keeps beside it is not sent again, and an
        upload that was cut is taken up where it was cut if the backend can. So calling it again after a failure, or
        with a new state after `LostSwap`, is cheap. What `feed` (one of this backend's `begin`) holds whole, by size,
        is what was sealed, because it came from the sealing pass; only the rest is read from the sources.

        `progress` gets the bytes of every file, sent or found there, but for those that came by `feed`.

        The process may die anywhere in it: before the swap nothing is visible, after it all is. A drop that fails is
        logged and not raised, because the change stands; a later `publish` drops what is left.

        Raises:
            LostSwap: the state is not the one of `tag`. It may be that this very change made it so, and that the answer
                was lost on a retry: the caller makes its change again from the state that is there now.
            TornCheckpoint: a source is not what was sealed, or is gone; nothing became visible.
            StoreError: the provider failed. Whether the swap happened is then not known.
        """

    def begin(self, progress: Progress | None = None) -> Feed | None:
        """A new feed, or None when this backend only sends whole files. `progress` gets the bytes fed."""
