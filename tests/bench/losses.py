"""Effective training time on the emulator under losses, beside the model: `python -m tests.bench.losses`.

Time is accelerated: an hour of the mean time between losses is HOUR_S seconds (default 60) here, while what a recovery
takes (rent, boot, preflight, restore, start) is what it takes on this machine; so a recovery of 25 s here stands for 25
minutes. Losses come at exponentially distributed times from a seed. The model is Daly's, with the mean time between
losses that was set, and with the interval, save cost and recovery time that were measured.

    HOURS=2,6,24  HOUR_S=60  LOSSES=5  SEED=1  OUT=folder for the pictures
"""

import os
import random
import statistics
import tempfile
import time
from pathlib import Path

import httpx
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from rich.console import Console
from rich.table import Table

from tasks.accounting import Report
from tasks.report import report_of
from tasks.report_view import show_report
from tasks.save_interval import expected_ettr
from tasks.stretches import Kind
from tasks.timeline import timeline_png
from tests.e2e.world import ROOT, World, new_world

STEP_S = 0.5
SAVE_EVERY = 10


def run_with_losses(world: World, run_id: str, mtbl_s: float, losses: int, seed: int) -> Report:
    """Carry a run through while its pods vanish; it is long enough for about so many losses."""
    iterations = int(mtbl_s * losses / STEP_S)
    sft = {
        "data": str(ROOT / "deployments" / "recipes" / "data" / "demo_sft.jsonl"),
        "num_rollout": iterations,
        "save_interval": SAVE_EVERY,
        "extra_args": {"rollout-batch-size": 2, "lr": 0.003},
    }
    recipe = world.recipe(run_id, sft=sft, env={"TINYSLIME_STEP_DELAY_S": str(STEP_S)}, max_attempts=50)
    process, rng = world.start("run", str(recipe), "--run-id", run_id), random.Random(seed)
    known: set[str] = set()
    at = 0.0
    while process.poll() is None:
        for pod in world.pod_rows(run_id):
            if pod["id"] not in known:
                known.add(pod["id"])
                at = time.monotonic() + rng.expovariate(1 / mtbl_s)
            if time.monotonic() >= at:
                body = {"how": "vanish", "reason": "spot reclaim"}
                httpx.post(f"{world.control}/pods/{pod['id']}/kill", json=body, timeout=30)
        time.sleep(0.2)
    if process.returncode != 0:
        raise SystemExit(world.logs[-1].read_text()[-3000:])
    with temporary_settings({PREFECT_API_URL: world.api}), get_client(sync_client=True) as client:
        return report_of(client, run_id)


def row(hours: float, mtbl_s: float, report: Report) -> list[str]:
    """Measured and expected, for the table."""
    back = [loss.down_s for loss in report.losses if loss.down_s is not None]
    recovery_s = statistics.mean(back) if back else 0.0
    save_s = report.seconds[Kind.SAVE] / max(1, report.trained // SAVE_EVERY)
    model = expected_ettr(mtbl_s, SAVE_EVERY * STEP_S, recovery_s, save_s)
    trained = [one for one in report.stretches if one.kind in (Kind.TRAINING, Kind.REDO, Kind.LOST)]
    steady_s = trained[-1].end - trained[0].begin
    return [
        f"{hours:g} h",
        f"{mtbl_s:.0f} s",
        f"{len(report.losses)}",
        f"{report.wall_s:.0f} s",
        f"{recovery_s:.1f} s",
        f"{sum(loss.iterations for loss in report.losses) / max(1, len(report.losses)):.1f}",
        f"{report.ettr or 0:.3f}",
        f"{report.productive_s / steady_s:.3f}",
        f"{model:.3f}",
    ]


def main() -> None:
    """Run each mean time in turn and print the table."""
    hours = [float(word) for word in os.environ.get("HOURS", "2,6,24").split(",")]
    scale, losses = float(os.environ.get("HOUR_S", "60")), int(os.environ.get("LOSSES", "5"))
    out = Path(os.environ.get("OUT") or tempfile.mkdtemp(prefix="trainstack-losses-"))
    out.mkdir(parents=True, exist_ok=True)
    console = Console(width=140)
    table = Table(
        "mean time between losses", "here", "losses", "wall", "recovery", "iterations lost each", "ETTR",
        "without first start",
        "model", title=f"effective training time ratio; an hour is {scale:g} s",
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="trainstack-losses-") as folder, new_world(Path(folder)) as world:
        for number, value in enumerate(hours):
            report = run_with_losses(
                world, f"every-{value:g}h", value * scale, losses, int(os.environ.get("SEED", "1")) + number
            )
            (out / f"every-{value:g}h.png").write_bytes(timeline_png(report))
            table.add_row(*row(value, value * scale, report))
            show_report(console, report)
    console.print(table)
    console.print(f"time lines: {out}")


if __name__ == "__main__":
    main()
