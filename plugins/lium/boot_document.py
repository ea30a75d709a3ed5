"""The one JSON document a pod's supervisor starts from, read and checked.

It holds the run's secrets, so it comes on standard input only, its parts do not show in a `repr`, and a message about
a wrong one names the key and never the value. Standard library only.
"""

import json
import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plugins.lium.process_table import environment_of

BARE_SESSION = "TRAINSTACK_BARE_SESSION"  # set by the bootstrap: this SSH session has not the image's environment


class StartError(Exception):
    """Why the supervisor or a service did not start; printed to the caller."""


@dataclass(frozen=True)
class ServiceSpec:
    """One service of the boot document. `cwd` None is the supervisor's own (TRAINSTACK_HOME)."""

    name: str
    argv: list[str]
    cwd: str | None
    env: dict[str, str] = field(repr=False)


@dataclass(frozen=True)
class Boot:
    """The boot document. `env` holds secrets: it lives in memory and in the services' environment only."""

    pod: str
    state_dir: Path
    env: dict[str, str] = field(repr=False)
    services: list[ServiceSpec]
    grace_s: float

    @classmethod
    def from_json(cls, text: str) -> "Boot":
        """Read and check the document; a StartError names the key that is wrong, never its value."""
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise StartError(f"standard input is not one JSON document ({type(error).__name__})") from None
        if not isinstance(raw, dict) or not isinstance(raw.get("services"), list) or not raw["services"]:
            raise StartError("the boot document needs a non-empty list `services`")
        services = [_service(item, index) for index, item in enumerate(raw["services"])]
        grace_s = raw.get("grace_s", 25)
        if not isinstance(grace_s, int | float):
            raise StartError("`grace_s` must be a number of seconds")
        if len({service.name for service in services}) != len(services):
            raise StartError("two services have the same name")
        return cls(
            pod=str(raw.get("pod") or ""),
            state_dir=Path(str(raw.get("state_dir") or "~/trainstack")).expanduser(),
            env=_text_pairs(raw.get("env") or {}, "env"),
            services=services,
            grace_s=grace_s,
        )


def _service(raw: Any, index: int) -> ServiceSpec:
    if not isinstance(raw, dict) or not isinstance(raw.get("name"), str) or not raw["name"].isidentifier():
        raise StartError(f"services[{index}] needs a `name` of letters, digits and underscores")
    argv = raw.get("argv")
    if not isinstance(argv, list) or not argv or not all(isinstance(word, str) for word in argv):
        raise StartError(f"services[{index}] ({raw['name']}) needs `argv`, a non-empty list of texts")
    cwd = raw.get("cwd")
    if cwd is not None and not isinstance(cwd, str):
        raise StartError(f"services[{index}] ({raw['name']}): `cwd` must be a path")
    return ServiceSpec(raw["name"], argv, cwd, _text_pairs(raw.get("env") or {}, f"services[{index}].env"))


def _text_pairs(raw: Any, where: str) -> dict[str, str]:
    if not isinstance(raw, dict) or not all(isinstance(value, str) for value in raw.values()):
        raise StartError(f"`{where}` must map names to texts")
    return dict(raw)


def session_environment() -> dict[str, str]:
    """The environment for services: this session's, completed by the image's where the session has it not.

    A plain sshd gives its sessions none of the image's variables (CUDA paths, TRAINSTACK_HOME); pid 1 has them.
    """
    own = {name: value for name, value in os.environ.items() if name != BARE_SESSION}
    if BARE_SESSION not in os.environ:
        return own
    return {**_etc_environment(), **environment_of(1), **own}


def _etc_environment() -> dict[str, str]:
    try:
        lines = Path("/etc/environment").read_text(errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.strip().partition("=") for line in lines if "=" in line and not line.lstrip().startswith("#"))
    return {name: " ".join(shlex.split(value)) for name, _, value in pairs}
