"""Print every option of slime's and Megatron's parsers, as the flag table wants them.

    python record.py                       cwd: slime's folder; environment: see __init__.py

SGLang and its router add nothing, so that the options on their parser are those that slime puts there itself. The last
line of standard output is JSON: {"flags": [...]}.
"""

import contextlib
import dataclasses
import json
import os
import sys

from plugins.slime.dry_parse import Stopped, flags_of, recorded_parsers


def main():
    answer = os.dup(1)
    os.dup2(2, 1)
    flags = {flag.name: flag for flag in options()}
    sys.stdout.flush()
    os.write(answer, (json.dumps({"flags": [dataclasses.asdict(flag) for flag in flags.values()]}) + "\n").encode())
    os._exit(0)


def options():
    from slime.backends.sglang_utils import arguments as engines
    from slime.utils.arguments import parse_args

    engines.ServerArgs.add_cli_args = engines.RouterArgs.add_cli_args = staticmethod(lambda *_, **__: None)

    import megatron.training.arguments as megatron  # after slime, as slime does it

    add_megatron_arguments, theirs = megatron.add_megatron_arguments, set()

    def add(parser):
        parser = add_megatron_arguments(parser)
        theirs.update(parser._option_string_actions)
        return parser

    megatron.add_megatron_arguments = add
    sys.argv = ["train.py"]
    with recorded_parsers() as parsers, contextlib.suppress(Stopped):
        parse_args()
    for parser in parsers:
        for flag in flags_of(parser, "slime"):
            yield dataclasses.replace(flag, source="megatron") if flag.name in theirs else flag


if __name__ == "__main__":
    main()
