"""Checkpoints as Prefect assets: what was made from what, in the UI's own graph."""

from typing import Any

from prefect.assets import Asset, AssetProperties, add_asset_metadata, materialize
from prefect.cache_policies import NO_CACHE

from plugins.checkpoints.manifest import Manifest

LONGEST = 500
REFUSED = str.maketrans(dict.fromkeys("\n\r\t \\?#", "_"))  # what Prefect refuses in a key


def asset_key(uri: str) -> str:
    """A store's URI as an asset key, which must read `scheme://...`."""
    scheme, _, rest = uri.partition(":")
    name = "file" if scheme in ("folder", "volume") else scheme
    return f"{name}://{rest.lstrip('/')}".translate(REFUSED)[:LONGEST]


def show_asset(manifest: Manifest, uri: str, made_from: list[str]) -> None:
    """Record a checkpoint as an asset made from others. Call it inside a flow.

    uri: where it is. made_from: URIs of its parent checkpoint, its data, the base model.
    """
    asset = Asset(
        key=asset_key(uri),
        properties=AssetProperties(
            name=f"{manifest.run_id} {manifest.stage} {manifest.iteration}",
            description=f"Checkpoint {manifest.iteration} of {manifest.stage}, sealed by attempt {manifest.attempt}.",
        ),
    )
    about: dict[str, Any] = {
        **manifest.lineage,
        **manifest.metrics,
        "iteration": manifest.iteration,
        "attempt": manifest.attempt,
        "manifest_sha256": manifest.digest(),
        "size_bytes": manifest.size_bytes,
    }

    @materialize(
        asset,
        asset_deps=[asset_key(source) for source in made_from],
        by="trainstack",
        name="record-checkpoint",
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    def record() -> None:
        add_asset_metadata(asset, about)

    record()
