"""What a Docker engine and a registry say when something goes wrong, as errors of ours with what to do about it.

Both speak in sentences; a status says little (a registry's refusal arrives as 500 from some engines, and inside a
stream of status 200 from all). The sentences are those of Docker Engine 20.10 and 28 and of distribution 2.8.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from plugins.errors import ControlPlaneError, TrainstackError, UserError

LONGEST = 1500
HUB = "docker.io"

_NO_ENGINE = "install Docker and start it; if `docker info` answers, set DOCKER_HOST to its address (docker context ls)"
_RULES: tuple[tuple[str, type[TrainstackError], str], ...] = (
    (r"no space left on device", UserError, "make room where Docker keeps its data: docker system prune"),
    (r"toomanyrequests|rate limit", ControlPlaneError, "wait, or `docker login` for a higher limit"),
    (
        r"unauthorized|authentication required|no basic auth credentials|denied|incorrect username or password",
        UserError,
        "`docker login {registry}` with an account that may do this, and see that the repository's name is right",
    ),
    (r"manifest unknown|manifest for .* not found|not found: manifest", UserError, "see that name and tag are right"),
    (r"server gave HTTP response to HTTPS client", UserError, "name {registry} in the engine's insecure-registries"),
    (r"x509|certificate", UserError, "the engine does not trust the certificate of {registry}"),
    (r"invalid reference format|repository name must be", UserError, "write REGISTRY/NAME in lower case"),
    (
        r"time-?out|timed out|deadline exceeded|connection re(?:fused|set)|no such host|temporary failure|broken pipe"
        r"|unexpected EOF|\bEOF$|network is unreachable|50[0234]\b|service unavailable|bad gateway",
        ControlPlaneError,
        "try again; what was done already is kept",
    ),
    (r"returned a non-zero code|dockerfile parse error|failed to solve|COPY failed|failed to process", UserError, ""),
)


def registry_of(image: str) -> str:
    """The registry of an image's name: its first part, if that looks like a host, else Docker's own."""
    first, slash, _ = image.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else HUB


def as_error(what: str, words: str, image: str, tail: str = "") -> TrainstackError:
    """The error that the words of an engine stand for.

    what: what was wanted, as "push ghcr.io/me/pod:v1"; image: whose registry is meant; tail: the end of a build's log.
    """
    said = " ".join(words.split())[:LONGEST] or "no reason given"
    for pattern, kind, advice in _RULES:
        if re.search(pattern, said, re.IGNORECASE):
            return kind(_sentence(what, said, advice.format(registry=registry_of(image)), tail))
    return ControlPlaneError(_sentence(what, said, "", tail))


def _sentence(what: str, said: str, advice: str, tail: str) -> str:
    return f"{what}: {said}" + (f". To do: {advice}" if advice else "") + (f"\n{tail}" if tail else "")


@contextmanager
def boundary(what: str, image: str) -> Iterator[None]:
    """Turn what docker-py raises into errors of ours."""
    import http.client

    import docker.errors
    import urllib3.exceptions

    try:
        yield
    except docker.errors.APIError as error:
        raise as_error(what, str(error.explanation or error), image) from error
    except docker.errors.DockerException as error:
        raise _of_client(what, str(error), image) from error
    except (OSError, urllib3.exceptions.HTTPError, http.client.HTTPException) as error:  # requests' own are OSErrors
        raise ControlPlaneError(
            f"{what}: the Docker engine stopped answering ({type(error).__name__}: {error}). Try again"
        ) from error


def _of_client(what: str, said: str, image: str) -> TrainstackError:
    """Errors of docker-py itself: no engine, a credential helper that fails."""
    if "credentials store" in said.lower():
        advice = f"the credential helper of Docker's config.json failed: `docker login {registry_of(image)}` again"
        return UserError(_sentence(what, said, advice, ""))
    if "permission denied" in said.lower():
        return UserError(_sentence(what, "you may not use the Docker engine", "sudo usermod -aG docker $USER", ""))
    if "Error while fetching server API version" in said or "Connection aborted" in said:
        return UserError(_sentence(what, "no Docker engine answers", _NO_ENGINE, ""))
    return as_error(what, said, image)
