"""One Ray worker node in the foreground: `python -m plugins.rayjobs.worker --head ADDRESS --state DIR --num-cpus N`.

The further nodes of a cluster run it. Its processes stand as those of a head do (`head.py`), less the GCS and the
dashboard. The head's secret comes in the environment variable TRAINSTACK_RAY_TOKEN, because a command line is seen by
everybody. A worker ends with status 1 when its head is gone; whoever supervises it starts it again.
"""

import sys
from collections.abc import Sequence

from plugins.rayjobs.head import parse, stand


def main(argv: Sequence[str] | None = None) -> int:
    """Run the worker until it is told to stop or Ray ends; gives the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return stand(parse(arguments, "worker"), arguments)


if __name__ == "__main__":
    raise SystemExit(main())
