"""`trainstack plan RECIPE --lium-command`: the `lium up` line for who rents by hand.

The flags are those of lium.io 0.32 (`lium up --help`). Nothing secret is among them: what a run sends to its pod, it
sends over SSH.
"""

import shlex

from plugins.errors import UserError
from tasks.plan import Plan


def lium_command(plan: Plan) -> str:
    """The line that rents the first offer of a plan, until its budget or, without one, a dead-man period is over.

    Raises UserError when there is no offer, and for several nodes, which Lium rents as a cluster.
    """
    pod, first = plan.pod, plan.first
    if pod.nodes > 1:
        raise UserError(f"pod.nodes: {pod.nodes}: `lium up` rents one pod; a cluster is rented by the run only")
    if first is None:
        raise UserError(f"no offer: {plan.ranking.explain()}")
    words = ["lium", "up", first.host.huid, "--count", str(first.gpu_count), "--name", plan.name]
    if pod.image:
        words += ["--image", pod.image]
    elif pod.template_id:
        words += ["--template_id", pod.template_id]
    if pod.volume:
        known = pod.volume.startswith(("id:", "new:"))
        words += ["--volume", pod.volume if known else f"id:<HUID of {pod.volume}: lium volumes list>"]
    if pod.budget_usd is None:
        words += ["--ttl", f"{pod.dead_man_minutes}m"]
    else:
        words += ["--budget", f"{pod.budget_usd:g}"]
    return shlex.join([*words, "--yes"])
