"""Repositories filled with files, as their owners do it: through the unmodified library."""

from collections.abc import Mapping

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, constants

from tests.hub_server.running import Running


def fill(
    hub: Running, token: str, repo: str, files: Mapping[str, bytes], *, kind: str = "model", private: bool = False
) -> str:
    """Commit files to a repository, made when it is missing; the hash of the commit."""
    api = HfApi(hub.url, token=token)
    api.create_repo(repo, repo_type=kind, private=private, exist_ok=True)
    adds = [CommitOperationAdd(name, content) for name, content in files.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # what the environment variable of that name sets
        return str(api.create_commit(repo, adds, repo_type=kind, commit_message="files").oid)
