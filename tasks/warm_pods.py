"""A pod held warm: a completed run leaves it for the next one, which saves minutes of boot and image pull.

It costs its full price while it waits, so its server-side end is set to the end of the waiting, and everything of the
run that left it is ended on it. The next run that fits claims it; from then on the pod is that run's, whatever its
name says.
"""

from datetime import UTC, datetime

from plugins.lium.gpu_names import same_gpu
from plugins.lium.pods import PodRow
from tasks.board import WarmPod
from tasks.pod_ledger import WARM
from tasks.run import PodLink, Run

WORTH_TAKING_S = 120.0  # one that ends sooner may be gone before it is claimed


def hold_warm(run: Run, link: PodLink) -> float:
    """Leave the pod to the next run; returns what this run has cost, in USD. Raises ControlPlaneError."""
    pod, minutes = link.row, run.recipe.pod.keep_warm_minutes
    link.stop_services()
    link.close()
    run.let_go(pod.id)
    until = run.clock.now() + minutes * 60
    run.account.extend(pod.id, datetime.fromtimestamp(until, UTC))
    run.board.drop_queue(pod.name)  # the pod's token is worth nothing until somebody claims the pod
    run.board.hold_warm(
        WarmPod(
            name=pod.name,
            pod_id=pod.id,
            gpu=pod.gpu_name or "",
            gpu_count=pod.gpu_count or run.recipe.pod.gpu_count,
            start=start_of(run),
            price_per_hour=pod.price_per_hour or 0.0,
            until=until,
        )
    )
    run.ledger.ended([pod.name], run.account, "held warm for the next run", state=WARM)
    cost = (pod.price_per_hour or 0.0) * minutes / 60
    run.log(f"WARNING pod {pod.name} is held warm for {minutes:g} minutes (pod.keep_warm_minutes); that costs "
            f"${cost:.2f} if nobody takes it over, `trainstack stop {run.run_id}` ends it")  # fmt: skip
    return run.money().spent


def take_warm(run: Run) -> PodRow | None:
    """Take over a warm pod that fits the recipe, or None."""
    for warm in run.board.warm_pods():
        ours = warm.claimed_by == run.run_id  # claimed by an earlier process of this run, which did not get further
        if not ours and not (_fits(run, warm) and run.board.claim_warm(warm.name)):
            continue
        row = run.account.look_up(warm.pod_id)
        if row is None or row.terminal:
            run.board.forget_warm(warm.name)
            continue
        run.ledger.rented(row)
        run.log(f"pod {warm.name}: taken over warm, ${warm.price_per_hour:.2f}/h")
        return row
    return None


def start_of(run: Run) -> str:
    """What a pod of this recipe starts with: only a pod that started alike can be taken over."""
    pod = run.recipe.pod
    return f"{pod.image or pod.template_id or 'default'} volume {pod.volume or 'none'}"


def _fits(run: Run, warm: WarmPod) -> bool:
    pod = run.recipe.pod
    ceiling = pod.max_price_per_gpu_hour
    return (
        pod.nodes == 1  # clusters are not held warm
        and warm.claimed_by is None
        and warm.until - run.clock.now() > WORTH_TAKING_S
        and warm.start == start_of(run)
        and warm.gpu_count == pod.gpu_count
        and any(same_gpu(asked, warm.gpu) for asked in pod.gpus)
        and (ceiling is None or warm.price_per_hour <= ceiling * warm.gpu_count + 1e-6)
    )
