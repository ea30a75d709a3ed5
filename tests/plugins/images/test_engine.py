"""A real engine and real registries: what is built is what is pushed, and every failure has its name.

The base of the real image has never been here: the Dockerfiles are small ones with a shell under them.
"""

import contextlib
import os
import signal
import socket
from pathlib import Path

import docker
import pytest

from plugins.errors import ControlPlaneError, UserError
from plugins.images.context import context
from plugins.images.engine import EVERY_S, LABEL, Engine, Transfer
from tests.docker_server import Registry, Unavailable, engine
from tests.docker_server.fixtures import LOGIN, log_in
from tests.plugins.images.checkout import SMALL, checkout

pytestmark = pytest.mark.xdist_group("docker")


def logged() -> tuple[list[str], Engine]:
    lines: list[str] = []
    return lines, Engine(lines.append)


def test_what_is_built_holds_our_files_and_says_what_it_is_made_of(
    here: docker.APIClient, base_image: str, tmp_path: Path
) -> None:
    made_of = context(checkout(tmp_path), {"BASE": base_image})
    lines, builder = logged()
    with builder:
        image_id = builder.build(made_of, "pod:built")
    found = here.inspect_image("pod:built")
    assert (found["Id"], found["Config"]["Labels"][LABEL]) == (image_id, made_of.digest)
    assert [line.split(" : ")[0] for line in lines] == [f"Step {n}/7" for n in range(1, 8)]  # the label is one


def test_a_step_that_fails_shows_the_end_of_its_output(here: docker.APIClient, base_image: str, tmp_path: Path) -> None:
    root = checkout(tmp_path, SMALL + "RUN echo before it broke; exit 3\n")
    _, builder = logged()
    with builder, pytest.raises(UserError, match=r"build pod:broken: .*returned a non-zero code: 3") as caught:
        builder.build(context(root, {"BASE": base_image}), "pod:broken")
    assert "before it broke" in str(caught.value)


def test_a_base_that_its_registry_has_not_is_the_users_fault(
    here: docker.APIClient, open_registry: Registry, tmp_path: Path
) -> None:
    made_of = context(checkout(tmp_path), {"BASE": f"{open_registry.host}/slime:none"})
    _, builder = logged()
    with builder, pytest.raises(UserError, match=r"slime:none not found.*see that name and tag are right"):
        builder.build(made_of, "pod:no-base")


def test_a_registry_that_does_not_answer_is_worth_another_try(
    here: docker.APIClient, base_image: str, tmp_path: Path
) -> None:
    here.tag(base_image, "127.0.0.1:1/pod", "v1")
    _, builder = logged()
    with builder:
        with pytest.raises(ControlPlaneError, match=r"look up 127.0.0.1:1/pod:v1: .*connection refused.*try again"):
            builder.digest_in_registry("127.0.0.1:1/pod:v1")
        with pytest.raises(ControlPlaneError, match=r"push 127.0.0.1:1/pod:v1: .*connection refused.*try again"):
            builder.push("127.0.0.1:1/pod:v1")


def test_the_digest_of_a_push_is_the_registrys(
    here: docker.APIClient, base_image: str, open_registry: Registry
) -> None:
    name = f"{open_registry.host}/me/pod"
    here.tag(base_image, name, "v1")
    _, builder = logged()
    with builder:
        assert builder.digest_in_registry(f"{name}:v1") is None
        digest = builder.push(f"{name}:v1")
        assert digest == open_registry.manifest_digest("me/pod", "v1") == builder.digest_in_registry(f"{name}:v1")


def test_a_private_registry_takes_it_with_the_login_of_dockers_config_and_no_other(
    here: docker.APIClient, base_image: str, private_registry: Registry, docker_config: Path
) -> None:
    name = f"{private_registry.host}/pod"
    here.tag(base_image, name, "v1")
    for password in (None, "wrong-pa55-word"):
        if password:
            log_in(docker_config, private_registry, password)
        lines, builder = logged()
        with builder, pytest.raises(UserError, match=rf"To do: `docker login {private_registry.host}`") as caught:
            builder.push(f"{name}:v1")
        assert "pa55-word" not in str(caught.value)
        with builder:
            assert builder.digest_in_registry(f"{name}:v1") is None
    log_in(docker_config, private_registry)
    lines, builder = logged()
    with builder:
        assert builder.push(f"{name}:v1") == private_registry.manifest_digest("pod", "v1")
    assert LOGIN[1] not in "\n".join(lines)


def test_without_an_engine_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    _, builder = logged()
    with pytest.raises(UserError, match=r"no Docker engine answers\. To do: install Docker"), builder:
        pass


def test_an_engine_that_ends_in_the_middle_is_worth_another_try(
    docker_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base is asked of a registry that says nothing, so that the build is at work for as long as it takes."""
    with socket.create_server(("127.0.0.1", 0)) as silent, contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(engine())
        except Unavailable as why:
            pytest.skip(str(why))
        monkeypatch.setenv("DOCKER_HOST", url)
        pid = int(Path(url.removeprefix("unix://")).with_name("pid").read_text())

        def end_it(line: str) -> None:
            if "FROM" in line:
                os.kill(pid, signal.SIGTERM)

        base = f"127.0.0.1:{silent.getsockname()[1]}/slime:1"
        with Engine(end_it) as ending, pytest.raises(ControlPlaneError, match=r"build pod:cut: "):
            ending.build(context(checkout(tmp_path), {"BASE": base}), "pod:cut")


def test_progress_is_told_now_and_then_and_adds_up_the_layers() -> None:
    lines: list[str] = []
    now = [0.0]
    transfer = Transfer(lines.append, lambda: now[0])
    sent = {"status": "Pushing", "id": "a", "progressDetail": {"current": 10**9, "total": 4 * 10**9}}
    transfer.seen(sent)
    now[0] = EVERY_S
    transfer.seen({**sent, "id": "b", "progressDetail": {"current": 2 * 10**9}})
    transfer.seen({"status": "Pushed", "id": "b", "progressDetail": {}})
    assert lines == ["sent 3.0 GB of 6.0 GB in 2 layers so far"]
