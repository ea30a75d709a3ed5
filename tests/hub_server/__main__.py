"""Run the Hub on 127.0.0.1; its address is printed first."""

import argparse
from pathlib import Path

from tests.hub_server.app import Hub, Limits
from tests.hub_server.running import listen, server

parser = argparse.ArgumentParser(prog="python -m tests.hub_server")
parser.add_argument("root", type=Path, help="folder for repositories and objects")
parser.add_argument("--port", type=int, default=0)
given = parser.parse_args()
listening = listen(given.port)
chosen = listening.getsockname()[1]
print(f"http://127.0.0.1:{chosen}", flush=True)
server(Hub(given.root, chosen, Limits())).run(sockets=[listening])
