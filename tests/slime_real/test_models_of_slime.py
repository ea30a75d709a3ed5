"""The table of models is that of slime's own files, and what slime's own scripts train is not refused for memory."""

import re
from pathlib import Path

import pytest

from plugins.slime.defaults import Machine
from plugins.slime.flags import Value, model_args, parse_argv
from plugins.slime.memory import fits, need
from plugins.slime.model_size import model_size
from plugins.slime.models import TABLE, shapes
from tests.slime_real import SLIME, needs_slime
from tests.slime_real.make_model_table import recorded

pytestmark = needs_slime

H100, H200 = 80, 141
SCRIPTS = {
    "run-deepseek-r1.sh": H100,
    "run-glm4-9B.sh": H100,
    "run-glm4.7-30B-A3B.sh": H100,
    "run-glm4.7-355B-A32B.sh": H100,
    "run-glm5-744B-A40B.sh": H100,
    "run-glm5.2-744B-A40B.sh": H100,
    "run-kimi-k2-Instruct.sh": H100,
    "run-moonlight-16B-A3B.sh": H100,
    "run-qwen3-235B-A22B-sft.sh": H100,
    "run-qwen3-235B-A22B.sh": H100,
    "run-qwen3-30B-A3B.sh": H100,
    "run-qwen3-32B.sh": H100,
    "run-qwen3-4B.sh": H100,
    "run-qwen3-next-80B-A3B.sh": H100,
    "run-qwen3.5-27B.sh": H100,
    "run-qwen3.5-35B-A3B-sft.sh": H100,
}
"""Run scripts of slime, each with the GB of a GPU on which it has to pass."""


def test_the_table_is_what_slimes_files_say() -> None:
    rows = [line for line in TABLE.read_text().splitlines() if not line.startswith("#")]
    assert dict(row.split("\t") for row in rows) == recorded()


@pytest.mark.parametrize("model", sorted(shapes()))
def test_a_model_has_the_same_size_by_the_table_and_by_slimes_file(model: str) -> None:
    assert model_size(shapes()[model]) == model_size(parse_argv(model_args(SLIME, model)))


def flags_of(script: Path) -> dict[str, Value]:
    """The flags that a run script gives train.py: its lists, and those with numbers behind the script's name."""
    text = re.sub(r"^\s*#.*$", "", script.read_text(), flags=re.MULTILINE)
    defaults = dict(re.findall(r"^(\w+)=\$\{\1:-(\d+)\}", text, re.MULTILINE))
    text = re.sub(r'"?\$\{(\w+)\}"?', lambda found: defaults.get(found[1], found[0]), text)
    found: dict[str, Value] = {}
    for name, value in re.findall(r"^\s*--([\w-]+)(?:[ =]+([\d.]+))?\s*\\?$", text, re.MULTILINE):
        found |= parse_argv([f"--{name}", *([value] if value else [])])
    return found


@pytest.mark.parametrize(("name", "gpu_gb"), SCRIPTS.items())
def test_what_slimes_own_scripts_train_is_not_refused(name: str, gpu_gb: int) -> None:
    script = SLIME / "scripts" / name
    flags = flags_of(script)
    model = re.search(r"models/([\w.-]+)\.sh", script.read_text())
    size = model_size(shapes()[model[1]]) if model else None
    assert size and {"actor-num-nodes", "tensor-model-parallel-size"} <= flags.keys()
    wanted = need(size, flags, Machine())
    print(f"{name}: {wanted}")
    assert fits(wanted, gpu_gb) is not False
