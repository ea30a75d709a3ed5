"""Write `plugins/slime/flags.tsv` anew from the parsers of slime and Megatron-LM:

SLIME=<checkout of slime> MEGATRON=<checkout of Megatron-LM> .venv/bin/python -m tests.slime_real.make_flag_table
"""

import subprocess
import sys
from pathlib import Path

from plugins.slime.flag_table import TABLE, Flag, write_table
from tests.slime_real import MEGATRON, SLIME, run


def recorded() -> list[Flag]:
    """The options that the parsers have now."""
    lists = ("also", "choices")
    rows = run(Path(__file__).with_name("record.py"), [])["flags"]
    return [Flag(**row | {name: tuple(row[name]) for name in lists}) for row in rows]


def made_from() -> list[str]:
    """What the first lines of the table say."""
    return [
        "Options of slime's train.py and train_async.py, made by `python -m tests.slime_real.make_flag_table`.",
        f"slime {_git(SLIME, 'describe', '--tags', '--always')} (commit {_git(SLIME, 'rev-parse', 'HEAD')})",
        f"Megatron-LM commit {_git(MEGATRON, 'rev-parse', 'HEAD')} with slime's docker/patch/latest/megatron.patch",
    ]


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    flags = recorded()
    TABLE.write_text(write_table(flags, made_from()), encoding="utf-8")
    sys.stdout.write(f"{TABLE}: {len(flags)} options\n")
