import sys, pytest, time
from tests.e2e.test_bad_input import *
from tests.e2e.conftest import world, started
def test_x(world, tmp_path):
    for name, ch in (("odd-heads", dict(model={"args": {**SHAPE, "num-attention-heads": 3}})), ("sizes", {})):
        done = world.cli("run", str(world.recipe(name, **ch)), "--run-id", name)
        print(done.stderr); print(done.stdout)
    print(subprocess.run(["du","-ab",str(world.folder/"state"/"store")],capture_output=True,text=True).stdout)
