"""Every store keeps the contract of `stores_contract.py`. A store is added by one entry in `MAKERS`."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.plugins.checkpoints.stores_contract")

from tests.plugins.checkpoints.hub_kit import HubKit  # noqa: E402
from tests.plugins.checkpoints.s3_server import s3_server  # noqa: E402
from tests.plugins.checkpoints.store_kits import FolderKit, Kit, S3Kit, VolumeKit  # noqa: E402
from tests.plugins.checkpoints.stores_contract import StoreContract  # noqa: E402


def make_s3(_tmp_path: Path) -> Kit:
    return S3Kit(s3_server())


MAKERS: dict[str, Callable[[Path], Kit]] = {
    "folder": FolderKit,
    "volume": VolumeKit,
    "s3": make_s3,
    "hub": HubKit,
}


@pytest.fixture(params=list(MAKERS))
def kit(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kit]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    yield MAKERS[request.param](tmp_path)


class TestEveryStore(StoreContract):
    """See `StoreContract`."""
