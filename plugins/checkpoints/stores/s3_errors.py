"""What an S3 endpoint, or the way to it, can answer instead of doing it: one message each, and never a secret in it.

Only codes and the names of exceptions are taken from the answers. Their texts are left out, because an endpoint may
put into them what it was sent.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from plugins.errors import StoreError

_NO_BUCKET = {"NoSuchBucket"}
_DENIED = {"AccessDenied", "AllAccessDisabled", "AccountProblem", "Forbidden", "403"}
_BAD_CREDENTIALS = {
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidToken",
    "NotSignedUp",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
    "AuthorizationHeaderMalformed",
    "Unauthorized",
    "401",
}
_WRONG_REGION = {"PermanentRedirect", "IllegalLocationConstraintException", "301", "Redirect"}
_BUSY = {"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling", "500", "502", "503", "504"}
_FULL = {"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507"}
_NOT_UNDERSTOOD = {"NotImplemented", "501", "InvalidArgument", "InvalidRequest", "400", "XAmzContentSHA256Mismatch"}
_MISSING = {"NoSuchKey", "404", "NotFound"}
_LOST = {"PreconditionFailed", "ConditionalRequestConflict", "412"}


def code_of(error: Any) -> str:
    """The code of a botocore ClientError; the HTTP status where the answer had no body (to a HEAD)."""
    response = getattr(error, "response", {})
    code = str(response.get("Error", {}).get("Code") or "")
    return code or str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", "unknown"))


def is_missing(error: Any) -> bool:
    """Whether the key does not exist."""
    return code_of(error) in _MISSING


def is_lost_swap(error: Any) -> bool:
    """Whether a condition of a write did not hold. A key that vanished does not match any tag either."""
    return code_of(error) in _LOST | _MISSING


def is_no_condition(error: Any) -> bool:
    """Whether the endpoint does not know conditions on writes."""
    return code_of(error) in _NOT_UNDERSTOOD


def shown(endpoint: str) -> str:
    """An endpoint without what may be secret in its URL."""
    parts = urlsplit(endpoint)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}"


@contextlib.contextmanager
def s3_errors(where: str, endpoint: str, doing: str, right: str) -> Iterator[None]:
    """Turn what boto3 raises into a StoreError.

    where: URI of the object or store. doing: "write", "list". right: what a policy must allow, "s3:PutObject".
    """
    from botocore import exceptions as boto  # type: ignore[import-untyped]

    bucket = where.removeprefix("s3://").partition("/")[0]
    at = shown(endpoint)
    try:
        yield
    except boto.ClientError as error:
        remedy = _remedy(code_of(error), bucket, at, right)
        raise StoreError(f"{where}: cannot {doing}: {remedy} ({code_of(error)})") from None
    except (
        boto.NoCredentialsError,
        boto.PartialCredentialsError,
        boto.CredentialRetrievalError,
        boto.ProfileNotFound,
        boto.TokenRetrievalError,
    ) as error:
        raise StoreError(
            f"{where}: cannot {doing}: no credentials were found ({type(error).__name__}): set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        ) from None
    except (boto.HTTPClientError, boto.ConnectionError, boto.IncompleteReadError) as error:
        raise StoreError(
            f"{where}: cannot {doing}: {at} cannot be reached or does not answer ({type(error).__name__}): look at the "
            "network, the `endpoint` of the store's URI and AWS_ENDPOINT_URL"
        ) from None
    except RecursionError:  # boto3 follows a redirect by asking the same endpoint, which redirects again
        raise StoreError(f"{where}: cannot {doing}: {_remedy('PermanentRedirect', bucket, at, right)}") from None
    except (boto.BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no URL
        raise StoreError(
            f"{where}: cannot {doing} ({type(error).__name__}): look at the store's URI, AWS_REGION and ~/.aws/config"
        ) from None


def _remedy(code: str, bucket: str, at: str, right: str) -> str:
    if code in _NO_BUCKET:
        return f"there is no bucket {bucket} at {at}: make it, or correct the store's URI or its endpoint"
    if code in _DENIED:
        return f"access denied: these credentials need {right} on bucket {bucket}"
    if code in _BAD_CREDENTIALS:
        return f"{at} does not accept these credentials: are they expired, or for another endpoint or region?"
    if code == "RequestTimeTooSkewed":
        return "the clock of this machine is wrong: set it"
    if code in _WRONG_REGION:
        return f"bucket {bucket} is in another region: add ?region=... to the store's URI"
    if code in _BUSY:
        return f"{at} is busy or failed: try again later"
    if code in _FULL:
        return f"{at} is full: free space there or keep fewer checkpoints"
    if code in _MISSING:
        return "it is not there: was it removed by somebody else?"
    if code in _NOT_UNDERSTOOD:
        return f"{at} lacks something that boto3 sends: try AWS_REQUEST_CHECKSUM_CALCULATION=when_required"
    return "it was refused"
