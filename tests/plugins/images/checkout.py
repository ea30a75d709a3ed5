"""A small git checkout with the parts that the image is made of."""

import subprocess
from pathlib import Path

from plugins.images.context import DOCKERFILE

SMALL = """\
ARG BASE=nowhere.invalid/slime:1
FROM ${BASE}
ARG SLIME_REF=v0
COPY LICENSE /opt/trainstack/
COPY flows /opt/trainstack/flows
RUN echo said by the step; cat /opt/trainstack/flows/a.py > /opt/copied
"""


def checkout(root: Path, dockerfile: str = SMALL) -> Path:
    """Write and commit the files."""
    files = {f"{part}/a.py": f"# {part}\n" for part in ("flows", "tasks", "blocks", "plugins")}
    files |= {DOCKERFILE: dockerfile, "LICENSE": "free\n", "deployments/recipes/x.yaml": "name: x\n", ".env": "KEY=s\n"}
    files |= {"tests/test_a.py": "", ".gitignore": "*.log\n__pycache__/\n"}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git(root, "init", "-q")
    git(root, "add", "-A")
    return root


def git(root: Path, *words: str) -> str:
    """Run git there."""
    return subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True, text=True).stdout
