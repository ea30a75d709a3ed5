import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tinyslime_runs and tinyslime_probe, which the trainer imports too

from tinyslime_runs import chat, write_jsonl


@pytest.fixture
def chats(tmp_path):
    return write_jsonl(tmp_path / "chats.jsonl", [chat(f"{a}+{b}=", str(a + b)) for a in range(6) for b in range(5)])


@pytest.fixture
def prompts(tmp_path):
    rows = [{"prompt": [{"role": "user", "content": f"{a}+1="}], "label": str(a + 1)} for a in range(9)]
    return write_jsonl(tmp_path / "prompts.jsonl", rows)
