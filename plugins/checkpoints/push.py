"""Publishing one sealed checkpoint as a model on the Hugging Face Hub: a milestone that others can load.

    <repository>@<branch>
      config.json, model.safetensors, ...     the export, at the root: `from_pretrained(repo, revision=...)` loads it
      README.md                               the model card; see `hub/card.py`
      trainstack_manifest.json                where it came from, and every file we pushed with size and hash
      checkpoint/...                          with `whole`: optimizer, data cursor, as in the save dir
      rollouts/...                            extra files

One commit, whose parent is the commit that was looked at; afterwards its files are listed and compared. What an earlier
push of ours left and this one has not is removed; nobody else's file is touched. Pushing what is there already makes no
commit. The milestones of a run that go to the same branch follow one another there; each has its own revision.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plugins.checkpoints.disk import Progress, disk_errors, hash_file
from plugins.checkpoints.hub.card import ModelCard, outside, readme
from plugins.checkpoints.hub.place import HubPlace
from plugins.checkpoints.manifest import FileEntry
from plugins.errors import StoreError, UserError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

    from plugins.checkpoints.hub.repo import HubRepo
    from plugins.checkpoints.hub.writing import HubWriter

__all__ = ["ModelCard", "Pushed", "check_target", "push_export"]

FORMAT = 1
CARD, LIST = "README.md", "trainstack_manifest.json"
MOVES = 8
_OURS = {CARD, LIST, ".gitattributes"}


@dataclass(frozen=True)
class Pushed:
    """A milestone on the Hub. `revision` is the hash of the commit; `files` have paths in the repository."""

    repo: str
    branch: str
    revision: str
    url: str
    files: tuple[FileEntry, ...]


@dataclass(frozen=True)
class _Local:
    """A file that shall be in the repository."""

    entry: FileEntry
    path: Path


def push_export(
    source_dir: Path,
    files: Iterable[FileEntry],
    target: str,
    card: ModelCard,
    *,
    public: bool = False,
    whole: bool = False,
    extra: Mapping[str, Path] | None = None,
    progress: Progress | None = None,
    token: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Pushed:
    """Push the export of a sealed checkpoint; return where it is. What the Hub has already is not sent again.

    Args:
        source_dir: the save dir that the paths of `files` are relative to.
        files: entries of the manifest. Those under `hf/` are pushed, the others only with `whole`.
        target: `hub://user/repo` or `hub://user/repo@branch`. Both are made when missing, the repository private.
        public: make it public, if it must be made. What exists stays as it is.
        extra: path under `rollouts/` in the repository to a file of this machine.
        progress: gets the bytes just done; it may sleep.

    Raises:
        UserError: no place on the Hub, no export in `files`, no token, no right to write.
        TornCheckpoint: a file is not what was sealed; nothing became visible.
        StoreError: the Hub failed, or does not have what was pushed. Whether the commit was made is then not known; a
            second call finds out.
    """
    place = HubPlace.of(target)
    if place.prefix:
        raise UserError(f"{target}: a model is pushed to the root of a repository: write hub://user/repo@branch")
    wanted = _wanted(source_dir, files, whole, extra or {})
    from plugins.checkpoints.hub.errors import Moved
    from plugins.checkpoints.hub.repo import HubRepo
    from plugins.checkpoints.hub.writing import HubWriter

    repo = HubRepo(place, token=token, sleep=sleep)
    if not repo.token:
        raise UserError(f"{target}: no Hugging Face token: `hf auth login`, or set HF_TOKEN")
    writer = HubWriter(repo)
    writer.ensure(public=public)
    for _ in range(MOVES):
        try:
            revision, texts = _push(writer, wanted, card, progress)
        except Moved:
            progress = None  # all was counted
            continue
        _verify(repo, revision, wanted, texts)
        url = f"{repo.endpoint}/{place.repo}/tree/{revision}"
        return Pushed(place.repo, place.branch, revision, url, tuple(local.entry for local in wanted.values()))
    raise StoreError(f"{repo.where}: others committed {MOVES} times in a row: who writes there?")


def check_target(target: str, *, public: bool = False) -> None:
    """Prove that a milestone can be pushed there, by writing: makes the repository if need be, and two commits.

    Raises UserError for a place that is none, a token or a right that is missing, another's name; StoreError when the
    Hub fails.
    """
    place = HubPlace.of(target)
    from plugins.checkpoints.hub.probe import check_usable
    from plugins.checkpoints.hub.repo import HubRepo
    from plugins.checkpoints.hub.writing import HubWriter

    check_usable(HubWriter(HubRepo(place)), "", public=public)


def _wanted(source_dir: Path, files: Iterable[FileEntry], whole: bool, extra: Mapping[str, Path]) -> dict[str, _Local]:
    """Path in the repository to file."""
    wanted: dict[str, _Local] = {}
    exported = False
    for entry in files:
        top, _, rest = entry.path.partition("/")
        name = rest.partition("/")[2] if top == "hf" else f"checkpoint/{entry.path}"
        if (top == "hf" and name not in _OURS) or (top != "hf" and whole):
            wanted[name] = _Local(entry.model_copy(update={"path": name}), source_dir / entry.path)
        exported |= top == "hf"
    if not exported:
        raise UserError(f"{source_dir}: this checkpoint has no Hugging Face export (hf/): there is nothing to push")
    for name, path in sorted(extra.items()):
        if not name.startswith("rollouts/") or {"", ".", ".."} & set(name.split("/")):
            raise UserError(f"{name!r}: extra files go under rollouts/")
        size_bytes, digest = hash_file(path, threading.Event())
        wanted[name] = _Local(FileEntry(path=name, size_bytes=size_bytes, sha256=digest), path)
    return dict(sorted(wanted.items()))


def _push(
    writer: "HubWriter", wanted: Mapping[str, _Local], card: ModelCard, progress: Progress | None
) -> tuple[str, dict[str, str]]:
    """Make the commit unless all is there; return the revision and the texts that it holds. Raises Moved."""
    from plugins.checkpoints.hub.sealed_file import SealedFile
    from plugins.checkpoints.hub.writing import Draft

    repo = writer.repo
    head = repo.head()
    there = {file.path: file for file in repo.files("", head)}
    texts, before = _texts(repo, head, there, wanted, card)
    missing = [name for name, local in wanted.items() if not _is_there(there.get(name), local)]
    stale = [name for name in before if name in there and name not in wanted and name not in _OURS]
    if progress:
        progress(sum(local.entry.size_bytes for name, local in wanted.items() if name not in missing))
    if not missing and not stale and all(_has_text(there.get(name), text) for name, text in texts.items()):
        return head, texts
    writer.check_pace()
    send = {
        name: SealedFile(local.path, local.entry.size_bytes, local.entry.sha256, progress)
        for name, local in wanted.items()
        if name in missing
    }
    title = f"{card.run_id}/{card.stage}: iteration {card.iteration}" + (f" ({card.reason})" if card.reason else "")
    draft = Draft(title, files=send, texts=texts, drop=stale)
    return writer.commit(draft, head, writer.send(send)), texts


def _texts(
    repo: "HubRepo", head: str, there: "Mapping[str, RepoFile]", wanted: Mapping[str, _Local], card: ModelCard
) -> tuple[dict[str, str], Sequence[str]]:
    """Model card and list of files, and the paths that the list there names now."""
    found = {name: repo.content(name, head) if name in there else None for name in (CARD, LIST)}
    known, files = _object(found[LIST]), [local.entry.model_dump() for local in wanted.values()]
    same = ("run", "stage", "iteration", "attempt")
    if known.get("files") == files and all(known.get(name) == card.facts().get(name) for name in same):
        # the same checkpoint, perhaps pushed by somebody who knows less or more about it: that is no new revision
        card = replace(card, reason=known.get("milestone because"), source=known.get("stored as"))
    old = found[CARD]
    existing = None if old is None else old.decode(errors="replace")
    untouched = known.get("readme")
    text = readme(card, existing, str(untouched))
    ours = existing is None or outside(existing) == untouched
    listed: dict[str, Any] = {
        "format": FORMAT,
        **card.facts(),
        "readme": outside(text) if ours else untouched,
        "files": files,
    }
    before = [str(entry.get("path")) for entry in known.get("files") or [] if isinstance(entry, dict)]
    return {CARD: text, LIST: json.dumps(listed, indent=1, ensure_ascii=False) + "\n"}, before


def _object(text: bytes | None) -> dict[str, Any]:
    try:
        value = json.loads(text or b"{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _verify(repo: "HubRepo", revision: str, wanted: Mapping[str, _Local], texts: Mapping[str, str]) -> None:
    """Raise StoreError when the Hub does not list at this revision what was pushed."""
    there = {file.path: file for file in repo.files("", revision)}
    wrong = [name for name, local in wanted.items() if not _is_there(there.get(name), local)]
    wrong += [name for name, text in texts.items() if not _has_text(there.get(name), text)]
    if wrong:
        raise StoreError(
            f"{repo.where}: revision {revision} does not hold what was pushed: {', '.join(sorted(wrong)[:5])}"
            f"{' and more' if len(wrong) > 5 else ''}: push again"
        )


def _is_there(file: "RepoFile | None", local: _Local) -> bool:
    """Whether the Hub lists this very content: by its SHA-256 as a large file, by git's hash as a small one."""
    if file is None or file.size != local.entry.size_bytes:
        return False
    if file.lfs is not None:
        return str(file.lfs.sha256) == local.entry.sha256
    with disk_errors(local.path, "read"):
        return str(file.blob_id) == _git_hash(local.path.read_bytes())


def _has_text(file: "RepoFile | None", text: str) -> bool:
    return file is not None and file.blob_id == _git_hash(text.encode())


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
