"""The page of a stage: two sheets of curves, where the time goes, and the newest iterations."""

from plugins.slime.progress import Point
from tasks.stage_page import markdown_table, stage_page
from tasks.stage_progress import StageProgress


def progress(count: int) -> StageProgress:
    made = StageProgress()
    for number in range(count):
        made.take(Point("step", number, {"train/loss": 1.0 / (1 + number), "train/grad_norm": 1.0}))
        made.take(Point("rollout", number, {"rollout/raw_reward": 0.5}))
        made.take(Point("perf", number, {"perf/rollout_time": 9.0, "perf/tokens_per_gpu_per_sec": 100.0}))
        made.take(Point("eval", number, {f"eval/{name}": 0.5 for name in range(20)}))
    return made


def test_before_the_first_figure_there_is_no_page() -> None:
    assert stage_page("r: rl", StageProgress()) is None


def test_a_page_shows_results_and_training_apart_and_stays_small() -> None:
    page = stage_page("r: rl, attempt 1", progress(3000))
    assert page is not None and page.startswith("# r: rl, attempt 1\n")
    assert page.count("data:image/png") == 2 and len(page) < 400_000
    assert "Seconds of an iteration: generate 9.0" in page
    assert page.count("\n| 29") == 20 and "| 2999 | " in page


def test_a_table_leaves_empty_what_a_row_lacks() -> None:
    table = markdown_table([{"iteration": 1, "loss": 0.123456}, {"iteration": 2, "loss": None, "save (s)": 3.0}])
    assert table.split("\n") == [
        "| iteration | loss | save (s) |",
        "| --- | --- | --- |",
        "| 1 | 0.1235 |  |",
        "| 2 |  | 3 |",
    ]
