import subprocess
import sys
from types import SimpleNamespace

import pytest

from plugins.errors import UserError
from plugins.http_env.outage import Outage
from plugins.http_env.settings import Settings


def test_arguments_win_over_the_environment_and_that_over_the_defaults() -> None:
    environ = {"TRAINSTACK_ENV_URL": "http://b", "TRAINSTACK_ENV_CALL_S": "2.5", "TRAINSTACK_ENV_MAX_TURNS": "3"}
    settings = Settings.read(SimpleNamespace(http_env_url="http://a"), environ)
    assert (settings.url, settings.call_s, settings.max_turns) == ("http://a", 2.5, 3)
    assert Settings.read(SimpleNamespace(), {}) == Settings()


def test_the_older_stacks_names_are_read() -> None:
    environ = {"TRAINSTACK_HTTP_ENV_URL": "http://a", "TRAINSTACK_LLM_URL": "http://b/generate"}
    settings = Settings.read(SimpleNamespace(), environ)
    assert (settings.url, settings.llm_url) == ("http://a", "http://b/generate")


@pytest.mark.parametrize("value", ["soon", "0", "-1"])
def test_a_limit_that_is_none_is_refused_by_name(value: str) -> None:
    with pytest.raises(UserError, match="TRAINSTACK_ENV_CALL_S"):
        Settings.read(SimpleNamespace(), {"TRAINSTACK_ENV_CALL_S": value})


def test_only_a_long_row_of_failures_fails_the_job() -> None:
    now = [0.0]
    outage = Outage(clock=lambda: now[0])

    def fail() -> None:
        outage.failure("down", give_up_s=900, give_up_samples=3)

    fail()
    now[0] = 5000  # a long training step between two failures is not an outage
    fail()
    outage.success()
    for now[0] in (6000, 6300, 6899):
        fail()
    now[0] = 6900
    with pytest.raises(UserError, match=r"4 samples in a row were dropped in 900 s.*down"):
        fail()


def test_what_a_trainer_imports_needs_httpx_and_the_standard_library_only() -> None:
    code = (
        "import sys, httpx; before = set(sys.modules); import plugins.http_env.adapter, plugins.http_env.rewards;"
        "new = {name.split('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names; print(sorted(new))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "['plugins']"
