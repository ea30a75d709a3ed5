"""`trainstack image`: one message when it cannot, one line for the recipe when it can."""

import docker
import pytest

from flows.cli import main
from tests.docker_server import Registry
from tests.docker_server.fixtures import base_image, docker_config, docker_engine, here, open_registry  # noqa: F401


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["image", *words])
    said = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, said.out, said.err


def test_without_an_engine_it_ends_with_one_message(
    capsys: pytest.CaptureFixture[str], tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    code, out, err = run(capsys, "me/pod")
    assert (code, out) == (2, "")
    assert "error: ask the Docker engine: no Docker engine answers" in err and "Traceback" not in err


def test_a_tag_in_the_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "me/pod:v1")
    assert (code, out) == (2, "") and "give the tag as --tag" in err


@pytest.mark.xdist_group("docker")
def test_an_image_that_the_registry_has_is_printed_for_the_recipe(
    capsys: pytest.CaptureFixture[str],
    here: docker.APIClient,  # noqa: F811
    base_image: str,  # noqa: F811
    open_registry: Registry,  # noqa: F811
) -> None:
    """The real context; the image under its name is a stand-in, since its base is far too big for a test."""
    from plugins.images.context import context, default_arguments

    repository = f"{open_registry.host}/cli/pod"
    tag = context(arguments=default_arguments()).tag
    here.tag(base_image, repository, tag)
    here.push(repository, tag)
    code, out, _ = run(capsys, repository)
    assert (code, out) == (0, f"pod: {{image: {repository}@{open_registry.manifest_digest('cli/pod', tag)}}}\n")
