"""Write `plugins/slime/models.tsv` anew from slime's scripts/models:

SLIME=<checkout of slime> MEGATRON=<checkout of Megatron-LM> .venv/bin/python -m tests.slime_real.make_model_table
"""

import subprocess
import sys

from plugins.slime.flags import model_args, parse_argv, render
from plugins.slime.models import SHAPE_FLAGS, TABLE
from tests.slime_real import SLIME


def recorded() -> dict[str, str]:
    """The flags of each model that the checks look at, as a part of a command line."""
    return {file.stem: _line(file.stem) for file in sorted((SLIME / "scripts/models").glob("*.sh"))}


def _line(model: str) -> str:
    flags = parse_argv(model_args(SLIME, model))
    return " ".join(render({name: _short(flags[name]) for name in SHAPE_FLAGS if name in flags}))


def _short(value: object) -> object:
    """A layer pattern that is written out, in Megatron's short form: [0,0,1] is [0]*2+[1]*1."""
    if not isinstance(value, str) or not value.startswith("[") or "*" in value:
        return value
    layers, runs = value.strip("[]").split(","), []  # type: list[str], list[list[str]]
    for layer in layers:
        if runs and runs[-1][0] == layer:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return "+".join(f"[{run[0]}]*{len(run)}" for run in runs)


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(SLIME), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    made = [
        "# Shapes of the models in slime's scripts/models, made by `python -m tests.slime_real.make_model_table`.",
        f"# slime {_git('describe', '--tags', '--always')} (commit {_git('rev-parse', 'HEAD')})",
    ]
    rows = [f"{name}\t{flags}" for name, flags in recorded().items()]
    TABLE.write_text("\n".join([*made, *rows]) + "\n", encoding="utf-8")
    sys.stdout.write(f"{TABLE}: {len(rows)} models\n")
