"""The table of flags and the lint that reads it, against the parsers that they stand for."""

import ast
import json
from pathlib import Path

import pytest

from plugins.slime import flag_table
from plugins.slime.flag_table import Flag
from plugins.slime.flags import model_args
from tests.slime_real import SLIME, needs_slime, run
from tests.slime_real.make_flag_table import made_from, recorded

pytestmark = needs_slime

SINGLE = "1 1.5 1e6 1_000 -1 -.5 -1e-5 - x nan [1]*3+[0] [x] (1,2) {} {x} true"
VALUES = [[], ["1", "2"], ["1", "2", "3"], [""], ["a b"], ["-a b"], *([one] for one in SINGLE.split())]


def test_the_table_is_what_the_parsers_say() -> None:
    text = flag_table.TABLE.read_text()
    again = flag_table.write_table(recorded(), made_from())
    assert text == again, "make it anew: python -m tests.slime_real.make_flag_table"


@pytest.mark.parametrize("file", sorted((SLIME / "scripts/models").glob("*.sh")), ids=lambda file: file.stem)
def test_the_arguments_of_every_model_of_slime_pass(file: Path) -> None:
    flag_table.check(model_args(SLIME, file.stem))


def test_there_are_models_to_look_at() -> None:
    assert len(list((SLIME / "scripts/models").glob("*.sh"))) == 39


def test_the_lint_accepts_what_argparse_accepts_and_refuses_what_it_refuses(tmp_path: Path) -> None:
    """Of every flag, with values of all kinds. Only a text that means no to a flag whose every text is yes differs."""
    lines = [line for flag in unlike() for line in uses(flag)]
    (tmp_path / "lines.json").write_text(json.dumps(lines))
    accepted = run(Path(__file__).with_name("read.py"), [str(tmp_path / "lines.json")])["accepted"]
    ours = [not flag_table.problems(line, flag_table.known()) for line in lines]
    differ = [(line, said) for line, said, mine in zip(lines, accepted, ours, strict=True) if said != mine]
    assert [
        entry for entry in differ if flag_table.known()[entry[0][0].split("=")[0]].type not in ("bool", "any")
    ] == []
    assert any(accepted) and not all(accepted)


def unlike() -> list[Flag]:
    """One flag of each kind: the lint looks at nothing else of a flag."""
    kinds: dict[object, Flag] = {}
    for flag in flag_table.known().values():
        kinds.setdefault((flag.takes, flag.type, flag.choices, bool(flag.also), flag.source), flag)
    return list(kinds.values())


def uses(flag: Flag) -> list[list[str]]:
    values = [*VALUES, *([choice] for choice in flag.choices), [*flag.choices]]
    joined = [[f"{flag.name}={one[0]}", *one[1:]] for one in values if one]
    return [*([name, *one] for name in (flag.name, *flag.also) for one in values), *joined]


def test_slime_still_leaves_out_the_engine_options_that_we_refuse() -> None:
    source = ast.parse((SLIME / "slime/backends/sglang_utils/arguments.py").read_text())
    (skipped,) = [
        ast.literal_eval(node.value)
        for node in ast.walk(source)
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "skipped_args"
    ]
    ours = {name.removeprefix("--sglang-") for name in flag_table.SET_BY_SLIME}
    assert ours == {name.replace("_", "-") for name in skipped} - {"config"} | {"tensor-parallel-size"}
