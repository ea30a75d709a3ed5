"""Training data on the Hugging Face Hub: one file of a data set at one commit, brought to the machine a run starts on.

    <cache>/<user>--<name>@<commit>/<path>      the file, verified
            <user>--<name>.json                 {revision: commit} as last seen, for when the Hub does not answer

The commit is part of the path, so a data set that changes makes a new file and never changes one that a run has looked
at. Rows are looked at by `plugins/slime/prompt_data.py`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from plugins.checkpoints.disk import Disk
from plugins.datasets.rows import SUFFIXES
from plugins.errors import ControlPlaneError, StoreError, UserError

log = logging.getLogger(__name__)

SCHEME = "hf://datasets/"
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_REVISION = r"[A-Za-z0-9_](?:[A-Za-z0-9._~-]{0,98}[A-Za-z0-9_])?"
_URI = re.compile(rf"{SCHEME}({_NAME}/{_NAME})(?:@({_REVISION}))?/((?:[^/\0?#]+/)*[^/\0?#]+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CACHED = re.compile(r"([^/]+?)--([^/]+)@([0-9a-f]{40})")
NEWEST = "main"


@dataclass(frozen=True)
class DatasetFile:
    """One file of a data set; revision: branch, tag or commit."""

    repo: str
    path: str
    revision: str = NEWEST

    @property
    def uri(self) -> str:
        """`hf://datasets/user/name@revision/path`."""
        return f"{SCHEME}{self.repo}@{self.revision.replace('/', '~')}/{self.path}"

    @classmethod
    def of(cls, uri: str) -> DatasetFile:
        """Read a URI; '~' in a revision stands for '/', as in refs~convert~parquet. Raises UserError."""
        match = _URI.fullmatch(uri.strip())
        if match is None or {".", ".."} & set(match[3].split("/")):
            raise UserError(
                f"{uri.strip()!r}: is no file of a data set; write hf://datasets/user/name/file.jsonl or "
                "hf://datasets/user/name@revision/folder/file.parquet"
            )
        if Path(match[3]).suffix not in SUFFIXES:
            raise UserError(f"{uri.strip()}: data files end in {' or '.join(SUFFIXES)}; slime reads no others")
        return cls(match[1], match[3], (match[2] or NEWEST).replace("~", "/"))


def fetch_dataset(uri: str, cache_dir: Path) -> Path:
    """Bring the file of a URI `hf://datasets/...` to this machine, unless it is here; `source_of` tells its commit.

    When the Hub does not answer, the commit that the revision named last time is taken, with a warning in the log.
    Raises UserError for a URI that is none, a repository, revision or file that is not there or may not be read, a full
    disk; ControlPlaneError when the Hub does not answer and the file was never fetched.
    """
    from plugins.checkpoints.hub.fetch import HubSource  # the Hub's library is loaded only where it is used

    wanted = DatasetFile.of(uri)
    source = HubSource("dataset", wanted.repo, pauses_s=(0.5, 1.0, 3.0))
    seen = cache_dir / f"{_folder_name(wanted.repo)}.json"
    try:
        commit = _commit(source.commit, wanted, cache_dir, seen)
        folder = cache_dir / f"{_folder_name(wanted.repo)}@{commit}"
        if not (folder / wanted.path).is_file():
            found = source.files(commit, [wanted.path])
            if wanted.path not in found:
                raise UserError(f"{wanted.uri}: there is no such file in the data set")
            source.fetch([found[wanted.path]], commit, folder)
        _remember(seen, wanted.revision, commit)
    except UserError:
        raise
    except StoreError as error:
        raise ControlPlaneError(f"{wanted.uri}: could not be fetched: {error}") from error
    return folder / wanted.path


def source_of(path: Path) -> str | None:
    """`hf://datasets/user/name@commit/path` of a file that `fetch_dataset` brought; None for any other file."""
    for folder in path.parents:
        if match := _CACHED.fullmatch(folder.name):
            return DatasetFile(f"{match[1]}/{match[2]}", str(path.relative_to(folder)), match[3]).uri
    return None


def _commit(look: Callable[[str], tuple[str, object]], wanted: DatasetFile, cache_dir: Path, seen: Path) -> str:
    """The commit of the revision: itself, what the Hub says, or what it said last time if that file is here."""
    if _COMMIT.fullmatch(wanted.revision):
        return wanted.revision
    try:
        return look(wanted.revision)[0]
    except UserError:
        raise
    except StoreError as error:
        commit = _seen(seen).get(wanted.revision)
        if commit is None or not (cache_dir / f"{_folder_name(wanted.repo)}@{commit}" / wanted.path).is_file():
            raise
        log.warning("%s: the Hub does not answer; taking commit %s, fetched before: %s", wanted.uri, commit, error)
        return commit


def _folder_name(repo: str) -> str:
    return repo.replace("/", "--")


def _seen(file: Path) -> dict[str, str]:
    with contextlib.suppress(OSError, ValueError):
        return {str(name): str(commit) for name, commit in json.loads(file.read_text()).items()}
    return {}


def _remember(file: Path, revision: str, commit: str) -> None:
    known = _seen(file)
    if not _COMMIT.fullmatch(revision) and known.get(revision) != commit:
        Disk().write(file, json.dumps({**known, revision: commit}, indent=1) + "\n")
