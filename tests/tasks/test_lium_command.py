"""The `lium up` line of a plan: what it says, and that the unmodified command line takes every flag of it."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from plugins.errors import UserError
from tasks.lium_command import lium_command
from tests.tasks.test_plan import ELK, FOX, OWL, plan


def test_the_line_rents_the_first_offer_with_what_the_recipe_says() -> None:
    made = plan(OWL, FOX, ELK, template_id="t-1", volume="new:name=x,desc=my data", gpu_count=8, budget_usd=25.0)
    assert lium_command(made) == (
        "lium up swift-fox-3a --count 8 --name small --template_id t-1 "
        "--volume 'new:name=x,desc=my data' --budget 25 --yes"
    )


def test_an_image_takes_the_templates_place_and_a_dead_man_period_the_budgets() -> None:
    line = lium_command(plan(OWL, image="me/t:v1", budget_usd=None, volume="mine", dead_man_minutes=20))
    assert shlex.split(line)[3:] == [
        *("--count", "1", "--name", "small", "--image", "me/t:v1"),
        *("--volume", "id:<HUID of mine: lium volumes list>", "--ttl", "20m", "--yes"),
    ]


def test_without_an_offer_the_reason_is_given() -> None:
    with pytest.raises(UserError, match="no offer: "):
        lium_command(plan(OWL, max_price_per_gpu_hour=0.5))


def test_every_flag_is_one_of_the_unmodified_command_line(tmp_path: Path) -> None:
    said = subprocess.run(
        [str(Path(sys.executable).with_name("lium")), "up", "--help"],
        env={**os.environ, "HOME": str(tmp_path), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    known = set(re.findall(r"--[a-z_-]+", said))
    lines = [
        lium_command(plan(OWL, **more))
        for more in ({"image": "a:b", "volume": "id:x"}, {"template_id": "t", "budget_usd": None})
    ]
    used = {word for line in lines for word in shlex.split(line) if word.startswith("--")}
    assert len(used) >= 7 and used <= known
