"""S3 credentials, and the bucket that a recipe or TRAINSTACK_S3_BUCKET names. Nothing is written to try a right."""

import os
from typing import Any

from blocks.recipe import Recipe
from tasks.prerequisites.finding import ANSWER_S, CONNECT_S, Finding, shown

CREDENTIALS, BUCKET = "S3 credentials", "S3 bucket"


def bucket_of(recipe: Recipe | None) -> str | None:
    """The bucket of a recipe's store (`s3://bucket/prefix` or `s3:bucket/prefix`), else of the environment."""
    stores = recipe.checkpoint.stores if recipe else []
    store = next((uri for uri in stores if uri.startswith("s3:")), "")
    named = store.removeprefix("s3:").lstrip("/").partition("?")[0].partition("/")[0]
    return named or os.environ.get("TRAINSTACK_S3_BUCKET") or None


def look(recipe: Recipe | None = None) -> list[Finding]:
    """Whether boto3 finds credentials, and whether the bucket lets them in."""
    import boto3
    from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]

    bucket = bucket_of(recipe)
    try:
        session = boto3.session.Session()
        found = session.get_credentials()
    except BotoCoreError as error:
        return [Finding(CREDENTIALS, False, str(error), "look at AWS_PROFILE and ~/.aws", needed_for="s3")]
    if found is None:
        remedy = "`aws configure`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        return [Finding(CREDENTIALS, False, "none", remedy, needed_for="s3")]
    credentials = Finding(CREDENTIALS, True, f"found by {found.method}", needed_for="s3")
    if bucket is None:
        words = "none named (recipe's checkpoint.store, or TRAINSTACK_S3_BUCKET)"
        return [credentials, Finding(BUCKET, True, words, needed_for="s3")]
    return [credentials, _bucket(session, bucket)]


def _bucket(session: Any, bucket: str) -> Finding:
    from botocore.config import Config  # type: ignore[import-untyped]
    from botocore.exceptions import BotoCoreError, ClientError

    limits = Config(connect_timeout=CONNECT_S, read_timeout=ANSWER_S, retries={"total_max_attempts": 1})
    try:
        client = session.client("s3", config=limits)
        where = f"{bucket} at {shown(client.meta.endpoint_url)}"
        client.head_bucket(Bucket=bucket)
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return Finding(
            BUCKET, False, f"{where}: {_REFUSALS.get(status, f'refused ({status})')}", _remedy(bucket), needed_for="s3"
        )
    except (BotoCoreError, ValueError) as error:
        words = f"{bucket}: no answer ({type(error).__name__})"
        return Finding(BUCKET, False, words, "look at the network, AWS_REGION and AWS_ENDPOINT_URL", needed_for="s3")
    return Finding(BUCKET, True, f"{where}: may be read; writing is not tried", needed_for="s3")


_REFUSALS = {
    400: "the credentials are not valid there (400)",
    403: "these credentials may not use it (403)",
    404: "there is no such bucket (404)",
}


def _remedy(bucket: str) -> str:
    return f"make bucket {bucket}, or allow s3:ListBucket, s3:GetObject and s3:PutObject; look at AWS_REGION"
