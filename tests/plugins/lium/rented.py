"""A pod on the emulator that is reached over SSH, and the way to make its host lie about the GPUs."""

import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from plugins.lium.pods import PodRow
from plugins.lium.tunnel import PodConnection

LIE = """
tool=$(command -v nvidia-smi)
case $tool in /opt-pod/bin/*|*/pods/*/bin/*) ;; *) echo "$tool is not the emulator's" >&2; exit 1 ;; esac
"""


@contextmanager
def rented_pod(
    url: str, api_key: str, key_path: Path, known_hosts: Path, *, gpu: str, count: int, environment: dict[str, str]
) -> Iterator[PodConnection]:
    """Rent over the plain API, wait until the pod runs, connect, and give it back at the end."""
    name = f"ts-{uuid.uuid4().hex[:8]}-sft-a1"
    public_key = Path(f"{key_path}.pub").read_text().strip()
    with httpx.Client(base_url=url, headers={"X-API-KEY": api_key}, timeout=20) as api:
        template = {"name": name, "docker_image": "some/image", "environment": environment}
        made = api.post("/templates", json=template).raise_for_status().json()
        body = {"gpu_type": gpu, "gpu_count": count, "pod_name": name, "user_public_key": [public_key]}
        rent = api.post("/executors/rent-by-spec", json=body | {"template_id": made["id"], "termination_hours": 1})
        pod_id = rent.raise_for_status().json()["pod_id"]
        try:
            connection = PodConnection(_ready(api, pod_id, name), key_path, known_hosts)
            try:
                connection.connect(30)
                yield connection
            finally:
                connection.close()
        finally:
            api.delete(f"/pods/{pod_id}")


def lie(connection: PodConnection, script: str | None) -> None:
    """Put another nvidia-smi (the lines of a shell script) in place of the pod's; None: take it away."""
    work = 'rm "$tool"' if script is None else 'cat >"$tool"'
    text = f"#!/bin/sh\n{script}\n"
    done = connection.run(["sh", "-c", LIE + work], stdin=text.encode(), timeout_s=20)
    assert done.rc == 0, done.stderr


def _ready(api: httpx.Client, pod_id: str, name: str) -> PodRow:
    deadline = time.monotonic() + 60
    while True:
        rows = {row["id"]: row for row in api.get("/pods").raise_for_status().json()}
        row = rows.get(pod_id, {})
        where = re.fullmatch(r"ssh (\S+)@(\S+) -p (\d+)", row.get("ssh_connect_cmd") or "")
        if row.get("status") == "RUNNING" and where:
            return PodRow(pod_id, name, "RUNNING", where[2], int(where[3]), where[1])
        assert time.monotonic() < deadline, f"the pod is not ready: {row}"
        time.sleep(0.1)
