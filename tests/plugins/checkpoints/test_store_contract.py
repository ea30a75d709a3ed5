"""Every store keeps `stores_contract.py`, and `uploads_contract.py` if it takes a checkpoint while it is sealed.

A store is added by one entry in `MAKERS`, and one in `NOT_FED` if it wants the hash of a file before its first byte.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

for contract in ("stores_contract", "uploads_contract"):
    pytest.register_assert_rewrite(f"tests.plugins.checkpoints.{contract}")

from tests.plugins.checkpoints.hub_kit import HubKit  # noqa: E402
from tests.plugins.checkpoints.s3_server import s3_server  # noqa: E402
from tests.plugins.checkpoints.store_kits import RUN, STAGE, FolderKit, Kit, S3Kit, VolumeKit  # noqa: E402
from tests.plugins.checkpoints.stores_contract import StoreContract  # noqa: E402
from tests.plugins.checkpoints.uploads_contract import UploadsContract  # noqa: E402


def make_s3(_tmp_path: Path) -> Kit:
    return S3Kit(s3_server())


MAKERS: dict[str, Callable[[Path], Kit]] = {
    "folder": FolderKit,
    "volume": VolumeKit,
    "s3": make_s3,
    "hub": HubKit,
}
NOT_FED = {"hub"}


@pytest.fixture(params=list(MAKERS))
def kit(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kit]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    yield MAKERS[request.param](tmp_path)


class TestEveryStore(StoreContract):
    """See `StoreContract`."""


@pytest.mark.parametrize("kit", [name for name in MAKERS if name not in NOT_FED], indirect=True)
class TestEveryFedStore(UploadsContract):
    """See `UploadsContract`."""


@pytest.mark.parametrize("kit", sorted(NOT_FED), indirect=True)
def test_a_store_that_is_not_fed_says_so(kit: Kit) -> None:
    assert kit.open().begin(RUN, STAGE, 19, 1) is None
