"""Imports go one way: flows -> tasks -> blocks -> plugins, and plugins keep to themselves (DESIGN 3)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("flows", "tasks", "blocks", "plugins")
MAY_IMPORT_SLIME_FORMATS = {"tinyslime", "checkpoints"}
FROM_CHECKPOINTS = {"datasets": {"hub", "disk"}}  # data sets come from the same Hub as models
# Loaded by slime inside its own process, where Megatron has a top-level `tasks` too.
INSIDE_SLIME = ("plugins/slime/hooks.py", "plugins/slime/dry_parse.py", "plugins/http_env/adapter.py")
INSIDE_SLIME_MAY_USE = {"plugins", "slime", "httpx", "torch", "numpy"}
HEAVY = {"torch", "ray", "pyarrow", "matplotlib", "transformers", "boto3", "docker", "huggingface_hub"}


def imports(file: Path, *, top_only: bool = False) -> Iterator[tuple[int, str]]:
    tree = ast.parse(file.read_text())
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def sources() -> list[Path]:
    return [file for layer in LAYERS for file in sorted((ROOT / layer).rglob("*.py"))]


def offences(file: Path, module_text: str | None = None) -> list[str]:
    place = file.relative_to(ROOT)
    layer, room = place.parts[0], place.parts[1].removesuffix(".py")
    found = []
    for line, name in imports(file):
        top, *rest = name.split(".")
        if top in LAYERS and LAYERS.index(top) < LAYERS.index(layer):
            found.append(f"{place}:{line}: {layer} imports {name}")
        if layer != "plugins":
            continue
        if top == "prefect":
            found.append(f"{place}:{line}: a plugin imports Prefect")
        if top == "plugins" and rest and not _allowed(room, rest):
            found.append(f"{place}:{line}: room {room} imports {name}")
    return found


def _allowed(room: str, names: list[str]) -> bool:
    if names[0] == "checkpoints" and names[1:] and names[1] in FROM_CHECKPOINTS.get(room, ()):
        return True
    return names[0] in (room, "errors") or (names[0] == "slime" and room in MAY_IMPORT_SLIME_FORMATS)


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_imports_only_what_its_layer_may(file: Path) -> None:
    assert offences(file) == []


@pytest.mark.parametrize("file", INSIDE_SLIME)
def test_code_that_slime_loads_needs_nothing_that_slime_lacks(file: str) -> None:
    import sys

    tops = {name.split(".")[0] for _, name in imports(ROOT / file)}
    assert tops - set(sys.stdlib_module_names) <= INSIDE_SLIME_MAY_USE


@pytest.mark.parametrize("file", sorted((ROOT / "flows").glob("*.py")), ids=lambda file: file.name)
def test_importing_a_flow_stays_light(file: Path) -> None:
    """Flow modules are imported at deploy, in hooks and in the engine, so nothing heavy may hang on them."""
    import subprocess
    import sys

    module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    code = f"import sys, {module}; print(sorted({HEAVY!r} & {{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


def test_the_rule_would_be_noticed_if_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = tmp_path / "plugins" / "lium" / "bad.py"
    bad.parent.mkdir(parents=True)
    bad.write_text("import prefect\nfrom tasks.run import Run\nfrom plugins.rayjobs import jobs\n")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert len(offences(bad)) >= 3
