"""The pod's half of a push: `python -m tasks.push_here`, with one JSON document on standard input.

    {"wanted": [run_id, stage or null, iteration or null], "to": "hub://...", "how": {...}, "env": {"HF_TOKEN": ...}}

Answers with one JSON line: where the checkpoint is now, or {"error": "..."}. Imports nothing of Prefect.
"""

import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Read the order, push, answer."""
    order = json.load(sys.stdin)
    os.environ.update({str(name): str(value) for name, value in order["env"].items()})
    from plugins.errors import TrainstackError
    from tasks.push_files import as_data, push_from_save_dir

    run_id, stage, iteration = order["wanted"]
    try:
        pushed = push_from_save_dir(Path.home() / "trainstack", run_id, stage, iteration, order["to"], **order["how"])
        print(json.dumps(as_data(pushed)))
    except TrainstackError as error:
        print(json.dumps({"error": str(error)}))


if __name__ == "__main__":
    main()
