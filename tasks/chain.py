"""The way of a run (DESIGN 4): pod, stages, sync, pod back. `pipeline.py` makes a Prefect flow of it.

A run that is started again with the same id adopts what exists: its pod, a stage that still trains, sealed checkpoints.
Whatever ends it, the pods are given back; the state it returns says what happened.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from blocks.recipe import StageName
from plugins.errors import ControlPlaneError, PodLost, TrainstackError, UserError
from plugins.lium import budget
from plugins.lium.pods import PodRow
from tasks.check_recipe import Checked, start_checkpoint
from tasks.model_shape import check_same_model
from tasks.plain_text import plain
from tasks.pod_ledger import was_lost
from tasks.provision_pod import drop_pod, provision_pod
from tasks.release_pod import release_pods, undisturbed
from tasks.run import PodLink, Run, RunEnded
from tasks.run_stage import (
    SAME_CRASHES,
    Attempt,
    AttemptEnd,
    beats_before,
    durable_in,
    finished_result,
    living_attempt,
    next_attempt,
    submit,
    trained_in,
)
from tasks.save_interval import Bounds, choose_interval
from tasks.stage_contract import Heartbeat, InitFrom, StageOrder, StageResult
from tasks.sync_checkpoint import sync_checkpoint
from tasks.warm_pods import hold_warm

T = TypeVar("T")
SILENCE_LOOK_S = 5.0
_SIGNATURE = re.compile(
    r"(?P<at>before its first iteration|at iteration \d+) \[(?P<cause>.*?)\]\.(?: |\n.*\n)Its last lines:"
)
_TRAINERS_WORDS = ("TrainerFailed: ", "ResumeUnproved: ", "PodUnfit: ")
LONGEST_HEAD = 8000  # of a message of the pod, which is a stranger's
OUTAGE_S, OUTAGE_LOOK_S = 3600.0, 10.0


@dataclass(frozen=True)
class Verbs:
    """The Prefect tasks of the chain. The fault suite brings the plain functions, which need no flow run."""

    provision: Callable[[Run, list[StageName]], PodLink] = provision_pod
    release: Callable[[Run, PodLink | None], float] = release_pods
    drop: Callable[[Run, PodRow, str], None] = drop_pod
    sync: Callable[[Run, StageResult], str] = sync_checkpoint


def carry_stages(
    run: Run, stages: list[StageName], checked: Checked, verbs: Verbs | None = None
) -> tuple[list[StageResult], float]:
    """Carry the stages one after the other; returns their results and what the pods cost in USD.

    Whatever ends it, the pods are given back before it returns or raises.
    """
    chain = _Chain(run, stages, checked, verbs or Verbs())
    done = False
    try:
        chain.check_sources()
        results = [chain.stage(name) for name in stages]
        done = True
    except RunEnded as ended:
        chain.end(last_sync_s=budget.LAST_SYNC_S * 0.6)
        raise ended
    finally:
        cost = chain.end(keep_warm=done)
    return results, cost


class UnusablePod(TrainstackError):
    """A pod that was ready before and cannot take the next attempt."""


class _Chain:
    """The stages of one run on one pod at a time."""

    def __init__(self, run: Run, stages: list[StageName], checked: Checked, verbs: "Verbs") -> None:
        self._run, self._checked, self._verbs = run, checked, verbs
        self._stages = stages
        self._pod: PodLink | None = None
        self._attempt: Attempt | None = None
        self._cost: float | None = None

    def check_sources(self) -> None:
        """Raise UserError for start weights that no stage of this call makes and that are not there: before renting."""
        section = self._run.recipe.rl
        if "rl" in self._stages and section is not None and not (section.init == "sft" and "sft" in self._stages):
            self._outlast(lambda: self._init("rl"))

    def stage(self, name: StageName) -> StageResult:
        """Carry one stage to its end, over as many attempts as the recipe allows."""
        run = self._run
        done = self._outlast(lambda: finished_result(run, name))
        if done is not None and _still_stored(run, done) and _long_enough(done, self._checked.last.get(name)):
            run.log(f"{name} is already complete (iteration {done.last_iteration}); not run again")
            if _recipe_changed(run, done):
                run.log(f"WARNING {name} was trained with another recipe; to train with this one, use a new run id")
            return done.model_copy(update={"outcome": "already complete"})
        self._outlast(lambda: self._check_model(name))
        problems: list[str] = []
        stuck, best = 0, self._outlast(lambda: durable_in(beats_before(run, name)))
        while stuck < run.recipe.max_attempts:
            stuck += 1
            try:
                attempt = self._outlast(lambda: self._begin(name, retry=bool(problems)))
            except UnusablePod as unusable:
                problems.append(str(unusable))
                run.log(f"WARNING {unusable}; taking another pod")
                self._drop_pod(str(unusable))
                continue
            end = attempt.wait()
            self._attempt = None
            if end is AttemptEnd.COMPLETED:
                return self._synced(attempt)
            problems.append(attempt.problem)
            run.log(f"WARNING {name} attempt {attempt.number}: {end}: {attempt.problem}")
            reached = attempt.beat.durable if attempt.beat else None
            if reached is not None and (best is None or reached > best):
                stuck, best = 0, reached  # losses that let the run get further may go on for weeks
            if attempt.problem.startswith(_TRAINERS_WORDS) and _same_failures(problems):
                said = attempt.problem.partition(": ")[2]
                raise UserError(f"{name} failed {SAME_CRASHES} times in the same way. {said}")
            if end is AttemptEnd.POD_LOST:
                self._drop_pod(attempt.problem)
        raise UserError(
            f"Run {run.run_id}: {name} got no further in {run.recipe.max_attempts} attempts in a row (max_attempts). "
            f"The last one: {problems[-1]}"
        )

    def _synced(self, attempt: Attempt) -> StageResult:
        """The result of an attempt whose last checkpoint was seen in the store."""
        result = attempt.result
        assert result is not None
        self._outlast(lambda: self._verbs.sync(self._run, result))
        for line in result.missed:
            self._run.log(f"WARNING {plain(line)}")
        return result

    def end(self, *, last_sync_s: float = 0.0, keep_warm: bool = False) -> float:
        """Cancel what still trains, give the pods back (or hold the pod warm); returns the cost. The first call counts.

        last_sync_s: how long a checkpoint on its way to the store is waited for.
        """
        if self._cost is not None:
            return self._cost
        run = self._run
        with undisturbed("Giving the pods back; this takes a few seconds."):
            if self._attempt is not None and run.board.answers():
                run.log(f"stopping {self._attempt.stage}, sealing what is complete")
                self._attempt.cancel(last_sync_s)
            elif self._attempt is not None:
                run.log("WARNING Prefect does not answer: the pods are given back without waiting for the stage")
            self._cost = self._held_warm() if keep_warm else None
            if self._cost is None:
                self._cost = self._verbs.release(run, self._pod)
            self._settle()
            return self._cost

    def _held_warm(self) -> float | None:
        """What the run cost when its pod is left to the next one; None when it is to be given back."""
        run = self._run
        if self._pod is None or not run.recipe.pod.keep_warm_minutes:
            return None
        try:
            return hold_warm(run, self._pod)
        except ControlPlaneError as error:
            run.log(f"WARNING the pod could not be held warm, so it is given back: {error}")
            return None

    def _settle(self) -> None:
        """No attempt may look alive once the pods are gone: one cut off while it was submitted has nobody else."""
        with suppress(ControlPlaneError):
            for name in self._stages if self._run.board.answers() else ():
                if (left := living_attempt(self._run, name)) is not None:
                    self._run.board.set_cancelled(left.id, "The pipeline ended before this attempt did.")

    def _begin(self, name: StageName, *, retry: bool) -> Attempt:
        run = self._run
        if self._pod is None:
            self._pod = self._verbs.provision(run, self._stages)
            retry = False
        pod = self._pod
        if retry:
            self._on_pod(pod.ensure_worker)
        living = living_attempt(run, name)
        if living is not None:
            if living.pod == pod.name:
                run.log(f"{name} attempt {living.number} is still in hand on {pod.name}: going on with it")
                self._attempt = Attempt(run, pod, living, name)
                return self._attempt
            run.board.crash(living.id, f"Its pod {living.pod} is gone.")
        order = self._order(name, pod)
        self._attempt = Attempt(run, pod, submit(run, pod, order), name)
        return self._attempt

    def _order(self, name: StageName, pod: PodLink) -> StageOrder:
        run, data = self._run, self._checked.data.get(name)
        evaluation = self._checked.eval_data.get(name, {})
        remote = self._on_pod(lambda: pod.upload([(data.path, data.sha256)]))[0] if data else None
        sets = self._on_pod(lambda: pod.upload([(one.path, one.sha256) for one in evaluation.values()]))
        beats, init = beats_before(run, name), self._init(name)
        origin = {"init": init.uri or "", "init_manifest_sha256": init.revision or ""} if init else {}
        return StageOrder(
            run_id=run.run_id,
            stage=name,
            attempt=next_attempt(run, name),
            pod=pod.name,
            recipe=run.recipe,
            data_path=remote,
            data_rows=data.rows if data else None,
            eval_paths=dict(zip(evaluation, sets, strict=True)),
            init=init,
            durable=durable_in(beats),
            trained=trained_in(beats),
            save_interval=self._save_interval(name, beats),
            lineage={
                **run.lineage,
                "pod": pod.name,
                "pod_id": pod.row.id,
                "data_sha256": data.sha256 if data else "",
                **origin,
            },
        )

    def _init(self, name: StageName) -> InitFrom | None:
        newest = start_checkpoint(self._run.recipe, self._run.store, self._run.run_id) if name == "rl" else None
        if newest is None:
            return None
        return InitFrom(
            run_id=newest.run_id,
            stage=newest.stage,
            iteration=newest.iteration,
            uri=self._run.store.uri_of(newest),
            revision=newest.digest(),
        )

    def _check_model(self, name: StageName) -> None:
        """Raise UserError, before anything is rented, when the checkpoint to go on from is of another model."""
        run = self._run
        newest = run.store.latest(run.run_id, name)
        if newest is not None:
            remedy = "Use the old model, or a new --run-id to start from zero."
            check_same_model(newest, run.recipe, f"Run {run.run_id}: {name} would go on from", remedy)

    def _save_interval(self, name: StageName, beats: list[Heartbeat]) -> int:
        """Rollouts between checkpoints: the recipe's, or worked out from what this run has seen so far."""
        run, section = self._run, self._run.recipe.stage(name)
        if section.save_interval != "auto":
            return section.save_interval
        rows, now = run.ledger.known(), run.clock.now()
        measured = next((beat for beat in beats if beat.save_s is not None and beat.iteration_s is not None), None)
        last = self._checked.last.get(name)
        save_s = measured.save_s if measured else None
        iteration_s = measured.iteration_s if measured else None
        if measured and save_s is not None and iteration_s is not None:  # which was measured with the saves in it
            iteration_s = max(iteration_s / 10, iteration_s - save_s / (measured.save_interval or 1))
        found = choose_interval(
            save_s,
            iteration_s,
            losses=sum(was_lost(row) for row in rows if row["id"]),
            observed_s=sum(charge.seconds(now) for charge in run.ledger.charges()),
            tier=next((row["tier"] for row in reversed(rows) if row["tier"]), None),
            bounds=Bounds(total=None if last is None else last + 1),
        )
        run.log(f"{name} saves {found.reason}")
        run.board.show_table(
            f"{name}-save-interval",
            [{"rollouts": found.rollouts, "seconds": found.seconds, "why": found.reason}],
            f"How often {name} saves (save_interval: auto)",
        )
        return found.rollouts

    def _outlast(self, act: Callable[[], T]) -> T:
        """Do something, waiting out an outage of Prefect or Lium. Raises ControlPlaneError after `OUTAGE_S`."""
        run = self._run
        began = run.clock.monotonic()
        while True:
            try:
                return act()
            except ControlPlaneError as error:
                if run.clock.monotonic() - began >= OUTAGE_S:
                    raise
                run.log(f"WARNING {error}; trying again")
                run.nap(OUTAGE_LOOK_S)

    def _on_pod(self, act: Callable[[], T]) -> T:
        """Do something on the pod, waiting out short silences. Raises UnusablePod when the pod will not do."""
        run, pod = self._run, self._pod
        assert pod is not None
        began = run.clock.monotonic()
        while True:
            try:
                return act()
            except PodLost as error:
                raise UnusablePod(f"pod {pod.name} cannot go on: {error}") from error
            except ControlPlaneError as error:
                if run.clock.monotonic() - began >= run.recipe.pod.unreachable_after_s:
                    raise UnusablePod(f"pod {pod.name} does not answer: {error}") from error
                run.log(f"WARNING {error}; trying again")
                run.nap(SILENCE_LOOK_S)

    def _drop_pod(self, why: str) -> None:
        if self._pod is not None:
            row = self._pod.row
            self._pod.close()
            self._outlast(lambda: self._verbs.drop(self._run, row, why))
        self._pod = None


def _still_stored(run: Run, result: StageResult) -> bool:
    newest = run.store.latest(result.run_id, result.stage)
    return newest is not None and newest.iteration == result.last_iteration


def _recipe_changed(run: Run, result: StageResult) -> bool:
    newest = run.store.latest(result.run_id, result.stage)
    return newest is not None and newest.lineage.get("recipe_sha256") != run.recipe.digest()


def _long_enough(result: StageResult, last: int | None) -> bool:
    """Whether a finished stage reached what the recipe asks for now: the same run may be asked for more rollouts."""
    return last is None or result.last_iteration >= last


def _same_failures(problems: list[str]) -> bool:
    """Whether the trainer failed the same way twice in a row: then renting again cannot help, even if each time it
    was put down to the machine, which a text in the log may bring about."""
    newest = [_gist(problem) for problem in problems[-SAME_CRASHES:]]
    return len(newest) == SAME_CRASHES and len(set(newest)) == 1


def _gist(problem: str) -> tuple[str, str]:
    """Where a trainer failed and how: the iteration, and the signature that its stage worked out (`failure.py`)."""
    if found := _SIGNATURE.search(problem[:LONGEST_HEAD]):
        return found["at"], found["cause"]
    return "", re.sub(r"\d+", "#", problem.partition("\n")[0])
