"""How often to save: often enough that a lost pod costs little, seldom enough that saving costs little.

Every interval here is training time between two saves. The formulas take losses as a Poisson process with mean time
between losses M, a save cost C (seconds for which a save stops the training) and a recovery time R:

    Young   tau = sqrt(2 C M)                                                        first order, for C << M
    Daly    tau = sqrt(2 C M) (1 + x/3 + x^2/9) - C with x = sqrt(C / 2M); tau = M where C >= 2M
    ETTR    tau / (M exp(R/M) (exp((tau + C)/M) - 1))                                exact for this process

J. W. Young, "A first order approximation to the optimum checkpoint interval", CACM 17(9), 1974. J. T. Daly, "A higher
order estimate of the optimum checkpoint interval for restart dumps", FGCS 22(3), 2006; the last line is the inverse of
its complete cost function (wall time of work in segments that a loss starts over, recovery included).
"""

import math
from dataclasses import dataclass

from plugins.lium.offers import duration

ASSUMED_MTBL_S = {"spot": 6 * 3600.0, "secure": 72 * 3600.0}
"""Mean time between losses by Lium's tier before any was seen. Assumptions, not measurements: replace them by yours."""
UNKNOWN_TIER = "spot"  # what may end at any time is the careful assumption
YOUNG_UNTIL = 0.01  # C/M up to which Young's formula is used; there it is within 5 % of Daly's
WORTH_SAYING = 0.05  # of the time, before the price of the bounds is told
MOST_ROLLOUTS = 1e9
EXACT = 1e-9
DEFAULT_ROLLOUTS = 20  # the recipe's own default (`blocks/recipe.py`), while nothing has been measured


@dataclass(frozen=True)
class Bounds:
    """What an interval must keep to, whatever the formula says.

    most_saving: largest share of time that saves may take. most_lost_s: seconds of work that one loss may cost.
    total: rollouts of the stage, None when not known. unmeasured: rollouts while cost or iteration time are not known.
    """

    most_saving: float = 0.05
    most_lost_s: float = 30 * 60.0
    total: int | None = None
    unmeasured: int = DEFAULT_ROLLOUTS


@dataclass(frozen=True)
class Interval:
    """Save every so many rollouts. seconds: training time between saves, None while not known; mtbl_s: the M used."""

    rollouts: int
    seconds: float | None
    mtbl_s: float
    reason: str


@dataclass(frozen=True)
class Expected:
    """What the model says of a run: its ETTR for M, tau, R and C in seconds."""

    mtbl_s: float
    interval_s: float
    recovery_s: float
    save_cost_s: float

    @property
    def ettr(self) -> float:
        """Share of wall time that trains what is kept, 0..1."""
        return expected_ettr(self.mtbl_s, self.interval_s, self.recovery_s, self.save_cost_s)


def mean_time_between_losses(losses: int, observed_s: float, tier: str | None) -> float:
    """M in seconds: the assumption for the tier, counted as one loss in that time, together with what was seen.

    (M0 + observed) / (1 + losses): the mean of the posterior rate's inverse scale for a gamma prior of weight one
    loss. observed_s: seconds in which a loss could have happened (pods up), losses: how many did.
    """
    assumed = ASSUMED_MTBL_S.get(tier or UNKNOWN_TIER, ASSUMED_MTBL_S[UNKNOWN_TIER])
    return (assumed + max(0.0, observed_s)) / (1 + max(0, losses))


def young_s(save_cost_s: float, mtbl_s: float) -> float:
    """Young's best interval in seconds."""
    return math.sqrt(2 * save_cost_s * mtbl_s)


def daly_s(save_cost_s: float, mtbl_s: float) -> float:
    """Daly's best interval in seconds, good also where a save is not short beside M."""
    if save_cost_s >= 2 * mtbl_s:
        return mtbl_s
    x = math.sqrt(save_cost_s / (2 * mtbl_s))
    return young_s(save_cost_s, mtbl_s) * (1 + x / 3 + x * x / 9) - save_cost_s


def expected_ettr(mtbl_s: float, interval_s: float, recovery_s: float, save_cost_s: float) -> float:
    """Share of wall time that trains what is kept, 0..1 (formula and source in the module's docstring).

    Its first order for tau, R << M is 1 - C/tau - (tau/2 + R)/M. Raises ValueError unless M and tau are positive.
    """
    if mtbl_s <= 0 or interval_s <= 0:
        raise ValueError(f"mean time between losses ({mtbl_s}) and interval ({interval_s}) must be positive")
    try:
        wall = mtbl_s * math.exp(recovery_s / mtbl_s) * math.expm1((interval_s + save_cost_s) / mtbl_s)
    except OverflowError:
        return 0.0  # a segment that practically never gets through
    return min(1.0, interval_s / wall)


def choose_interval(
    save_cost_s: float | None,
    iteration_s: float | None,
    losses: int,
    observed_s: float,
    tier: str | None,
    bounds: Bounds | None = None,
    *,
    upload_s: float = 0.0,
) -> Interval:
    """The interval for what is known now. Seconds throughout; None for what was not measured yet.

    upload_s: time from a save until a store has it. A loss costs that much more, and saving faster than the store
    takes it up gains nothing. Where bounds contradict each other, the formula decides between them.
    """
    bounds = bounds or Bounds()
    mtbl_s = mean_time_between_losses(losses, observed_s, tier)
    if save_cost_s is None or iteration_s is None or iteration_s <= 0 or save_cost_s < 0:
        rollouts = _at_most(bounds.unmeasured, bounds.total)
        reason = f"every {_rollouts(rollouts)}, the default, until the cost of a save and of a rollout are measured"
        return Interval(rollouts, None, mtbl_s, reason)
    young = save_cost_s <= YOUNG_UNTIL * mtbl_s
    best_s = young_s(save_cost_s, mtbl_s) if young else daly_s(save_cost_s, mtbl_s)
    rollouts, limit = _bounded(best_s, save_cost_s, iteration_s, upload_s, bounds)
    seconds = rollouts * iteration_s
    reason = (
        f"every {_rollouts(rollouts)} ({_time(seconds)}): a save takes {_time(save_cost_s)}, a rollout "
        f"{_time(iteration_s)}, a pod is lost every {_time(mtbl_s)} ({_grounds(losses, observed_s, tier)}), for which "
        f"{'Young' if young else 'Daly'}'s formula gives {_time(best_s)}{limit}; saving takes "
        f"{_percent(save_cost_s / (seconds + save_cost_s))} of the time"
    )
    price = _price_of_bounds(best_s, seconds, save_cost_s, mtbl_s) if rollouts > 1 else ""
    return Interval(rollouts, seconds, mtbl_s, reason + price)


def _bounded(best_s: float, save_cost_s: float, iteration_s: float, upload_s: float, bounds: Bounds) -> tuple[int, str]:
    """Rollouts within the bounds, and the words for the bound that decided."""
    share_s = save_cost_s * (1 - bounds.most_saving) / bounds.most_saving
    least_s, least_why = max(
        (share_s, f", lengthened so that saving takes at most {_percent(bounds.most_saving)} of the time"),
        (upload_s, f", lengthened because a store needs {_time(upload_s)} to take a checkpoint up"),
    )
    least = max(1, math.ceil(least_s / iteration_s - EXACT))
    most = max(1, math.floor((bounds.most_lost_s - upload_s) / iteration_s + EXACT))
    best = max(1, round(min(best_s / iteration_s, MOST_ROLLOUTS)))
    rollouts, why = min(max(best, min(least, most)), max(least, most)), ""
    if least > most:
        limits = f"saving at most {_percent(bounds.most_saving)}, a loss at most {_time(bounds.most_lost_s)}"
        why = f", with limits that cannot all be kept ({limits})"
    elif rollouts > best:
        why = least_why
    elif iteration_s + upload_s > bounds.most_lost_s * (1 + EXACT):
        why = f", though one rollout alone is more than the {_time(bounds.most_lost_s)} that a loss should cost at most"
    elif rollouts < best:
        why = f", shortened so that a loss costs at most {_time(bounds.most_lost_s)} of work"
    if rollouts > _at_most(rollouts, bounds.total):
        rollouts = _at_most(rollouts, bounds.total)
        why = f", and the stage has {_rollouts(rollouts)} in all"
    return rollouts, why


def _price_of_bounds(best_s: float, seconds: float, save_cost_s: float, mtbl_s: float) -> str:
    """Words for bounds that cost much: where losses are frequent, saving more than its share would pay."""
    if best_s <= 0:
        return ""
    gain = expected_ettr(mtbl_s, best_s, 0.0, save_cost_s) - expected_ettr(mtbl_s, seconds, 0.0, save_cost_s)
    return f"; without the bounds {_percent(gain)} more of the time would count" if gain > WORTH_SAYING else ""


def _at_most(rollouts: int, total: int | None) -> int:
    return max(1, rollouts if total is None else min(rollouts, total))


def _grounds(losses: int, observed_s: float, tier: str | None) -> str:
    kind = tier if tier in ASSUMED_MTBL_S else f"{UNKNOWN_TIER}-like"
    if losses <= 0 and observed_s <= 0:
        return f"assumed for a {kind} pod"
    return f"assumed for a {kind} pod and corrected by {losses} lost in {_time(observed_s)}"


def _rollouts(count: int) -> str:
    return "rollout" if count == 1 else f"{count} rollouts"


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"
