"""One S3 bucket and prefix: the calls that the backend is made of, each with its errors in plain words.

boto3 is imported when the first call is made, and takes credentials from its own chain only (environment, ~/.aws,
instance role). Retries and time-outs are botocore's, bounded so that a dead endpoint is an error within a minute.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from plugins.checkpoints.stores.backend import Item, LostSwap
from plugins.checkpoints.stores.s3_errors import code_of, is_lost_swap, is_missing, is_no_condition, s3_errors
from plugins.errors import StoreError

CONNECT_S, ANSWER_S, ATTEMPTS = 5.0, 15.0, 3
SLICE_BYTES = 64 * 2**10
_BATCH = 1000  # keys that one DeleteObjects takes


class NoConditions(StoreError):
    """The endpoint refuses to write under a condition, whatever it is."""


@dataclass(frozen=True)
class S3Place:
    """Where a store lies. `prefix` has no '/' at its ends. Without `endpoint` and `region` boto3 decides."""

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None

    @property
    def base(self) -> str:
        """URI without the query."""
        return f"s3://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")

    @property
    def uri(self) -> str:
        """What `open_store` opens again."""
        query = urlencode({key: value for key in ("endpoint", "region") if (value := getattr(self, key))}, safe=":/")
        return self.base + (f"?{query}" if query else "")


class S3Client:
    """Calls with keys relative to the prefix. Every method may raise StoreError. Threads may share it."""

    def __init__(
        self,
        place: S3Place,
        *,
        connections: int = 16,
        connect_s: float = CONNECT_S,
        answer_s: float = ANSWER_S,
        attempts: int = ATTEMPTS,
    ) -> None:
        self.place = place
        self._limits = (connections, connect_s, answer_s, attempts)
        self._lock = threading.Lock()
        self._boto: Any = None

    def head(self, key: str) -> dict[str, Any] | None:
        """What is known of an object without its content; None when there is none."""
        return self._or_none("look at", "s3:GetObject", "head_object", key)

    def get(self, key: str, **more: Any) -> dict[str, Any] | None:
        """An answer with `Body` to be read; None when there is no such object."""
        return self._or_none("read", "s3:GetObject", "get_object", key, **more)

    def read(self, key: str) -> tuple[bytes, str] | None:
        """Content of a small object and its ETag."""
        answer = self.get(key)
        if answer is None:
            return None
        with s3_errors(f"{self.place.base}/{key}", self.endpoint, "read", "s3:GetObject"):
            return answer["Body"].read(), str(answer["ETag"])

    def put(self, key: str, content: bytes | bytearray, **more: Any) -> str:
        """Write a small object; return its ETag.

        With a condition in `more` raises LostSwap when it does not hold, NoConditions when it is not understood.
        """
        from botocore.exceptions import ClientError  # type: ignore[import-untyped]

        with s3_errors(f"{self.place.base}/{key}", self.endpoint, "write", "s3:PutObject"):
            try:
                return str(self._client().put_object(**self._at(key), Body=content, **more)["ETag"])
            except ClientError as error:
                conditional = {"IfMatch", "IfNoneMatch"} & set(more)
                if conditional and is_lost_swap(error):
                    raise LostSwap(f"{self.place.base}/{key}: was changed since it was read") from None
                if conditional and is_no_condition(error):
                    raise NoConditions(f"{self.place.base}/{key}: cannot be written under a condition") from None
                raise

    def items(self, prefix: str) -> Iterator[Item]:
        """Every object under a prefix."""
        for page in self._pages("list", "s3:ListBucket", "list_objects_v2", prefix):
            for found in page.get("Contents", []):
                yield Item(self._relative(found["Key"]), int(found["Size"]))

    def uploads(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Key and id of every multipart upload under a prefix that was not finished; the newest of a key first."""
        found = [
            upload
            for page in self._pages("list uploads", "s3:ListBucketMultipartUploads", "list_multipart_uploads", prefix)
            for upload in page.get("Uploads", [])
            if upload["Key"].startswith(self._absolute(prefix))  # some endpoints do not look at the prefix
        ]
        for upload in sorted(found, key=lambda one: one["Initiated"], reverse=True):
            yield self._relative(upload["Key"]), str(upload["UploadId"])

    def remove(self, keys: list[str]) -> None:
        """Remove objects; those that do not exist are no error."""
        for start in range(0, len(keys), _BATCH):
            batch = [{"Key": self._absolute(key)} for key in keys[start : start + _BATCH]]
            answer = self.call(
                "remove", "s3:DeleteObject", "delete_objects", Bucket=self.place.bucket, Delete={"Objects": batch}
            )
            for error in answer.get("Errors", []):
                self._raise(error)

    def multipart(self, verb: str, key: str, **more: Any) -> dict[str, Any]:
        """`create_multipart_upload`, `upload_part`, `complete_...` or `abort_...`, or a page of `list_parts`."""
        return self.call("write", "s3:PutObject and s3:AbortMultipartUpload", verb, **self._at(key), **more)

    def abort(self, key: str, upload_id: str) -> None:
        """Forget an unfinished upload. It may be gone."""
        from botocore.exceptions import ClientError

        with s3_errors(f"{self.place.base}/{key}", self.endpoint, "stop an upload", "s3:AbortMultipartUpload"):
            try:
                self._client().abort_multipart_upload(**self._at(key), UploadId=upload_id)
            except ClientError as error:
                if not is_missing(error) and code_of(error) != "NoSuchUpload":
                    raise

    def call(self, doing: str, right: str, verb: str, **arguments: Any) -> dict[str, Any]:
        """One call of boto3 by its name."""
        key = arguments.get("Key", "")
        where = f"s3://{self.place.bucket}/{key}" if key else self.place.base
        with s3_errors(where, self.endpoint, doing, right):
            answer: dict[str, Any] = getattr(self._client(), verb)(**arguments)
            return answer

    @property
    def endpoint(self) -> str:
        """URL of the endpoint that is asked, for messages."""
        return str(self._boto.meta.endpoint_url) if self._boto else self.place.endpoint or "https://s3.amazonaws.com"

    @property
    def checksums(self) -> dict[str, str]:
        """What an upload in parts must be begun with so that its parts carry checksums, as boto3 is set up to send."""
        wanted = self._client().meta.config.request_checksum_calculation  # AWS_REQUEST_CHECKSUM_CALCULATION
        return {"ChecksumAlgorithm": "CRC32"} if wanted == "when_supported" else {}

    def _or_none(self, doing: str, right: str, verb: str, key: str, **more: Any) -> dict[str, Any] | None:
        from botocore.exceptions import ClientError

        with s3_errors(f"{self.place.base}/{key}", self.endpoint, doing, right):
            try:
                answer: dict[str, Any] = getattr(self._client(), verb)(**self._at(key), **more)
            except ClientError as error:
                if is_missing(error):
                    return None
                raise
            return answer

    def _pages(self, doing: str, right: str, verb: str, prefix: str) -> Iterator[dict[str, Any]]:
        with s3_errors(f"{self.place.base}/{prefix}", self.endpoint, doing, right):
            pages = self._client().get_paginator(verb)
            yield from pages.paginate(Bucket=self.place.bucket, Prefix=self._absolute(prefix))

    def _raise(self, error: dict[str, Any]) -> None:
        from botocore.exceptions import ClientError

        with s3_errors(f"s3://{self.place.bucket}/{error.get('Key')}", self.endpoint, "remove", "s3:DeleteObject"):
            raise ClientError({"Error": {"Code": error.get("Code", "unknown")}}, "DeleteObjects")

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.place.bucket, "Key": self._absolute(key)}

    def _absolute(self, key: str) -> str:
        return f"{self.place.prefix}/{key}" if self.place.prefix else key

    def _relative(self, key: str) -> str:
        return key.removeprefix(f"{self.place.prefix}/") if self.place.prefix else key

    def _client(self) -> Any:
        with self._lock:
            if self._boto is None:
                import boto3
                from botocore.config import Config  # type: ignore[import-untyped]

                connections, connect_s, answer_s, attempts = self._limits
                client = boto3.session.Session().client(
                    "s3",
                    endpoint_url=self.place.endpoint,
                    region_name=self.place.region,
                    config=Config(
                        connect_timeout=connect_s,
                        read_timeout=answer_s,
                        retries={"mode": "standard", "total_max_attempts": attempts},
                        max_pool_connections=connections,
                        tcp_keepalive=True,
                        response_checksum_validation="when_required",  # every file is checked by its SHA-256
                    ),
                )
                client.meta.events.register("before-send.s3", _slice_body)
                self._boto = client
            return self._boto


class _Slices:
    """A body that is sent piece by piece. boto3 rewinds what it sends again."""

    def __init__(self, body: bytes | bytearray) -> None:
        self._body = memoryview(body)

    def __iter__(self) -> Iterator[memoryview]:
        return (self._body[at : at + SLICE_BYTES] for at in range(0, len(self._body), SLICE_BYTES))

    def seek(self, _position: int) -> None:
        """It begins anew whenever it is iterated over."""


def _slice_body(request: Any, **_: Any) -> None:
    """Time-outs shall be those of a network that stands still, and not those of a slow one.

    Given at once, a part has to be sent whole within one time-out (Python's `socket.sendall`: "the maximum total
    duration to send all data").
    """
    if isinstance(request.body, bytes | bytearray) and len(request.body) > SLICE_BYTES:
        request.body = _Slices(request.body)
