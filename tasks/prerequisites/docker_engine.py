"""What building and pushing an image needs: a Docker engine with room, and logins of registries.

Logins are only looked for in Docker's own file; no password helper is called and no token is read out.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from blocks.recipe import Recipe
from tasks.prerequisites.finding import CONNECT_S, Finding

ENGINE, ROOM, LOGIN = "Docker engine", "disk of Docker", "registry login"
NEEDED_BYTES = 60 * 10**9  # a training image with CUDA, PyTorch and Megatron, and its layers while it is built
HUB = "docker.io"


def engine() -> list[Finding]:
    """Whether an engine answers, which, and how much room it has."""
    import docker

    try:
        client = docker.from_env(timeout=CONNECT_S)
        try:
            client.ping()
            version, info = str(client.version().get("Version", "?")), client.info()
        finally:
            client.close()
    except Exception as error:  # docker, requests and sockets each raise their own
        where = f" at {os.environ['DOCKER_HOST']}" if os.environ.get("DOCKER_HOST") else ""
        denied = "permission" in str(error).lower()
        words = f"no answer{where}" if not denied else f"you may not use the engine{where}"
        remedy = "install Docker and start it: systemctl start docker"
        if denied:
            remedy = "sudo usermod -aG docker $USER, then log in again"
        return [Finding(ENGINE, False, words, remedy, needed_for="images")]
    return [Finding(ENGINE, True, version, needed_for="images"), _room(info)]


def _room(info: dict[str, Any]) -> Finding:
    root = Path(str(info.get("DockerRootDir") or ""))
    elsewhere = os.environ.get("DOCKER_HOST", "").startswith(("tcp:", "ssh:", "http:", "https:"))
    if elsewhere or not root.is_absolute() or not root.exists():
        return Finding(ROOM, True, "not to be seen from here", needed_for="images")
    free = shutil.disk_usage(root).free
    remedy = f"docker system prune, or more disk; an image needs {NEEDED_BYTES / 1e9:.0f} GB while it is built"
    return Finding(ROOM, free > NEEDED_BYTES, f"{free / 1e9:.0f} GB free at {root}", remedy, needed_for="images")


def login(recipe: Recipe | None = None) -> list[Finding]:
    """Which registries Docker has credentials for; with a recipe's image, whether its registry is among them."""
    file = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        known = sorted(_registries(config))
    except (OSError, ValueError, AttributeError) as error:
        words = f"{file} cannot be read ({type(error).__name__})"
        return [Finding(LOGIN, False, words, "docker login", needed_for="images")]
    wanted = _registry(recipe.pod.image) if recipe and recipe.pod.image else None
    words = ", ".join(known) or "none"
    ok = bool(known) if wanted is None else wanted in known
    if wanted is not None and not ok:
        words += f"; not {wanted}, where the recipe's image is"
    return [Finding(LOGIN, ok, words, f"docker login {wanted or 'REGISTRY'}", needed_for="images")]


def _registries(config: dict[str, Any]) -> set[str]:
    """Registries that the file holds a login for, or leaves to a password helper."""
    helper = bool(config.get("credsStore"))
    auths: dict[str, Any] = config.get("auths") or {}
    named = {
        name for name, entry in auths.items() if helper or any(entry.get(key) for key in ("auth", "identitytoken"))
    }
    return {_host(name) for name in named | set(config.get("credHelpers") or {})}


def _host(name: str) -> str:
    host = name.removeprefix("https://").removeprefix("http://").partition("/")[0]
    return HUB if host in ("index.docker.io", "registry-1.docker.io", HUB) else host


def _registry(image: str) -> str:
    """The registry of an image's name: its first part, if that looks like a host, else Docker's own."""
    first, slash, _ = image.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else HUB
