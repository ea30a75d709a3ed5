"""`trainstack import`: the recipe goes to standard output alone, so that `> recipe.yaml` is enough."""

from pathlib import Path

import pytest

from blocks.recipe import load_recipe
from flows.cli import main


def test_the_recipe_is_printed_alone_and_what_became_of_each_key_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "launch_stack.yaml"
    file.write_text(
        "run: {mode: rl, run_id: mine}\nworker: {env: {SLIME_RL_CMD: bash run.sh}}\nlium: {tint: '[red]'}\n"
    )
    with pytest.raises(SystemExit) as ended:
        main(["import", str(file)])
    said = capsys.readouterr()
    assert ended.value.code == 0
    (tmp_path / "recipe.yaml").write_text(said.out)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.rl is not None and recipe.rl.command == "bash run.sh"
    assert said.err.splitlines() == [
        "run.mode: taken over: the section rl:",
        "run.run_id: taken over: --run-id mine",
        "worker.env.SLIME_RL_CMD: taken over: rl.command",
        "lium.tint: UNKNOWN: no key of the older stack; not copied",
    ]


def test_a_file_that_is_not_there_is_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["import", str(tmp_path / "none.yaml")])
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.out == "" and "Cannot read" in said.err
