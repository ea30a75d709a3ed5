"""The pod's way to the Prefect API: a gateway on this machine, at the end of the SSH tunnel, or behind a public URL.

A pod is a stranger's machine. It gets a token of its own, which the gateway (`plugins/gateway`) accepts for what this
pod needs and nothing else, and never the API's own password.
"""

import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from blocks.recipe import Recipe, home
from plugins.gateway.service import Gateway
from plugins.gateway.tokens import auth_string, load_key, mint
from plugins.lium.pods import PodRow
from plugins.lium.tunnel import PodConnection
from tasks.stage_contract import WORK_POOL

PORT_FILE = "trainstack/api_port"


def key_file() -> Path:
    """Where the key lies that pods' tokens are made with; a gateway behind a public URL needs the same one."""
    return home() / "gateway.key"


class ApiDoor:
    """The gateway of this process, begun when the first pod needs it. Use as a context manager."""

    def __init__(self, recipe: Recipe, upstream: str, log: Callable[[str], None]) -> None:
        self._recipe, self._upstream, self._log = recipe, upstream.rstrip("/"), log
        self._key = load_key(key_file())
        self._gateway: Gateway | None = None

    def __enter__(self) -> "ApiDoor":
        return self

    def __exit__(self, *exc: object) -> None:
        if self._gateway is not None:
            self._gateway.close()

    def url_on_pod(self, connection: PodConnection) -> str:
        """URL of the API as the pod sees it; an adopted pod gets the port its worker already knows."""
        if self._recipe.api_url:
            return self._recipe.api_url.rstrip("/")
        known = connection.read_if_exists(PORT_FILE)
        remote = int(known) if known and known.strip().isdigit() else 0
        port = connection.forward_to_pod(self._port(), remote_port=remote)
        connection.run(f"mkdir -p trainstack && echo {port} > {PORT_FILE}", timeout_s=30)
        return f"http://127.0.0.1:{port}{urlsplit(self._upstream).path}"

    def pod_env(self, row: PodRow, api_url: str) -> dict[str, str]:
        """What the pod's processes need to reach the API. It holds the pod's token."""
        return {
            "PREFECT_API_URL": api_url,
            "PREFECT_API_AUTH_STRING": auth_string(row.name, mint(self._key, row.name, row.id)),
        }

    def shut(self, pod: str) -> None:
        """Let this pod in no more, before its attempt is declared lost: its word must not overwrite ours."""
        if self._gateway is not None:
            self._gateway.revoke(pod)

    def _port(self) -> int:
        if self._gateway is None:
            own = os.environ.get("PREFECT_API_AUTH_STRING")
            self._gateway = Gateway(self._upstream, self._key, upstream_auth=own, work_pool=WORK_POOL, log=self._log)
            self._gateway.start()
        return self._gateway.port
