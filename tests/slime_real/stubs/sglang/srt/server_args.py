"""The few engine options that slime's validation reads, under the names that SGLang gives them."""

import argparse

import without_gpu as without_gpu


class ServerArgs:
    @staticmethod
    def add_cli_args(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--tensor-parallel-size", "--tp-size", dest="tp_size", type=int, default=1)
        parser.add_argument("--data-parallel-size", "--dp-size", dest="dp_size", type=int, default=1)
        parser.add_argument("--pipeline-parallel-size", "--pp-size", dest="pp_size", type=int, default=1)
        parser.add_argument("--expert-parallel-size", "--ep-size", dest="ep_size", type=int, default=1)
        parser.add_argument("--mem-fraction-static", type=float)
        parser.add_argument("--enable-dp-attention", action="store_true")
        parser.add_argument("--enable-deterministic-inference", action="store_true")
