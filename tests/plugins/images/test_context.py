"""The build context: only what a pod runs, always the same bytes, and a digest that stands for it."""

import io
import os
import re
import subprocess
import tarfile
from pathlib import Path

import pytest

from plugins.errors import UserError
from plugins.images.context import DOCKERFILE, PARTS, ROOT, context, default_arguments
from tests.plugins.images.checkout import checkout, git


def names(archive: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return tar.getnames()


def test_the_same_files_give_the_same_bytes_elsewhere_and_later(tmp_path: Path) -> None:
    one, other = checkout(tmp_path / "one"), checkout(tmp_path / "other")
    os.utime(other / "flows/a.py", (1, 1))
    (other / "flows/a.py").chmod(0o600)
    assert context(one) == context(other)


def test_a_byte_a_right_to_run_and_a_build_argument_change_the_digest(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    digests = [context(root).digest, context(root, {"BASE": "a"}).digest, context(root, {"BASE": "b"}).digest]
    (root / "flows/a.py").chmod(0o755)
    digests.append(context(root).digest)
    (root / "flows/a.py").write_text("# changed, not committed\n")
    digests.append(context(root).digest)
    assert len(set(digests)) == 5


def test_what_a_pod_does_not_run_changes_nothing(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    before = context(root)
    (root / "tests/test_a.py").write_text("# more\n")
    (root / "deployments/recipes/x.yaml").write_text("name: y\n")
    (root / "flows/run.log").write_text("ignored by git\n")
    assert context(root) == before


def test_untracked_files_stay_out_and_are_named(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    (root / "plugins/key.txt").write_text("secret")
    made = context(root)
    assert made.untracked == ("plugins/key.txt",)
    assert b"secret" not in made.archive


def test_a_tracked_file_that_was_deleted_here_is_left_out(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    (root / "tasks/b.py").write_text("")
    git(root, "add", "tasks/b.py")
    (root / "tasks/b.py").unlink()
    assert "tasks/b.py" not in names(context(root).archive)


def test_a_link_is_refused(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    (root / "flows/passwd").symlink_to("/etc/passwd")
    git(root, "add", "flows/passwd")
    with pytest.raises(UserError, match=r"flows/passwd is not a plain file"):
        context(root)


def test_an_incomplete_checkout_is_refused(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    (root / DOCKERFILE).unlink()
    with pytest.raises(UserError, match=rf"{DOCKERFILE} is not in .*; use a full checkout"):
        context(root)
    with pytest.raises(UserError, match="cannot be read"):
        default_arguments(root)


def test_git_that_fails_is_quoted(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    (root / ".git/index").write_bytes(b"not an index")
    with pytest.raises(UserError, match=r"git does not say which files .*: .*index"):
        context(root)


def test_unpacked_sources_give_what_the_checkout_gives(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    with_git = context(root)
    (root / ".git").rename(tmp_path / "no-git")
    (root / "flows/__pycache__").mkdir()
    (root / "flows/__pycache__/a.pyc").write_bytes(b"x")
    assert context(root) == with_git


def test_ours_has_the_parts_of_a_pod_and_nothing_else() -> None:
    found = names(context().archive)
    assert {"plugins/lium/supervisor.py", "flows/stage.py", "plugins/slime/flags.tsv", DOCKERFILE} <= set(found)
    assert [name for name in found if not name.startswith(PARTS)] == []
    assert found == sorted(found)


def test_the_dockerfile_copies_what_the_context_has() -> None:
    copied = re.findall(r"^COPY (\S+)", (ROOT / DOCKERFILE).read_text(), re.MULTILINE)
    assert {name for name in copied if not name.endswith(".lock")} == set(PARTS)


def test_the_programs_of_the_image_can_be_run() -> None:
    with tarfile.open(fileobj=io.BytesIO(context().archive)) as tar:
        assert tar.getmember("deployments/image/entrypoint.sh").mode & 0o111


def test_the_arguments_are_read_from_the_dockerfile(tmp_path: Path) -> None:
    assert default_arguments(checkout(tmp_path)) == {"BASE": "nowhere.invalid/slime:1", "SLIME_REF": "v0"}
    assert default_arguments()["BASE"].startswith("slimerl/slime:")


def given(name: str) -> Path:
    if not os.environ.get(name):
        pytest.skip(f"{name} does not name a checkout")
    return Path(os.environ[name])


@pytest.mark.slime
def test_slime_in_the_image_is_the_release_that_the_submodule_pins() -> None:
    slime, ref = given("SLIME"), default_arguments()["SLIME_REF"]
    pinned = git(ROOT, "ls-tree", "HEAD", "slime").split()[2]
    assert git(slime, "rev-parse", f"{ref}^{{commit}}").strip() == pinned


@pytest.mark.slime
def test_the_base_is_the_one_that_the_release_was_made_with() -> None:
    slime, arguments = given("SLIME"), default_arguments()
    version = git(slime, "show", f"{arguments['SLIME_REF']}:docker/version.txt").strip()
    assert arguments["BASE"].startswith(f"slimerl/slime:{version}-cu12")


@pytest.mark.slime
def test_the_check_of_the_patch_tells_a_patched_megatron_from_another(tmp_path: Path) -> None:
    """What the Dockerfile runs: `git apply --reverse --check` of the release's patch."""
    patch, megatron = given("SLIME") / "docker/patch/latest/megatron.patch", given("MEGATRON")
    copy = tmp_path / "megatron"
    subprocess.run(["git", "clone", "-q", "--shared", str(megatron), str(copy)], check=True)
    check = ["git", "-C", str(copy), "apply", "--reverse", "--check", str(patch)]
    assert subprocess.run(check, capture_output=True).returncode != 0
    git(copy, "apply", str(patch))
    assert subprocess.run(check, capture_output=True).returncode == 0
