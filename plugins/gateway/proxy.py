"""The HTTP half of the gateway: one call in, at most one rewritten call out.

path -> token -> rate -> still served? -> body within its size -> route -> rule -> upstream
"""

import asyncio

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from plugins.gateway.gate import UNKNOWN, Gate
from plugins.gateway.routes import Route, find, plain_path
from plugins.gateway.standing import Standing
from plugins.gateway.verdict import Answer, Call, Refusal, UpstreamTrouble

RETRY_S = 1


class Proxy:
    """Answers the HTTP calls of pods."""

    def __init__(self, gate: Gate, standing: Standing, routes: tuple[Route, ...]) -> None:
        self._gate, self._standing, self._routes = gate, standing, routes

    async def __call__(self, request: Request) -> Response:
        """One call. Every way out is an answer."""
        pod = UNKNOWN
        try:
            path = plain_path(_raw_path(request), self._standing.upstream.path)
            if path == "/health" and "authorization" not in request.headers:
                return JSONResponse(True)  # says that the gateway lives, nothing of what is behind it
            passed = self._gate.identify(request.headers.get("authorization"))
            pod = passed.pod
            allowance = self._gate.allowance(pod)
            if wait_s := allowance.wait_s():
                raise Refusal(429, "too many calls", wait_s)
            allowance.under_way += 1
            try:
                async with asyncio.timeout(self._gate.limits.upstream_s + self._gate.limits.body_s):
                    await self._gate.admit(passed, self._standing)
                    return await self._answer(request, pod, path)
            finally:
                allowance.under_way -= 1
        except Refusal as refusal:
            self._gate.complaints.note(pod, request.method, request.url.path, refusal.reason)
            retry = {"Retry-After": str(refusal.retry_after_s)} if refusal.retry_after_s else {}
            return _said(refusal.status, refusal.reason, retry)
        except UpstreamTrouble as trouble:
            return _said(trouble.status, trouble.reason, {"Retry-After": str(RETRY_S)})
        except TimeoutError:
            return _said(503, "this takes too long", {"Retry-After": str(RETRY_S)})
        except ClientDisconnect:
            return Response(status_code=499)

    async def _answer(self, request: Request, pod: str, path: str) -> Response:
        rule, ids = find(self._routes, request.method, path, query=bool(request.scope["query_string"]))
        verdict = await rule(Call(pod, ids, await self._body(request, pod)), self._standing)
        if isinstance(verdict, Answer):
            if verdict.complaint:
                self._gate.complaints.note(pod, request.method, path, verdict.complaint)
            return JSONResponse(verdict.body, verdict.status)
        await self._standing.queue(pod)  # it may have been revoked while the rule looked
        reply = await self._standing.upstream.call(verdict.method, verdict.path, verdict.body)
        if reply.status == 204:
            return Response(status_code=reply.status)
        return Response(reply.content, reply.status, media_type=reply.content_type)

    async def _body(self, request: Request, pod: str) -> bytes:
        limits = self._gate.limits
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Refusal(415, "the body is compressed")
        said = request.headers.get("content-length", "0")
        if not said.isdecimal() or int(said) > limits.body_bytes:
            raise Refusal(413, f"the body is larger than {limits.body_bytes} bytes")
        body = bytearray()
        try:
            async with asyncio.timeout(limits.body_s):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > limits.body_bytes:
                        raise Refusal(413, f"the body is larger than {limits.body_bytes} bytes")
        except TimeoutError as error:
            raise Refusal(408, "the body comes too slowly") from error
        self._gate.allowance(pod).calls.owe(len(body) // limits.call_bytes)
        return bytes(body)


def _raw_path(request: Request) -> bytes:
    return bytes(request.scope.get("raw_path") or request.scope["path"].encode()).split(b"?")[0]


def _said(status: int, reason: str, headers: dict[str, str]) -> Response:
    return JSONResponse({"detail": f"gateway: {reason}"}, status, headers)
