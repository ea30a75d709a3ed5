import os
import subprocess
import sys

from plugins.rayjobs.processes import descendants, end_all, marked

from .conftest import until


def test_descendants_are_found_at_any_depth_and_ended_even_if_they_ignore_sigterm(tmp_path):
    ready = tmp_path / "ready"
    script = f"trap '' TERM; (trap '' TERM; sleep 777; true) & echo > {ready}; while true; do sleep 0.1; done"
    child = subprocess.Popen(["bash", "-c", script], env={**os.environ, "TEST_MARK": str(tmp_path)})
    until(ready.exists)
    until(lambda: len(descendants(child.pid)) >= 2)
    assert child.pid in descendants(os.getpid())
    assert child.pid in marked("TEST_MARK", str(tmp_path))
    assert not end_all(lambda: marked("TEST_MARK", str(tmp_path)), grace_s=0.3)
    assert child.wait(10) == -9


def test_a_process_that_listens_is_asked_first():
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import signal,time; signal.signal(15, lambda *_: exit(5)); print(1, flush=True); time.sleep(99)",
        ],
        stdout=subprocess.PIPE,
    )
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        assert not end_all(lambda: {child.pid} if child.poll() is None else set(), grace_s=20)
        assert child.wait(10) == 5
