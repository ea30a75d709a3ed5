"""Run one of slime's train scripts until it asks Ray for GPUs, and print what it would train with.

    python reach.py train.py <arguments of the script>      cwd: slime's folder; environment: see __init__.py

The last line of standard output is JSON: {"args": ...}, or {"refused": kind, "message": words}.
"""

import enum
import json
import os
import runpy
import sys
import traceback

from plugins.slime.dry_parse import errors_with_words


class Reached(BaseException):
    """The script asks for its GPUs: here its own words end."""

    def __init__(self, args, gpus):
        self.args, self.gpus = (), gpus
        self.namespace = args


def main(script, argv):
    answer = os.dup(1)
    os.dup2(2, 1)
    sys.argv = [script, *argv]
    sys.path.insert(0, "")
    try:
        stop_at_the_gpus()
        with errors_with_words():
            runpy.run_path(script, run_name="__main__")
        said = {"refused": "nothing", "message": "the script ended without asking for GPUs"}
    except Reached as reached:
        said = {"args": plain({**vars(reached.namespace), "gpus": reached.gpus})}
    except BaseException as error:
        traceback.print_exc()
        said = {"refused": type(error).__name__, "message": str(error)}
    sys.stdout.flush()
    os.write(answer, (json.dumps(said) + "\n").encode())
    os._exit(0)


def stop_at_the_gpus():
    import slime.ray.placement_group as groups

    def stop(args):
        raise Reached(args, groups._get_placement_group_layout(args)[0])

    groups.create_placement_groups = stop


def plain(value):
    """As JSON has it; what it cannot hold is left out of a mapping."""
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items() if plain(one) is not None or one is None}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else None


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
