"""Two options of the router, with the prefix that slime asks for."""

import argparse


class RouterArgs:
    @staticmethod
    def add_cli_args(
        parser: argparse.ArgumentParser, use_router_prefix: bool = False, exclude_host_port: bool = False
    ) -> None:
        prefix = "router-" if use_router_prefix else ""
        parser.add_argument(f"--{prefix}policy", default="cache_aware")
        parser.add_argument(f"--{prefix}log-level", default="info")
        parser.add_argument(f"--{prefix}balance-abs-threshold", type=int, default=32)
        parser.add_argument(f"--{prefix}balance-rel-threshold", type=float, default=1.1)
