"""The pods' packages: those of the lock, enough for what runs on a pod, nothing that the base must keep as it is."""

import ast
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from plugins.errors import UserError
from plugins.images.pod_lock import FROM_BASE, LOCK, POD_LOCK, ROOT, needed, pod_lock, read_lock

CHECK = ROOT / "deployments/image/check.py"
OURS = ("flows", "tasks", "blocks", "plugins")
# Reached by imports inside functions that a pod never runs: tests of the trainer's stand-in, and what only slime has.
NOT_ON_A_POD = ("plugins.tinyslime", "plugins.lium.emulator")
INSIDE_SLIME = {"slime", "megatron", "sglang", "transformers", "torch"}


def lock_lines(name: str) -> set[str]:
    return {line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")}


def test_the_pods_lock_is_what_the_lock_gives() -> None:
    """If not: python -m plugins.images.pod_lock."""
    assert (ROOT / POD_LOCK).read_text() == pod_lock()


def test_it_is_a_part_of_the_lock_without_what_the_base_has_and_what_only_developers_need() -> None:
    lines = lock_lines(POD_LOCK)
    assert lines <= lock_lines(LOCK)
    assert set(read_lock("\n".join(lines))) & {*FROM_BASE, "pytest", "mypy", "ruff", "moto", "transformers"} == set()


def test_both_interpreters_get_their_version_of_a_package() -> None:
    assert len(read_lock((ROOT / POD_LOCK).read_text())["contourpy"]) == 2


def test_a_package_that_is_not_installed_is_named() -> None:
    with pytest.raises(UserError, match=r"no-such-package-of-ours is not installed here: `make install`"):
        needed(["no-such-package-of-ours>=1"], {"python_version": "3.11"})


def test_a_lock_without_a_needed_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["click"]\n')
    (tmp_path / LOCK).write_text("httpx==0.28.1\nclick==8.5.1 ; python_version < '3.12'\n")
    with pytest.raises(UserError, match=r"click is needed on a pod with Python 3.12, not in requirements.lock"):
        pod_lock(tmp_path)
    (tmp_path / LOCK).write_text("click=8\n")
    with pytest.raises(UserError, match="'click=8' is not a requirement"):
        pod_lock(tmp_path)


def test_every_module_that_a_pod_can_reach_finds_its_packages() -> None:
    """Imports inside functions too: those show only when it is late."""
    locked = set(read_lock((ROOT / POD_LOCK).read_text())) | FROM_BASE
    providers = packages_distributions()
    missing = {
        f"{module} imports {top}"
        for module in reachable(started_on_a_pod())
        for top in foreign(module)
        if not {canonicalize_name(name) for name in providers.get(top, [])} & locked
    }
    assert missing == set()


def test_the_walk_through_the_imports_comes_far_enough() -> None:
    reached = reachable(started_on_a_pod())
    assert {
        "plugins.checkpoints.stores.s3_client",
        "plugins.checkpoints.hub.library",
        "plugins.rayjobs.jobs",
    } <= reached
    assert not any(name.startswith("plugins.lium.emulator") for name in reached)


def test_the_check_in_the_image_refuses_an_environment_that_has_its_own_ray(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(CHECK)], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr.strip()[:60]) == (
        1,
        "ray.job_submission is in our own environment; it must be the",
    )


def test_the_check_in_the_image_refuses_a_path_that_leads_to_another_tasks(tmp_path: Path) -> None:
    """Megatron-LM has a top-level `tasks` too."""
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows/__init__.py").write_text("")
    (tmp_path / "flows/stage.py").write_text("")
    env = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, str(CHECK)], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 1 and "PYTHONPATH of the base is in the way" in done.stderr


# -- what a pod reaches -----------------------------------------------------------------------------------------------


def started_on_a_pod() -> set[str]:
    tree = ast.parse(CHECK.read_text())
    named = next(n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "STARTED")
    return set(ast.literal_eval(named)) - {"flows.cli"}  # of the command line a pod runs `push` alone


def reachable(roots: set[str]) -> set[str]:
    """Modules of ours that the roots import, directly or not, at the top or late."""
    seen: set[str] = set()
    waiting = set(roots)
    while waiting:
        name = waiting.pop()
        if name in seen or name.startswith(NOT_ON_A_POD) or file_of(name) is None:
            continue
        seen.add(name)
        waiting |= {found for found in imported(name) if found.split(".")[0] in OURS}
    return seen


def foreign(module: str) -> set[str]:
    tops = {name.split(".")[0] for name in imported(module)}
    return tops - set(sys.stdlib_module_names) - set(OURS) - INSIDE_SLIME


def imported(module: str) -> set[str]:
    file = file_of(module)
    assert file is not None
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def file_of(module: str) -> Path | None:
    path = ROOT / re.sub(r"\.", "/", module)
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
