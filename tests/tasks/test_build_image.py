"""The pod image from a checkout: named after what it is made of, built once, pinned by the registry's digest."""

from pathlib import Path

import docker
import pytest

from plugins.errors import UserError
from tasks.build_image import ImageReference, build_image
from tests.docker_server import Registry
from tests.docker_server.fixtures import (  # noqa: F401
    base_image,
    docker_config,
    docker_engine,
    here,
    open_registry,
)
from tests.plugins.images.checkout import checkout

pytestmark = pytest.mark.xdist_group("docker")


def test_an_image_is_built_once_and_again_when_a_file_changes(
    here: docker.APIClient,  # noqa: F811
    base_image: str,  # noqa: F811
    open_registry: Registry,  # noqa: F811
    tmp_path: Path,
) -> None:
    root, repository = checkout(tmp_path), f"{open_registry.host}/once/pod"
    lines: list[str] = []

    def build() -> ImageReference:
        lines.clear()
        return build_image(repository, base=base_image, log=lines.append, root=root)

    first = build()
    assert any(line.startswith("Step ") for line in lines)
    assert first.digest == open_registry.manifest_digest("once/pod", first.name.rpartition(":")[2])
    assert first.pinned == f"{repository}@{first.digest}"
    assert build() == first
    assert lines == [f"{first.name} is in the registry already: nothing to build"]
    (root / "flows/a.py").write_text("# changed\n")
    assert build().name != first.name

    here.remove_image(first.name, force=True)
    here.pull(first.pinned)  # as a host does that runs the recipe
    container = here.create_container(first.pinned, ["cat", "/opt/copied"], host_config=here.create_host_config())
    here.start(container)
    assert here.wait(container)["StatusCode"] == 0
    assert here.logs(container) == b"# flows\n"
    here.remove_container(container)


def test_a_tag_of_ones_own_is_built_and_moved_every_time(
    here: docker.APIClient,  # noqa: F811
    base_image: str,  # noqa: F811
    open_registry: Registry,  # noqa: F811
    tmp_path: Path,
) -> None:
    root, repository = checkout(tmp_path), f"{open_registry.host}/tagged/pod"
    one = build_image(repository, tag="v1", base=base_image, log=lambda _: None, root=root)
    (root / "LICENSE").write_text("other\n")
    other = build_image(repository, tag="v1", base=base_image, log=lambda _: None, root=root)
    assert one.name == other.name == f"{repository}:v1"
    assert one.digest != other.digest == open_registry.manifest_digest("tagged/pod", "v1")


def test_without_a_push_the_registry_gets_nothing(
    here: docker.APIClient,  # noqa: F811
    base_image: str,  # noqa: F811
    open_registry: Registry,  # noqa: F811
    tmp_path: Path,
) -> None:
    repository = f"{open_registry.host}/kept/pod"
    made = build_image(repository, tag="v1", push=False, base=base_image, log=lambda _: None, root=checkout(tmp_path))
    assert (made.digest, made.pinned) == ("", f"{repository}:v1")
    assert open_registry.manifest_digest("kept/pod", "v1") is None
    assert here.inspect_image(made.name)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"repository": "me/pod:v1"}, "names more than a repository: give the tag as --tag"),
        ({"repository": f"me/pod@sha256:{'a' * 64}"}, "names more than a repository"),
        ({"repository": "Me/Pod"}, "is not the name of an image"),
        ({"repository": "me/pod", "tag": "a b"}, "is not the name of an image"),
        ({"repository": "me/pod", "base": "Slime:1"}, "is not the name of an image"),
    ],
)
def test_a_name_that_is_none_is_refused_before_anything_is_asked(
    words: dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(UserError, match=said):
        build_image(**words, root=tmp_path / "not a checkout")


def test_code_that_git_does_not_know_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    root, lines = checkout(tmp_path), list[str]()
    (root / "tasks/new.py").write_text("")
    with pytest.raises(UserError, match="no Docker engine answers"):
        build_image("me/pod", log=lines.append, root=root)
    assert lines == ["WARNING not in git, so not in the image: tasks/new.py"]
