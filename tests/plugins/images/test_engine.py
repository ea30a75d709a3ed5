"""A real engine and real registries: what is built is what is pushed, and every failure has its name.

The base of the real image has never been here: the Dockerfiles are small ones with a shell under them.
"""

from pathlib import Path

import docker
import pytest

from plugins.errors import ControlPlaneError, UserError
from plugins.images.context import context
from plugins.images.engine import EVERY_S, LABEL, Engine, Transfer
from tests.docker_server import Registry
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
    lines, engine = logged()
    with engine:
        image_id = engine.build(made_of, "pod:built")
    found = here.inspect_image("pod:built")
    assert (found["Id"], found["Config"]["Labels"][LABEL]) == (image_id, made_of.digest)
    assert [line.split(" : ")[0] for line in lines] == [f"Step {n}/7" for n in range(1, 8)]  # the label is one


def test_a_step_that_fails_shows_the_end_of_its_output(here: docker.APIClient, base_image: str, tmp_path: Path) -> None:
    root = checkout(tmp_path, SMALL + "RUN echo before it broke; exit 3\n")
    _, engine = logged()
    with engine, pytest.raises(UserError, match=r"build pod:broken: .*returned a non-zero code: 3") as caught:
        engine.build(context(root, {"BASE": base_image}), "pod:broken")
    assert "before it broke" in str(caught.value)


def test_a_base_that_its_registry_has_not_is_the_users_fault(
    here: docker.APIClient, open_registry: Registry, tmp_path: Path
) -> None:
    made_of = context(checkout(tmp_path), {"BASE": f"{open_registry.host}/slime:none"})
    _, engine = logged()
    with engine, pytest.raises(UserError, match=r"slime:none not found.*see that name and tag are right"):
        engine.build(made_of, "pod:no-base")


def test_a_registry_that_does_not_answer_is_worth_another_try(
    here: docker.APIClient, base_image: str, tmp_path: Path
) -> None:
    here.tag(base_image, "127.0.0.1:1/pod", "v1")
    _, engine = logged()
    with engine:
        with pytest.raises(ControlPlaneError, match=r"look up 127.0.0.1:1/pod:v1: .*connection refused.*try again"):
            engine.digest_in_registry("127.0.0.1:1/pod:v1")
        with pytest.raises(ControlPlaneError, match=r"push 127.0.0.1:1/pod:v1: .*connection refused.*try again"):
            engine.push("127.0.0.1:1/pod:v1")


def test_the_digest_of_a_push_is_the_registrys(
    here: docker.APIClient, base_image: str, open_registry: Registry
) -> None:
    name = f"{open_registry.host}/me/pod"
    here.tag(base_image, name, "v1")
    _, engine = logged()
    with engine:
        assert engine.digest_in_registry(f"{name}:v1") is None
        digest = engine.push(f"{name}:v1")
        assert digest == open_registry.manifest_digest("me/pod", "v1") == engine.digest_in_registry(f"{name}:v1")


def test_a_private_registry_takes_it_with_the_login_of_dockers_config_and_no_other(
    here: docker.APIClient, base_image: str, private_registry: Registry, docker_config: Path
) -> None:
    name = f"{private_registry.host}/pod"
    here.tag(base_image, name, "v1")
    for password in (None, "wrong-pa55-word"):
        if password:
            log_in(docker_config, private_registry, password)
        lines, engine = logged()
        with engine, pytest.raises(UserError, match=rf"To do: `docker login {private_registry.host}`") as caught:
            engine.push(f"{name}:v1")
        assert "pa55-word" not in str(caught.value)
        with engine:
            assert engine.digest_in_registry(f"{name}:v1") is None
    log_in(docker_config, private_registry)
    lines, engine = logged()
    with engine:
        assert engine.push(f"{name}:v1") == private_registry.manifest_digest("pod", "v1")
    assert LOGIN[1] not in "\n".join(lines)


def test_without_an_engine_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    _, engine = logged()
    with pytest.raises(UserError, match=r"no Docker engine answers\. To do: install Docker"), engine:
        pass


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
