"""Print what argparse itself says to command lines of one flag each, with the parser of slime that has the flag.

    python read.py <file with JSON: [[flag, value, ...], ...]>      cwd: slime's folder; environment: see __init__.py

The last line of standard output is JSON: {"accepted": [...]}, one truth for each: taken, and nothing of it left over.
"""

import contextlib
import json
import os
import sys
from pathlib import Path

from plugins.slime.dry_parse import Stopped, errors_with_words, recorded_parsers


def main(lines):
    answer = os.dup(1)
    os.dup2(2, 1)
    from slime.utils.arguments import parse_args

    sys.argv = ["train.py"]
    with recorded_parsers() as parsers, contextlib.suppress(Stopped):
        parse_args()
    for parser in parsers:
        for action in parser._actions:
            action.required = False
    accepted = [takes(parser_with(line[0].split("=")[0], parsers), line) for line in lines]
    os.write(answer, (json.dumps({"accepted": accepted}) + "\n").encode())
    os._exit(0)


def parser_with(flag, parsers):
    return next((parser for parser in reversed(parsers) if flag in parser._option_string_actions), parsers[-1])


def takes(parser, line):
    try:
        with errors_with_words():
            _, left = parser.parse_known_args(line)
    except (SystemExit, Exception):  # a type that raises what argparse does not expect ends slime just so
        return False
    return not left


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
