import pytest

from plugins.errors import UserError
from plugins.slime.flags import lint, model_args, render


def test_flags_are_written_as_argv():
    args = {
        "lr": 1e-6,
        "colocate": True,
        "offload": False,
        "x": None,
        "eval-prompt-data": ["aime", "/d/a.jsonl"],
        "n": 0,
    }
    assert render(args) == ["--lr", "1e-06", "--colocate", "--eval-prompt-data", "aime", "/d/a.jsonl", "--n", "0"]


@pytest.mark.parametrize("value", [[], {"a": 1}, [["a"]], [None]])
def test_a_value_that_no_command_line_can_carry_is_refused(value):
    with pytest.raises(UserError, match="--odd"):
        render({"odd": value})


def test_known_flags_pass():
    lint({"lr": 1, "save-interval": 2}, {"--lr", "save-interval"})


def test_every_unknown_flag_is_named_with_the_near_ones():
    with pytest.raises(UserError) as caught:
        lint(
            {"lr": 1, "rollout_batch_size": 3, "lerning-rate": 2, "zzz": 1},
            {"--lr", "--rollout-batch-size", "--learning-rate"},
        )
    said = str(caught.value)
    assert "rollout_batch_size (did you mean rollout-batch-size?)" in said
    assert "lerning-rate (did you mean learning-rate" in said
    assert said.endswith("zzz")


def test_model_arguments_come_from_slimes_script(tmp_path):
    models = tmp_path / "scripts" / "models"
    models.mkdir(parents=True)
    (models / "tiny-1B.sh").write_text(
        'echo hello\nMODEL_ARGS=(\n  --swiglu\n  --moe-layer-freq "[0, 1]"\n  --norm-epsilon 1e-6\n)\n'
    )
    (models / "empty-1B.sh").write_text("true\n")
    assert model_args(tmp_path, "tiny-1B") == ["--swiglu", "--moe-layer-freq", "[0, 1]", "--norm-epsilon", "1e-6"]
    with pytest.raises(UserError, match="did you mean tiny-1B"):
        model_args(tmp_path, "tiny1B")
    with pytest.raises(UserError, match="MODEL_ARGS"):
        model_args(tmp_path, "empty-1B")
    with pytest.raises(UserError, match="no arguments"):
        model_args(tmp_path, "../models/tiny-1B")
