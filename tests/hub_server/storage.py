"""LFS objects: asked for in batches, sent to signed addresses whole or in parts, checked against their hash.

    <root>/lfs/<owner>/<name>/<sha256>     whole objects of a repository
    <root>/parts/<upload id>/<n>           parts of an upload that is not complete

The addresses are on `localhost` while the Hub is on 127.0.0.1, so that a client treats them as another host; like the
object stores of the real Hub they refuse a request that carries a token.
"""

import hashlib
import hmac
import secrets
import shutil
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from tests.hub_server.names import Answer


class Storage:
    """The object store. Objects larger than `multipart_over` bytes are wanted in parts of `part_bytes`."""

    def __init__(self, root: Path, *, multipart_over: int, part_bytes: int) -> None:
        self.objects, self._parts = root / "lfs", root / "parts"
        self.multipart_over, self.part_bytes = multipart_over, part_bytes
        for folder in (self.objects, self._parts):
            folder.mkdir(parents=True, exist_ok=True)
        key = root / "key"
        if not key.exists():
            key.write_bytes(secrets.token_bytes(32))
        self._key = key.read_bytes()
        self.received_bytes = 0

    def size(self, repo: str, sha256: str) -> int | None:
        path = self.objects / repo / sha256
        return path.stat().st_size if path.exists() else None

    def batch(self, wanted: list[dict[str, Any]], repo: str, base: str, hub: str) -> list[dict[str, Any]]:
        """The objects of a batch answer: without `actions` when they are there, an address otherwise."""
        answer = []
        for entry in wanted:
            sha256, size = entry["oid"], entry["size"]
            item: dict[str, Any] = {"oid": sha256, "size": size}
            if self.size(repo, sha256) != size:
                verify = {"href": f"{hub}/{repo}.git/info/lfs/verify"}
                item["actions"] = {"upload": self._upload(f"{repo}/{sha256}", size, base), "verify": verify}
            answer.append(item)
        return answer

    def address(self, base: str, path: str) -> str:
        """A signed address of this store."""
        return f"{base}/_storage/{path}?signature={self._sign(path)}"

    async def put(self, request: Request, path: str) -> Response:
        """Take an object or a part. A body that ends early, or has another hash, leaves nothing."""
        self._check(request, path)
        kind, name = path.split("/", 1)
        target = self.objects / name if kind == "object" else self._parts / name
        partial = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
        digest = hashlib.sha256()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                async for chunk in request.stream():
                    self.received_bytes += len(chunk)
                    digest.update(chunk)
                    file.write(chunk)
            if kind == "object" and digest.hexdigest() != target.name:
                raise Answer(400, "The SHA256 you specified did not match the calculated hash")
            partial.replace(target)
        except ClientDisconnect:
            return Response(status_code=400)
        finally:
            partial.unlink(missing_ok=True)
        return Response(headers={"ETag": f'"{digest.hexdigest()[:32]}"'})

    async def complete(self, request: Request, path: str) -> Response:
        """Put the parts of an upload together."""
        self._check(request, path)
        _, upload, name = path.split("/", 2)
        body = await request.json()
        numbers = [part["partNumber"] for part in body["parts"]]
        parts = [self._parts / upload / str(number) for number in numbers]
        if numbers != list(range(1, len(numbers) + 1)) or not all(part.exists() for part in parts):
            raise Answer(400, "One or more of the specified parts could not be found")
        whole, digest = self._parts / upload / "whole", hashlib.sha256()
        with whole.open("wb") as file:
            for part in parts:
                digest.update(content := part.read_bytes())
                file.write(content)
        if not name.endswith(f"/{digest.hexdigest()}") or body["oid"] != digest.hexdigest():
            raise Answer(400, "The SHA256 you specified did not match the calculated hash")
        (self.objects / name).parent.mkdir(parents=True, exist_ok=True)
        whole.replace(self.objects / name)
        shutil.rmtree(self._parts / upload)
        return JSONResponse({"success": True})

    def forget(self, repo: str) -> None:
        """Remove all objects of a repository."""
        shutil.rmtree(self.objects / repo, ignore_errors=True)

    def get(self, request: Request, path: str) -> Path:
        """Where an object lies."""
        self._check(request, path)
        return self.objects / path.split("/", 1)[1]

    def _upload(self, name: str, size: int, base: str) -> dict[str, Any]:
        if size <= self.multipart_over:
            return {"href": self.address(base, f"object/{name}")}
        upload = secrets.token_hex(8)
        count = -(-size // self.part_bytes)
        parts = {str(number): self.address(base, f"part/{upload}/{number}") for number in range(1, count + 1)}
        header = {"chunk_size": str(self.part_bytes), **parts}
        return {"href": self.address(base, f"complete/{upload}/{name}"), "header": header}

    def _sign(self, path: str) -> str:
        return hmac.new(self._key, path.encode(), "sha256").hexdigest()

    def _check(self, request: Request, path: str) -> None:
        if "authorization" in request.headers:
            raise Answer(400, "Only one auth mechanism allowed")
        if not hmac.compare_digest(request.query_params.get("signature", ""), self._sign(path)):
            raise Answer(403, "SignatureDoesNotMatch")
