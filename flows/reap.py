"""The flow `reap-pods`: end pods that have our name and no living run. On a schedule, and as `trainstack reap`."""

import time

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from blocks.recipe import LiumSection
from plugins.errors import UserError
from tasks import artifacts, common_knowledge
from tasks.lium_account import account_of, accounts_in_reach
from tasks.reap import GRACE_MINUTES, look, reap


@flow(name="reap-pods", persist_result=False)
def reap_pods(
    lium: LiumSection | None = None, dry_run: bool = False, grace_minutes: float = GRACE_MINUTES
) -> State[None]:
    """Give back every orphaned pod; the state's message says how many there were.

    Args:
        lium: Which account. Empty: every one this machine has a key for, and the local emulator if it runs.
        dry_run: Look and say, end nothing.
        grace_minutes: How long a run that crashed keeps its pod, so that a new start can go on with it.
    """
    logger = get_run_logger()
    try:
        accounts = [account_of(lium)] if lium else list(accounts_in_reach().values())
    except UserError as error:
        return Completed(message=f"Nothing to look at: {error}")
    orphans = 0
    with get_client(sync_client=True) as client:
        rows = []
        for account in accounts:
            judged = look(client, account, grace_minutes)
            orphans += sum(one.keep is None for one in judged)
            rows += [{"pod": j.pod.name, "run": j.run_id, "verdict": j.keep or "orphan", "why": j.why} for j in judged]
            for line in [] if dry_run else reap(client, account, judged):
                logger.warning(line.removeprefix("WARNING "))
        artifacts.put_table(client, flow_run.id, "reap-pods", rows, "Pods of the account and what was decided")
        common_knowledge.forget_rested(client, time.time())
    return Completed(message=f"{orphans} orphans{' (dry run: left alone)' if dry_run else ''}")


if __name__ == "__main__":
    reap_pods()
