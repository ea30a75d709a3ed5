"""One account, one way to rent, and a way back for all of it: what the conformance suite spends is bounded here.

Every rent is of one GPU on the cheapest host, for one hour at the most by the server's own clock, under a price, and
counted. At the end all pods and volumes with this run's name are removed, whether the tests passed or not.
"""

import contextlib
import os
import time
import uuid
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests
from lium import Config, Lium
from lium.sdk.exceptions import LiumError

MOST_USD_PER_HOUR = 1.0
READY_S = 900.0
GONE_S = 120.0
REPORT = pytest.StashKey()


def pytest_configure(config):
    config.stash[REPORT] = {}


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    report = config.stash.get(REPORT, {})
    if report:
        terminalreporter.section("what only the service could say")
        for name, value in sorted(report.items()):
            terminalreporter.write_line(f"{name}: {value}")


@pytest.fixture(scope="session")
def note(request):
    """`note(name, value)`: a line of the report at the end."""
    report = request.config.stash.setdefault(REPORT, {})

    def add(name, value):
        report[name] = value

    return add


@dataclass
class Account:
    """The account under test, and the only way to rent on it."""

    lium: Lium
    url: str
    key: str
    key_path: Path
    pods_at_most: int
    poll_s: float
    run: str = field(default_factory=lambda: f"ts-conf-{uuid.uuid4().hex[:8]}")
    rented: int = 0
    statuses: list = field(default_factory=list)

    def cheapest(self):
        """A host that rents one GPU, under the price."""
        fits = [
            node
            for node in self.lium.ls()
            if not node.whole_host_only and (node.available_gpu_count or 0) >= 1
            if 0 < node.price_per_gpu <= MOST_USD_PER_HOUR
        ]
        assert fits, f"no host rents one GPU for at most ${MOST_USD_PER_HOUR} an hour now"
        return min(fits, key=lambda node: (node.price_per_gpu, node.id))

    def rent(self, node, *, idempotency_key=None, **wanted):
        """The one rent of this suite: one GPU, one hour. Returns the pod's id."""
        assert self.rented < self.pods_at_most, f"--pods-at-most {self.pods_at_most} is used up"
        self.rented += 1
        answer = self.lium.up(
            executor_id=node.id,
            gpu_count=1,
            termination_hours=1,
            idempotency_key=idempotency_key,
            **{"name": self.run} | wanted,
        )
        return answer["id"]

    def rows(self):
        """This run's rows of the listing; each status that was seen is kept."""
        rows = [row for row in self.lium._request("GET", "/pods").json() if row["pod_name"].startswith(self.run)]
        for row in rows:
            if row["status"] not in self.statuses:
                self.statuses.append(row["status"])
        return rows

    def ready(self, pod_id):
        """Wait until the pod runs and can be reached; returns its row."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            row = next((row for row in self.rows() if row["id"] == pod_id), None)
            assert row is None or row["status"] not in ("CREATION_FAILED", "BROKEN", "FAILED"), row["status"]
            if row and row["status"] == "RUNNING" and row["ssh_connect_cmd"]:
                return row
            time.sleep(self.poll_s)
        raise AssertionError(f"pod {pod_id} was not ready within {READY_S} s")

    def info(self, pod_id):
        """The SDK's own view of a pod, which its calls take."""
        return next(pod for pod in self.lium.ps() if pod.id == pod_id)

    def give_back(self):
        """Remove every pod and volume of this run; fails loudly when something is left that costs money."""
        for row in self.rows():
            # Not through the SDK's `down`: whatever happens to one pod, the others are given back.
            with contextlib.suppress(LiumError, requests.RequestException):
                self.lium._request("DELETE", f"/pods/{row['id']}")
        deadline = time.monotonic() + GONE_S
        while (left := self.rows()) and time.monotonic() < deadline:
            time.sleep(self.poll_s)
        assert not left, f"STILL RENTED, remove by hand: {[(row['id'], row['status']) for row in left]}"
        for volume in self.lium.volumes():
            if volume.name.startswith(self.run):
                self.lium.volume_delete(volume.id)


@pytest.fixture(scope="module")
def account(request, tmp_path_factory):
    """On --base-url with LIUM_API_KEY and LIUM_SSH_KEY_PATH, else on an emulator with a key of its own."""
    url = request.config.getoption("--base-url")
    missing = [name for name in ("LIUM_API_KEY", "LIUM_SSH_KEY_PATH") if not os.environ.get(name)]
    if url and missing:
        pytest.fail(f"--base-url needs {' and '.join(missing)} in the environment", pytrace=False)
    if url:
        key, key_path, poll_s = os.environ["LIUM_API_KEY"], Path(os.environ["LIUM_SSH_KEY_PATH"]).expanduser(), 3.0
    else:
        key, key_path, poll_s = f"key-{uuid.uuid4().hex}", request.getfixturevalue("ssh_key"), 0.1
        url = request.getfixturevalue("emulator").url
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # the SDK's pins and caches
        lium = Lium(Config(api_key=key, base_url=url, ssh_key_path=key_path))
        made = Account(lium, url, key, key_path, request.config.getoption("--pods-at-most"), poll_s)
        try:
            yield made
        finally:
            made.give_back()
            lium.close()
