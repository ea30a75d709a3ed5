"""The Hub on this machine, driven by the unmodified `huggingface_hub` library and the `hf` command."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hub_server.app import Limits
from tests.hub_server.running import Running, hub_process, listen, running_hub

HF = Path(sys.executable).parent / "hf"
REPO = "ann/model"
SMALL = Limits(regular_bytes=5_000, multipart_over=100_000, part_bytes=64_000, page=3)

huggingface_hub = pytest.importorskip("huggingface_hub")
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants  # noqa: E402
from huggingface_hub.errors import (  # noqa: E402
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


@pytest.fixture(autouse=True)
def no_xet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # what the environment variable of that name sets


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Running]:
    with running_hub(tmp_path / "hub", SMALL) as running:
        running.token("hf_ann", "ann", orgs=["lab"])
        running.token("hf_bob", "bob")
        yield running


@pytest.fixture
def api(hub: Running) -> HfApi:
    return HfApi(hub.url, token="hf_ann")


def add(path: str, content: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path, content)


@pytest.fixture
def fetch(api: HfApi, tmp_path: Path) -> Callable[..., bytes]:
    def read(path: str, revision: str = "main") -> bytes:
        return Path(
            api.hf_hub_download(REPO, path, revision=revision, cache_dir=tmp_path / "cache", force_download=True)
        ).read_bytes()

    return read


def status_of(call: Callable[[], object]) -> int:
    with pytest.raises(HfHubHTTPError) as caught:
        call()
    return caught.value.response.status_code


def test_who_a_token_belongs_to_and_what_it_may_do(hub: Running) -> None:
    hub.token("hf_read", "ann", "read")
    hub.token("hf_fine", "ann", "fineGrained", scopes={"ann/one": ["repo.content.read", "repo.write"]})
    assert HfApi(hub.url, token="hf_ann").whoami()["name"] == "ann"
    assert HfApi(hub.url, token="hf_read").whoami()["auth"]["accessToken"]["role"] == "read"
    fine = HfApi(hub.url, token="hf_fine")
    assert fine.whoami()["auth"]["accessToken"]["fineGrained"]["scoped"][0]["entity"]["name"] == "ann/one"
    fine.create_repo("ann/one")
    assert status_of(lambda: fine.create_repo("ann/two")) == 403
    assert status_of(lambda: HfApi(hub.url, token="hf_read").create_repo("ann/three")) == 403
    assert status_of(lambda: HfApi(hub.url, token="hf_wrong").whoami()) == 401


def test_a_repository_is_made_once_and_only_in_ones_own_name(hub: Running, api: HfApi) -> None:
    api.create_repo(REPO, private=True)
    assert status_of(lambda: api.create_repo(REPO)) == 409
    api.create_repo(REPO, exist_ok=True)
    api.create_repo("lab/shared")
    assert status_of(lambda: api.create_repo("bob/his")) == 403
    assert api.repo_info(REPO).private
    with pytest.raises(RepositoryNotFoundError):
        HfApi(hub.url, token="hf_bob").repo_info(REPO)
    assert HfApi(hub.url, token=False).repo_info("lab/shared").id == "lab/shared"
    api.delete_repo(REPO)
    assert not api.repo_exists(REPO)


def test_small_files_and_large_ones_arrive_whole(hub: Running, api: HfApi, fetch: Callable[..., bytes]) -> None:
    api.create_repo(REPO)
    contents = {
        "config.json": b"{}",
        "empty.txt": b"",
        "deep/er/weights.safetensors": os.urandom(3_000),
        "by-size.txt": b"x" * 6_000,
        "binary.dat": b"\0" * 10,
        "parts.bin": os.urandom(200_000),
    }
    made = api.create_commit(REPO, [add(*item) for item in contents.items()], commit_message="six")
    for path, content in contents.items():
        assert fetch(path) == content == fetch(path, made.oid)
    found = {entry.path: entry for entry in api.list_repo_tree(REPO, recursive=True) if hasattr(entry, "lfs")}
    assert found.keys() - {".gitattributes"} == contents.keys()  # by pages of three
    assert {path for path, entry in found.items() if entry.lfs} == contents.keys() - {"config.json", "empty.txt"}
    assert all(entry.size == len(contents.get(path, b"")) for path, entry in found.items() if path in contents)
    assert len(hub.calls("PUT /_storage/part")) == 4 and len(hub.calls("POST /_storage/complete")) == 1
    assert "binary.dat filter=lfs" in fetch(".gitattributes").decode()
    assert [entry.path for entry in api.list_repo_tree(REPO, "deep")] == ["deep/er"]
    assert {entry.path for entry in api.get_paths_info(REPO, ["config.json", "deep", "no"])} == {"config.json", "deep"}
    with pytest.raises(EntryNotFoundError):
        fetch("no.txt")
    assert api.repo_info(REPO, files_metadata=True).sha == made.oid


def test_what_the_store_has_is_not_sent_again(hub: Running, api: HfApi) -> None:
    api.create_repo(REPO)
    content = os.urandom(50_000)
    api.preupload_lfs_files(REPO, [add("a.bin", content)])
    sent = hub.state()["received_bytes"]
    api.create_commit(REPO, [add("b.bin", content)], commit_message="the same bytes")
    assert hub.state()["received_bytes"] == sent == 50_000


def test_a_commit_on_an_old_parent_is_refused(api: HfApi) -> None:
    api.create_repo(REPO)
    first = api.repo_info(REPO).sha
    second = api.create_commit(REPO, [add("a", b"1")], commit_message="a", parent_commit=first)
    assert status_of(lambda: api.create_commit(REPO, [add("b", b"1")], commit_message="b", parent_commit=first)) == 412
    assert [commit.title for commit in api.list_repo_commits(REPO)] == ["a", "initial commit"]
    assert api.repo_info(REPO).sha == second.oid


def test_deletions_of_files_and_folders(api: HfApi) -> None:
    api.create_repo(REPO)
    api.create_commit(REPO, [add(f"d/{n}", b"1") for n in range(5)] + [add("e", b"1")], commit_message="six")
    api.create_commit(REPO, [CommitOperationDelete("d/"), CommitOperationDelete("e")], commit_message="none")
    assert api.list_repo_files(REPO) == [".gitattributes"]
    with pytest.raises(EntryNotFoundError):
        api.create_commit(REPO, [CommitOperationDelete("e")], commit_message="again")


def test_branches_tags_and_commits_name_revisions(api: HfApi, fetch: Callable[..., bytes]) -> None:
    api.create_repo(REPO)
    old = api.create_commit(REPO, [add("a", b"old")], commit_message="old")
    api.create_branch(REPO, branch="run/one")
    api.create_tag(REPO, tag="v1")
    api.create_commit(REPO, [add("a", b"new")], commit_message="new", revision="run/one")
    assert [fetch("a", name) for name in ("main", "v1", old.oid, "run/one")] == [b"old", b"old", b"old", b"new"]
    assert status_of(lambda: api.create_branch(REPO, branch="run/one")) == 409
    api.create_branch(REPO, branch="run/one", exist_ok=True)
    refs = api.list_repo_refs(REPO)
    assert {ref.name for ref in refs.branches} == {"main", "run/one"} and [ref.name for ref in refs.tags] == ["v1"]
    api.delete_branch(REPO, branch="run/one")
    api.delete_tag(REPO, tag="v1")
    with pytest.raises(RevisionNotFoundError):
        fetch("a", "v1")
    api.super_squash_history(REPO)
    assert len(api.list_repo_commits(REPO)) == 1 and fetch("a") == b"old"


def test_a_bad_model_card_is_refused(api: HfApi) -> None:
    api.create_repo(REPO)
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.create_commit(REPO, [add("README.md", b"---\na: [\n---\n")], commit_message="card")
    api.create_commit(REPO, [add("README.md", b"---\na: b\n---\n")], commit_message="card")


def test_ranges_and_a_token_that_never_reaches_the_store(hub: Running, api: HfApi) -> None:
    api.create_repo(REPO, private=True)
    content = os.urandom(9_000)
    api.create_commit(REPO, [add("w.bin", content), add("c.json", b"0123456789")], commit_message="two")
    session, headers = huggingface_hub.get_session(), {"Authorization": "Bearer hf_ann", "Range": "bytes=5-8"}
    for path, whole in (("w.bin", content), ("c.json", b"0123456789")):
        answer = session.get(f"{hub.url}/{REPO}/resolve/main/{path}", headers=headers)
        assert answer.status_code == 206 and answer.content == whole[5:9]
    assert not any(entry["token"] for entry in hub.state()["calls"] if "_storage" in entry["call"])


def test_faults_happen_as_ordered_and_no_more(hub: Running, api: HfApi) -> None:
    api.create_repo(REPO)
    hub.fault("POST .*/commit/", status=503)
    assert status_of(lambda: api.create_commit(REPO, [add("a", b"1")], commit_message="a")) == 503
    for cut, commits in (("before", 0), ("after", 1)):
        hub.fault("POST .*/commit/", cut=cut)
        with pytest.raises(Exception, match=r"disconnected|ReadError|closed|reset"):
            api.create_commit(REPO, [add("a", b"1")], commit_message="a")
        assert hub.commits(REPO) == commits
    hub.fault("POST .*/preupload/", status=429, headers={"Retry-After": "0"})
    hub.fault("PUT ", cut="before")
    api.create_commit(REPO, [add("b.bin", b"1")], commit_message="the library tries again")
    hub.rate(2)
    assert status_of(lambda: api.create_commit(REPO, [add("c", b"1")], commit_message="c")) == 429


def test_an_upload_that_lies_about_its_hash_is_not_kept(hub: Running, api: HfApi) -> None:
    api.create_repo(REPO)
    wrong = add("a.bin", b"what was promised")
    wrong.path_or_fileobj = b"what is sent now!"
    with pytest.raises(RuntimeError):
        api.preupload_lfs_files(REPO, [wrong])
    assert not [path for path in (hub.root / "lfs").rglob("*") if path.is_file()]


def test_a_hub_that_was_killed_comes_back_with_all_it_had(tmp_path: Path) -> None:
    port = listen().getsockname()[1]
    with hub_process(tmp_path / "hub", port) as (hub, process):
        hub.token("hf_ann", "ann")
        api = HfApi(hub.url, token="hf_ann")
        api.create_repo(REPO)
        made = api.create_commit(REPO, [add("w.bin", b"12345"), add("c", b"1")], commit_message="two")
        process.send_signal(signal.SIGKILL)
        process.wait()
    with hub_process(tmp_path / "hub", port) as (hub, _):
        again = HfApi(hub.url, token="hf_ann")
        assert again.repo_info(REPO).sha == made.oid
        assert Path(again.hf_hub_download(REPO, "w.bin", cache_dir=tmp_path / "cache")).read_bytes() == b"12345"


def test_the_hf_command_uploads_lists_and_downloads(hub: Running, tmp_path: Path) -> None:
    environment = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_ann", "HF_HOME": f"{tmp_path}/hf"}
    environment |= {"PATH": os.environ["PATH"], "HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def hf(*arguments: str) -> str:
        done = subprocess.run(
            [HF, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert "hf_ann" not in done.stdout + done.stderr
        return done.stdout

    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"a": 1}))
    (folder / "deep" / "weights.bin").write_bytes(content := os.urandom(150_000))
    hf("upload", REPO, str(folder), "--revision", "run", "--private")
    hf("download", REPO, "--revision", "run", "--local-dir", str(tmp_path / "got"))
    assert (tmp_path / "got" / "deep" / "weights.bin").read_bytes() == content
    assert (tmp_path / "got" / "config.json").read_text() == '{"a": 1}'
    assert hub.commits(REPO) == 1 and HfApi(hub.url, token="hf_ann").repo_info(REPO).private
