"""What a pod says of itself is shown as text: a pod is a stranger's machine."""

import io

from rich.console import Console

from plugins.lium.pods import PodRow
from tasks.pods_view import PodView, pods_table
from tasks.stage_contract import Heartbeat


def shown(view: PodView) -> str:
    console = Console(file=io.StringIO(), width=250, force_terminal=False, record=True)
    console.print(pods_table([view]))
    return console.export_text()


def test_markup_and_control_characters_of_a_pod_neither_break_the_table_nor_reach_the_terminal() -> None:
    pod = PodRow("1", "ts-r-sft-a1", "RUNNING", "127.0.0.1", gpu_name="[red]H200", gpu_count=1, price_per_hour=2.0)
    beat = Heartbeat(stage="sft", attempt=1, phase="[/x]", warning="\x1b]0;OWNED\x07[/red]")
    text = shown(PodView("emulator", pod, "r", "[b]fox", 0.5, beat))
    assert "[/x]" in text and "[b]fox" in text and "[red]H200" in text and "OWNED" in text
    assert "\x1b" not in text and "\x07" not in text
