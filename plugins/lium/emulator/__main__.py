"""`python -m plugins.lium.emulator`: the Lium API on 127.0.0.1, with pods that are process trees of this machine.

    python -m plugins.lium.emulator --state DIR
    export LIUM_BASE_URL=http://127.0.0.1:8799/api LIUM_API_KEY=anything
    lium up --gpu H200 -y

Ctrl-C or SIGTERM ends all pods' processes and keeps the rows; the next start boots the pods again. kill -9 leaves no
process either. Pods share the machine's network: they reach its loopback, and two pods cannot listen on one port.
"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import uvicorn

import plugins
from plugins.errors import UserError
from plugins.lium.emulator import inventory
from plugins.lium.emulator.app import LISTINGS_PER_MINUTE, create_app
from plugins.lium.emulator.fault_answers import Connection
from plugins.lium.emulator.faults import Faults
from plugins.lium.emulator.pod_process import choose_mode
from plugins.lium.emulator.pods import Pods, Settings
from plugins.lium.emulator.state import StateFile

DEFAULT_PORT = 8799
USER_ERROR_EXIT = 2
CLOSE_CONNECTIONS_WITHIN_S = 2


def main(argv: list[str] | None = None) -> int:
    """Run until a signal; returns the exit status (0 stopped, 1 did not start, 2 something for the user to change)."""
    args = _parser().parse_args(argv)
    try:
        return asyncio.run(_serve(args))
    except UserError as error:
        print(f"emulator: {error}", file=sys.stderr)
        return USER_ERROR_EXIT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="trainstack emulator", description="The Lium API on this machine.")
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="a loopback address (default 127.0.0.1)")
    add("--port", type=int, default=DEFAULT_PORT, help=f"0: any free one (default {DEFAULT_PORT})")
    add("--state", type=Path, required=True, help="folder for state, pod directories and volumes")
    add("--share", type=Path, action="append", default=[], metavar="PATH", help="visible in every pod at the same path")
    add("--env", action="append", default=[], metavar="K=V", help="environment of every process in every pod")
    add("--boot-delay", type=float, default=0.0, metavar="S", help="seconds a pod stays PENDING (default 0)")
    add("--mode", choices=["auto", "namespace", "plain"], default="auto", help="how pods are kept apart (default auto)")
    add("--inventory", type=Path, metavar="FILE", help="JSON list of machines instead of the default ones")
    per_minute = "pod listings a minute for each API key, then 429, as on the real service (default 60)"
    add("--listings-per-minute", type=_from_1, default=LISTINGS_PER_MINUTE, metavar="N", help=per_minute)
    scale = "bill K seconds for each one; scheduled ends, boots and all other times stay real (default 1)"
    add("--billing-scale", type=_positive, default=1.0, metavar="K", help=scale)
    add("--ready-file", type=Path, metavar="FILE", help='gets {"url", "pid"} when serving')
    return parser


def _from_1(text: str) -> int:
    with contextlib.suppress(ValueError):
        if (number := int(text)) >= 1:
            return number
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")


def _positive(text: str) -> float:
    with contextlib.suppress(ValueError):
        if math.isfinite(number := float(text)) and number > 0:
            return number
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")


async def _serve(args: argparse.Namespace) -> int:
    machines = inventory.load(args.inventory)
    env, shares = _environment(args.env), _shares(args.share)
    with (
        contextlib.closing(_bind(args.host, args.port)) as sock,
        contextlib.closing(StateFile(args.state.absolute())) as file,
    ):
        mode = await choose_mode(args.mode, file.folder)
        settings = Settings(mode, shares, env, args.boot_delay, args.billing_scale)
        pods = Pods(file, machines, settings, Faults())
        server = _Server(
            uvicorn.Config(
                create_app(pods, args.listings_per_minute),
                http=Connection,
                log_level="warning",
                timeout_graceful_shutdown=CLOSE_CONNECTIONS_WITHIN_S,
                lifespan="on",
            )
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, server.stop)
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn offers no event for it
            await asyncio.sleep(0.01)
        url = "http://{}:{}/api".format(*sock.getsockname()[:2])
        if began := server.started:
            print(f"Lium emulator on {url} ({mode} pods, state in {file.folder})", flush=True)
            _write_ready(args.ready_file, url)
        await serving
        return 0 if began else 1


class _Server(uvicorn.Server):
    """uvicorn without its signal handling, which would end the process before the pods are ended."""

    def stop(self) -> None:
        """Finish what is being answered, then shut down."""
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the caller."""
        yield


def _bind(host: str, port: int) -> socket.socket:
    """The listening socket, before anything else is begun. Raises UserError when the port is taken."""
    if not (host == "localhost" or host.startswith("127.")):
        raise UserError(
            f"--host {host}: the emulator runs commands for whoever reaches it, so it listens on loopback only"
        )
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(128)
    except OSError as error:
        sock.close()
        raise UserError(
            f"cannot listen on {host}:{port} ({error.strerror}); give another --port, or 0 for any"
        ) from error
    return sock


def _environment(pairs: list[str]) -> dict[str, str]:
    """`--env` pairs over what every pod of ours needs: where the trainstack code is."""
    for pair in pairs:
        if "=" not in pair:
            raise UserError(f"--env {pair!r} is not K=V")
    return {"TRAINSTACK_HOME": str(_code()), **dict(pair.split("=", 1) for pair in pairs)}


def _shares(asked: list[Path]) -> tuple[Path, ...]:
    """This interpreter, the code, and what was asked for, each under its given and its resolved path."""
    missing = [path for path in asked if not path.exists()]
    if missing:
        raise UserError(f"--share {missing[0]} does not exist")
    paths = [Path(sys.prefix), Path(sys.base_prefix), _code(), *asked]
    return tuple(sorted({form for path in paths for form in (path.absolute(), path.resolve())}))


def _code() -> Path:
    return Path(plugins.__file__).resolve().parent.parent


def _write_ready(path: Path | None, url: str) -> None:
    if path is None:
        return
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps({"url": url, "pid": os.getpid()}))
    part.chmod(0o600)
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
