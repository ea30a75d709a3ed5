"""What engine and registry say becomes one error of ours, with what to do about it."""

import docker.errors
import pytest
import requests

from plugins.errors import ControlPlaneError, TrainstackError, UserError
from plugins.images.words import as_error, boundary, registry_of

REGISTRY = "ghcr.io"


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        ("no basic auth credentials", UserError, "`docker login ghcr.io`"),
        ("denied: requested access to the resource is denied", UserError, "`docker login ghcr.io`"),
        ("unauthorized: authentication required", UserError, "`docker login ghcr.io`"),
        ("manifest for ghcr.io/me/pod:v1 not found: manifest unknown: manifest unknown", UserError, "name and tag"),
        (
            'Head "https://ghcr.io/v2/": http: server gave HTTP response to HTTPS client',
            UserError,
            "insecure-registries",
        ),
        ("x509: certificate signed by unknown authority", UserError, "does not trust the certificate of ghcr.io"),
        ("write /var/lib/docker/x: no space left on device", UserError, "docker system prune"),
        ("toomanyrequests: You have reached your pull rate limit", ControlPlaneError, "docker login"),
        ("dial tcp: lookup ghcr.io: no such host", ControlPlaneError, "try again"),
        ('Get "https://ghcr.io/v2/": net/http: TLS handshake timeout', ControlPlaneError, "try again"),
        ("received unexpected HTTP status: 503 Service Unavailable", ControlPlaneError, "try again"),
        ("unexpected EOF", ControlPlaneError, "try again"),
        ("The command '/bin/sh -c exit 3' returned a non-zero code: 3", UserError, "returned a non-zero code: 3"),
        ("something nobody wrote down", ControlPlaneError, "something nobody wrote down"),
        ("", ControlPlaneError, "no reason given"),
    ],
)
def test_the_words_say_whose_fault_it_is(words: str, kind: type[TrainstackError], said: str) -> None:
    error = as_error("push ghcr.io/me/pod:v1", words, "ghcr.io/me/pod:v1")
    assert type(error) is kind
    assert str(error).startswith("push ghcr.io/me/pod:v1: ") and said in str(error)


def test_a_failed_step_comes_with_the_end_of_its_output() -> None:
    error = as_error("build a:1", "returned a non-zero code: 1", "a:1", "Collecting x\nERROR: no x")
    assert str(error).endswith("non-zero code: 1\nCollecting x\nERROR: no x")


@pytest.mark.parametrize(
    ("image", "registry"),
    [
        ("me/pod:1", "docker.io"),
        ("pod", "docker.io"),
        ("ghcr.io/me/pod:1", "ghcr.io"),
        ("127.0.0.1:5000/pod", "127.0.0.1:5000"),
        ("localhost/pod", "localhost"),
    ],
)
def test_the_registry_of_a_name(image: str, registry: str) -> None:
    assert registry_of(image) == registry


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        (
            docker.errors.DockerException(
                "Error while fetching server API version: ('Connection aborted.', FileNotFoundError())"
            ),
            UserError,
            "no Docker engine answers. To do: install Docker",
        ),
        (
            docker.errors.DockerException(
                "Error while fetching server API version: (PermissionError(13, 'Permission denied'))"
            ),
            UserError,
            "you may not use the Docker engine",
        ),
        (
            docker.errors.DockerException("Credentials store error: StoreError('docker-credential-x not installed')"),
            UserError,
            "the credential helper",
        ),
        (
            requests.exceptions.ReadTimeout("Read timed out."),
            ControlPlaneError,
            "the Docker engine stopped answering (ReadTimeout",
        ),
    ],
)
def test_what_docker_py_raises_does_not_get_out(raised: Exception, kind: type[TrainstackError], said: str) -> None:
    with pytest.raises(kind) as caught, boundary("push a:1", "a:1"):
        raise raised
    assert said in str(caught.value)
