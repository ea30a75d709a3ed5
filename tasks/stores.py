"""The stores of a recipe, opened for the control machine or for a pod, and the credentials a pod needs for them."""

import os
from collections.abc import Callable

from blocks.recipe import Recipe
from plugins.checkpoints.stores import CheckpointStore, seen_from_afar
from plugins.checkpoints.stores.open import open_store
from plugins.checkpoints.stores.several import SeveralStores
from plugins.errors import UserError

S3_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
S3_SETTINGS = ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
HUB_SECRETS = ("HF_TOKEN",)
HUB_SETTINGS = ("HF_ENDPOINT",)
SECRET_NAMES = (*S3_SECRETS, *HUB_SECRETS)
"""Environment variables whose values must never be shown, whether the recipe names them or not."""


def stores_here(recipe: Recipe, log: Callable[[str], None] = lambda _line: None) -> CheckpointStore:
    """The recipe's stores that can be read on the control machine. Raises UserError when there is none."""
    uris = [uri for uri in recipe.checkpoint.stores if seen_from_afar(uri)]
    if not uris:
        raise UserError(
            f"Recipe '{recipe.name}': checkpoint.store: a Lium volume alone will not do, because it hangs on one pod "
            "at a time and nobody else can read it. Name a second store besides it: s3://..., hub://..."
        )
    return _together([open_store(uri) for uri in uris], log)


def stores_on_pod(recipe: Recipe, log: Callable[[str], None]) -> SeveralStores:
    """All stores of the recipe, nearest first."""
    return SeveralStores([open_store(uri) for uri in recipe.checkpoint.stores], log)


def unset_secrets(recipe: Recipe) -> list[str]:
    """Names in the recipe's `secrets:` that this environment does not set."""
    return [name for name in recipe.secrets if not os.environ.get(name)]


def store_env(recipe: Recipe) -> dict[str, str]:
    """What a pod needs to reach the recipe's stores and its base model's Hub: credentials and endpoints from here.

    Values are secret. Variables that `secrets:` or `env:` of the recipe set already are left to the recipe.
    Raises UserError when this machine has no credentials for a store that needs some.
    """
    env: dict[str, str] = {}
    kinds = {uri.partition(":")[0] for uri in [*recipe.checkpoint.stores, recipe.milestones.push_to or ""]}
    if "s3" in kinds and not set(S3_SECRETS) & set(recipe.secrets):
        env |= _aws_credentials(recipe) | _from_here(S3_SETTINGS)
    if "hub" in kinds and not set(HUB_SECRETS) & set(recipe.secrets):
        env |= hub_env(recipe)
    if recipe.model.hf_checkpoint and not recipe.model.hf_checkpoint.startswith("/"):  # fetched from the same Hub
        env |= _from_here(HUB_SETTINGS)
    return {name: value for name, value in env.items() if name not in recipe.env}


def _together(stores: list[CheckpointStore], log: Callable[[str], None]) -> CheckpointStore:
    return stores[0] if len(stores) == 1 else SeveralStores(stores, log)


def _from_here(names: tuple[str, ...]) -> dict[str, str]:
    return {name: os.environ[name] for name in names if os.environ.get(name)}


def _aws_credentials(recipe: Recipe) -> dict[str, str]:
    """What boto3 finds here (variables, profile, single sign-on), frozen: the pod has none of those ways."""
    import boto3
    from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]

    try:
        session = boto3.session.Session()
        found = session.get_credentials()
        frozen = found.get_frozen_credentials() if found else None
    except BotoCoreError as error:
        raise UserError(f"Recipe '{recipe.name}': checkpoint.store: no S3 credentials here ({error})") from error
    if frozen is None or not frozen.access_key:
        raise UserError(
            f"Recipe '{recipe.name}': checkpoint.store: no S3 credentials here; `aws configure`, or set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    values = dict(zip(S3_SECRETS, (frozen.access_key, frozen.secret_key, frozen.token), strict=True))
    values |= {"AWS_REGION": session.region_name}
    return {name: str(value) for name, value in values.items() if value}


def hub_env(recipe: Recipe) -> dict[str, str]:
    """Token and endpoint of the Hub, of this machine. Raises UserError when there is no token."""
    from huggingface_hub import get_token

    if not (token := get_token()):
        raise UserError(
            f"Recipe '{recipe.name}': a hub:// store or push needs a token with the right to write: `hf auth login`, "
            "or set HF_TOKEN"
        )
    return {"HF_TOKEN": token} | _from_here(HUB_SETTINGS)
