"""The hold on several nodes; with a real Ray over two of them it is tested in tests/e2e/test_two_nodes.py."""

import subprocess
import sys

ONE = """
import sys
from argparse import Namespace
from plugins.tinyslime.nodes import held
for flags in ({}, {"actor_num_nodes": "1"}):
    with held(Namespace(**flags)) as nodes:
        nodes.meet(1)
assert "ray" not in sys.modules
"""


def test_on_one_node_there_is_no_ray() -> None:
    done = subprocess.run([sys.executable, "-c", ONE], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
