"""The gateway as a service behind a public URL, for pods that reach it without a tunnel.

    PREFECT_API_AUTH_STRING=user:password python -m plugins.gateway --upstream http://127.0.0.1:4200/api --key-file FILE

The key file must be the one of the processes that rent pods. TLS belongs to the proxy before it.
"""

import argparse
import os
import signal
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

from plugins.errors import TrainstackError
from plugins.gateway.service import Gateway
from plugins.gateway.tokens import load_key


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C; returns the exit status. argv: the words after the program's name."""
    parser = argparse.ArgumentParser(prog="python -m plugins.gateway", description=__doc__)
    parser.add_argument(
        "--upstream", required=True, help="URL of the Prefect API; its password comes from the environment"
    )
    parser.add_argument("--key-file", required=True, type=Path, help="made with mode 0600 when it is not there")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=4300)
    parser.add_argument("--work-pool", default="lium")
    said = parser.parse_args(argv)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        gateway = Gateway(
            said.upstream,
            load_key(said.key_file),
            upstream_auth=os.environ.get("PREFECT_API_AUTH_STRING"),
            work_pool=said.work_pool,
            host=said.host,
            port=said.port,
            log=_say,
        )
        gateway.start()
    except TrainstackError as error:
        print(error, file=sys.stderr)
        return 2
    _say(f"gateway: pods reach {said.upstream} through {gateway.url}")
    ended.wait()
    gateway.close()
    return 0


def _say(line: str) -> None:
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
