import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FAKE = """
import json, os, sys
import slime.here
print(json.dumps({"name": __file__, "main": __name__, "argv": sys.argv[1:], "cwd": os.getcwd(), "first": sys.path[0]}))
sys.exit(7)
"""


@pytest.fixture
def checkout(tmp_path):
    """Copies of the two files beside a stand-in for slime's checkout (its package is slime/slime)."""
    for name in ("train.py", "train_async.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def run(file, *argv, cwd):
    return subprocess.run([sys.executable, file, *argv], cwd=cwd, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", ["train.py", "train_async.py"])
@pytest.mark.parametrize("argv", [["--help"], ["--save", "a b", "--x=1", "--", "-q"]])
def test_arguments_go_to_slime_untouched(checkout, tmp_path, name, argv):
    package = checkout / "slime" / "slime"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "here.py").touch()
    (checkout / "slime" / name).write_text(FAKE)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = run(checkout / name, *argv, cwd=elsewhere)
    assert done.returncode == 7, done.stderr
    said = json.loads(done.stdout)
    assert said == {
        "name": str(checkout / "slime" / name),
        "main": "__main__",
        "argv": argv,
        "cwd": str(elsewhere),
        "first": str(checkout / "slime"),
    }


@pytest.mark.parametrize("name", ["train.py", "train_async.py"])
@pytest.mark.parametrize("empty", [True, False])
def test_without_a_checkout_one_message_says_how_to_get_it(checkout, name, empty):
    if empty:
        (checkout / "slime").mkdir()  # what git leaves for a submodule that was not initialised
    done = run(checkout / name, "--help", cwd=checkout)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "git" in done.stderr and "submodule update --init" in done.stderr
