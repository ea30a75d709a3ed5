"""Commits to one branch, each on the parent that was read, each made once also when its answer is lost."""

import io
import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub._commit_api import CommitOperation
from huggingface_hub.hf_api import RepoFolder

from plugins.checkpoints.disk import WORKERS
from plugins.checkpoints.hub.errors import Busy, NoRepo, Unanswered, hub_errors
from plugins.checkpoints.hub.place import MAIN
from plugins.checkpoints.hub.repo import HubRepo
from plugins.checkpoints.hub.sealed_file import SealedFile, addition
from plugins.errors import StoreError

log = logging.getLogger(__name__)

LOOKS_S = (0.0, 1.0, 3.0, 6.0)
"""Pauses before each look whether a commit whose answer was lost was made: the Hub may still be at it."""
LOOKED_AT = 20
"""How many of the newest commits are looked at for ours."""


@dataclass(frozen=True)
class Draft:
    """What a commit does. Paths are in the repository; a dropped one that ends in '/' is a folder."""

    title: str
    files: Mapping[str, SealedFile] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    drop: Sequence[str] = ()


class HubWriter:
    """Writes to the branch of a `HubRepo`."""

    def __init__(self, repo: HubRepo) -> None:
        self.repo = repo

    def ensure(self, *, public: bool = False) -> bool:
        """Make the repository (private unless `public`) and the branch if they are missing; whether anything was made.

        What exists stays as it is, also when it is public.
        """
        repo, place = self.repo, self.repo.place
        made = False
        try:
            if not public and repo.is_public():
                log.warning("%s: the repository is public: so is everything that is written there", repo.where)
            if repo.branch_is_there():
                return False
        except NoRepo:
            repo.ask("make the repository", lambda: repo.api.create_repo(place.repo, private=not public, exist_ok=True))
            repo.pace.record()
            made = True
        if place.branch != MAIN:
            repo.ask("make the branch", lambda: repo.api.create_branch(place.repo, branch=place.branch, exist_ok=True))
            made = True
        return made

    def check_pace(self, *, claim: bool = False) -> None:
        """Raise StoreError, with the time when it goes on, when the hour has no commit left."""
        if not self.repo.pace.seeded:
            self.repo.pace.seed(self.repo.made_lately())
        self.repo.pace.check(self.repo.where, claim=claim)

    def send(self, files: Mapping[str, SealedFile]) -> list[CommitOperationAdd]:
        """Send what is large; the operations for `commit`. What the Hub has already, from a try that died, is not sent.

        Raises TornCheckpoint when a file is not what was sealed.
        """
        with hub_errors(self.repo.where, "send files"):
            operations = [addition(path, file) for path, file in files.items()]
            first = {file.sha256: at for at, file in reversed(list(enumerate(files.values())))}
            once = [operations[at] for at in sorted(first.values())]
            for part in (once, operations):  # equal files one after the other: the second one is found there
                if part:
                    self._send(part)
        for operation, file in zip(operations, files.values(), strict=True):
            if getattr(operation, "_should_ignore", False):  # it would be left out of the commit without a word
                raise StoreError(f"{self.repo.where}: its .gitignore leaves out {operation.path_in_repo}: change it")
            if getattr(operation, "_upload_mode", None) == "lfs":
                file.count_rest()
        return operations

    def _send(self, operations: list[CommitOperationAdd]) -> None:
        place = self.repo.place
        self.repo.api.preupload_lfs_files(
            place.repo, operations, revision=place.branch, num_threads=WORKERS, free_memory=False
        )

    def commit(self, draft: Draft, parent: str, sent: Sequence[CommitOperationAdd] = ()) -> str:
        """Make a commit on `parent`; return its hash. `sent`: what `send` gave for the files of the draft.

        Raises:
            Moved: the branch is not at `parent` any more; nothing was done.
            Unanswered: the answer was lost, and looking for the commit did not find it.
        """
        texts = [CommitOperationAdd(path, io.BytesIO(text.encode())) for path, text in draft.texts.items()]
        operations: list[CommitOperation] = [*sent, *texts, *self._deletions(draft, parent)]
        mark = f"trainstack change {secrets.token_hex(8)}"
        try:
            with hub_errors(self.repo.where, "commit"):
                made = self.repo.api.create_commit(
                    self.repo.place.repo,
                    operations,
                    commit_message=draft.title,
                    commit_description=mark,
                    revision=self.repo.place.branch,
                    parent_commit=parent,
                    num_threads=WORKERS,
                )
        except Busy as error:
            self.repo.pace.close_for(error.wait_s)
            raise
        except Unanswered as error:
            self.repo.pace.record()
            if found := self._look_for(mark, parent):
                return found
            raise error
        self.repo.pace.record()
        return str(made.oid)

    def squash_history(self) -> None:
        """Forget all commits but the newest, so that the Hub can free what was deleted. Cannot be undone."""
        place = self.repo.place
        self.repo.ask("squash the history", lambda: self.repo.api.super_squash_history(place.repo, branch=place.branch))

    def _deletions(self, draft: Draft, parent: str) -> list[CommitOperationDelete]:
        """Only what is there: the Hub refuses a commit that deletes what is not. A folder takes its files along."""
        folders = [path for path in draft.drop if path.endswith("/")]
        names = {path.rstrip("/") for path in draft.drop if path in folders or not path.startswith(tuple(folders))}
        found = self.repo.existing(sorted(names), parent)
        return [CommitOperationDelete(entry.path, is_folder=isinstance(entry, RepoFolder)) for entry in found]

    def _look_for(self, mark: str, parent: str) -> str | None:
        """Our commit, if it was made. On another parent it should not have been: the Hub once answered 500 to a commit
        with `parent_commit` and made it all the same, on what was there (huggingface/datasets pull request 7708)."""
        for pause_s in LOOKS_S:
            self.repo.sleep(pause_s)
            try:
                newest = [commit for _, commit in zip(range(LOOKED_AT), self.repo.commits(), strict=False)]
            except StoreError:
                continue
            for (oid, message, _), before in pairwise([*newest, ("", "", 0.0)]):
                if mark in message and before[0] not in (parent, ""):
                    raise StoreError(
                        f"{self.repo.where}: the Hub made commit {oid} on {before[0]} and not on {parent} as told:"
                        " what the commits between them did may be undone: look at the branch"
                    )
                if mark in message:
                    return oid
        return None
