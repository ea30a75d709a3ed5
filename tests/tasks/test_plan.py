"""The plan: what would be rented, what it could cost, and each mistake of the `pod:` section told before the money."""

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from blocks.recipe import Recipe
from plugins.errors import ControlPlaneError, UserError
from plugins.lium.hosts import Fabric, Host
from plugins.lium.offers import Estimate, Rest, Wish, rank
from tasks.plan import Plan, check_budget, check_wish, make_plan, wish_of
from tasks.plan_view import plan_view

NOW = 1_760_000_000.0  # 2025-10-09 08:53:20 UTC
FOX = Host("e-1", "swift-fox-3a", "NVIDIA H200", "H200", 8, 8, False, 1.89, tier="spot", country="CA")
OWL = Host("e-2", "calm-owl-11", "NVIDIA H200", "H200", 8, 8, False, 2.49, tier="secure", country="US")
ELK = Host("e-3", "bold-elk-7c", "NVIDIA H100 80GB HBM3", "H100", 8, 8, False, 0.5, tier="secure", country="US")


class Account:
    """A market in memory; it can be looked at and not rented from."""

    def __init__(self, *hosts: Host, balance: float | None = 100.0, **estimates: Estimate) -> None:
        self._hosts, self._balance, self._estimates = list(hosts), balance, estimates
        self.asked: list[tuple[str, str | None]] = []

    def hosts(self) -> list[Host]:
        return self._hosts

    def estimate(self, executor_id: str, template_id: str | None) -> Estimate | None:
        self.asked.append((executor_id, template_id))
        return self._estimates.get(executor_id.replace("-", ""))

    def check_volume(self, wanted: str) -> None:
        if wanted == "nosuch":
            raise UserError("no volume is called 'nosuch'")

    def known_template(self, image: str) -> str | None:
        return f"template of {image}"

    def unknown_gpu(self, name: str) -> list[str] | None:
        known = ["A100", "H100", "H200", "RTX4090"]
        return None if name in known else known

    def balance(self) -> float | None:
        return self._balance


def recipe(**pod: Any) -> Recipe:
    limits = {"gpu": "H200", "max_price_per_gpu_hour": 3.0, "budget_usd": 12.0}
    return Recipe.model_validate({"name": "small", "pod": {**limits, **pod}})


def plan(*hosts: Host, account: Account | None = None, resting: dict[str, Rest] | None = None, **pod: Any) -> Plan:
    return make_plan(recipe(**pod), account or Account(*hosts), resting or {}, NOW)


def shown(view: Plan, width: int = 240) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(plan_view(view))
    return console.export_text()


# -- the wish --------------------------------------------------------------------------------------------------------


def test_the_wish_carries_every_limit_of_the_recipe() -> None:
    limits = {
        "tier": "spot-first",
        "max_price_per_gpu_hour": 2.5,
        "min_download_mbps": 500.0,
        "min_disk_gb": 300.0,
        "min_ram_gb": 128.0,
        "min_cuda": 12.8,
        "min_driver": "570",
        "min_ports": 3,
        "image": "name:tag",
        "gpu_count": 8,
    }
    assert wish_of(recipe(gpu=["H200", "H100"], countries=["us", "FI", "US"], **limits)) == Wish(
        gpus=("H200", "H100"), countries=("US", "FI"), **limits
    )


def test_the_disk_is_for_the_checkpoints_unless_the_recipe_asks_for_more() -> None:
    sections = {"model": {"name": "mine-4B"}, "sft": {"data": "x", "num_rollout": 100, "save_interval": 20}}
    wish = wish_of(Recipe.model_validate({"name": "r", **sections}))
    assert (wish.min_disk_gb, wish.disk_for) == (256, "4 checkpoints of 64 GB (mine-4B)")
    wish = wish_of(Recipe.model_validate({"name": "r", **sections, "pod": {"gpu": "H200", "min_disk_gb": 300}}))
    assert (wish.min_disk_gb, wish.disk_for) == (300, None)


# -- mistakes --------------------------------------------------------------------------------------------------------


def test_an_unknown_gpu_is_refused_with_the_near_ones() -> None:
    with pytest.raises(
        UserError, match=r"^pod.gpu: Lium knows no GPU called 'NVIDIA H20O': did you mean .*H200.* It has"
    ):
        check_wish(Account(OWL), Wish(("H200", "NVIDIA H20O")))


@pytest.mark.parametrize("name", ["A100", "A100 80GB", "nvidia a100"])
def test_a_gpu_that_is_sold_out_is_no_mistake(name: str) -> None:
    check_wish(Account(OWL), Wish((name,)))


def test_a_listed_full_name_needs_no_second_question() -> None:
    check_wish(Account(OWL), Wish(("nvidia h200",)))


@pytest.mark.parametrize("code", ["XX", "EN", "UK"])
def test_a_code_that_is_no_country_is_refused_even_beside_a_good_one(code: str) -> None:
    with pytest.raises(UserError, match=rf"pod.countries: {code} is no country code.*on offer are CA, US"):
        check_wish(Account(FOX, OWL), Wish(("H200",), countries=("US", code)))


def test_countries_without_any_host_are_refused_with_those_on_offer() -> None:
    with pytest.raises(UserError, match=r"^pod.countries: no host is in FI, DE; on offer are CA, US$"):
        check_wish(Account(FOX, OWL), Wish(("H200",), countries=("FI", "DE")))


def test_one_country_on_offer_is_enough() -> None:
    check_wish(Account(FOX, OWL), Wish(("H200",), countries=("FI", "US")))


@pytest.mark.parametrize("hosts", [[], [replace(OWL, country=None)]])
def test_a_listing_without_countries_judges_no_country(hosts: list[Host]) -> None:
    check_wish(Account(*hosts), Wish(("H200",), countries=("FI",)))


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(UserError, match=r"(?s)pod.gpu: .*'H20O'.*\npod.gpu: .*'Z9'.*\npod.countries: XX is no country"):
        check_wish(Account(OWL), Wish(("H20O", "Z9"), countries=("XX",)))


@pytest.mark.parametrize(
    ("pod", "words"),
    [
        (
            {"budget_usd": 5.0, "gpu_count": 8, "max_price_per_gpu_hour": 2.0},
            r"pod.budget_usd: 5.00 USD does not last .* 30 min \(pod.dead_man_minutes\) of 8 GPUs at the ceiling "
            r"of 2.00 USD per GPU-hour cost 8.00 USD. Set pod.budget_usd to 8.00 at least",
        ),
        (
            {"budget_usd": 0.5, "max_price_per_gpu_hour": None},
            r"of 1 GPU at the cheapest offer of 1.89 .* Set pod.budget_usd to 0.95 at least",
        ),
    ],
    ids=["at the ceiling", "at the cheapest offer"],
)
def test_a_budget_under_one_dead_man_period_names_the_least_that_would_do(pod: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        plan(OWL, FOX, **pod)


@pytest.mark.parametrize(
    "pod",
    [
        {"budget_usd": 8.0, "gpu_count": 8, "max_price_per_gpu_hour": 2.0},
        {"budget_usd": None},
        {"budget_usd": 0.95, "max_price_per_gpu_hour": None},
    ],
    ids=["exactly one period", "no budget", "enough for the cheapest"],
)
def test_a_budget_of_one_dead_man_period_or_none_is_taken(pod: dict[str, Any]) -> None:
    check_budget(recipe(**pod).pod, rank([OWL, FOX], Wish(("H200",)), now=NOW))


def test_the_least_budget_that_is_named_is_accepted() -> None:
    section = recipe(budget_usd=0.01, max_price_per_gpu_hour=1.777, dead_man_minutes=7).pod
    empty = rank([], Wish(("H200",)), now=NOW)
    with pytest.raises(UserError) as refusal:
        check_budget(section, empty)
    named = float(str(refusal.value).split("Set pod.budget_usd to ")[1].split()[0])
    check_budget(section.model_copy(update={"budget_usd": named}), empty)
    with pytest.raises(UserError):
        check_budget(section.model_copy(update={"budget_usd": named - 0.01}), empty)


# -- the plan --------------------------------------------------------------------------------------------------------


def test_the_plan_takes_the_best_offer() -> None:
    found = plan(OWL, FOX, ELK)
    assert found.first is not None and found.first.host == FOX
    assert [refusal.host for refusal in found.ranking.refused] == [ELK]


def test_a_resting_host_is_not_planned_with() -> None:
    found = plan(OWL, FOX, resting={"e-1": Rest(NOW + 60, "boot failed")})
    assert found.first is not None and found.first.host == OWL


def test_boot_times_are_asked_for_the_first_offers_only_and_can_change_their_order() -> None:
    hosts = [replace(FOX, executor_id=f"e-{number}", price_per_gpu_hour=1.9 + number / 1000) for number in range(8)]
    account = Account(*hosts, e3=Estimate(20, True))
    found = plan(account=account, template_id="t-1")
    assert account.asked == [(f"e-{number}", "t-1") for number in range(5)]
    assert found.first is not None and found.first.host.executor_id == "e-3"


def test_no_host_is_asked_about_when_none_fits() -> None:
    account = Account(OWL)
    plan(account=account, max_price_per_gpu_hour=1.0)
    assert account.asked == []


def test_costs_are_reckoned_at_the_ceiling() -> None:
    found = plan(FOX, gpu_count=4, budget_usd=24.0, dead_man_minutes=30)
    assert found.ceiling_per_hour == pytest.approx(12.0)
    assert found.lasts_s(12.0) == pytest.approx(7200.0)
    assert found.worst_case == pytest.approx(24.0 + 6.0)


def test_without_a_ceiling_the_worst_case_is_that_of_the_dearest_offer() -> None:
    assert plan(FOX, OWL, max_price_per_gpu_hour=None).worst_case == pytest.approx(12.0 + 2.49 / 2)


def test_without_a_budget_there_is_no_worst_case() -> None:
    found = plan(FOX, budget_usd=None)
    assert found.worst_case is None and found.lasts_s(1.0) is None


def test_an_account_that_does_not_answer_is_not_taken_for_an_empty_market() -> None:
    class Silent(Account):
        def hosts(self) -> list[Host]:
            raise ControlPlaneError("list hosts: no answer")

    with pytest.raises(ControlPlaneError):
        plan(account=Silent())


# -- the view --------------------------------------------------------------------------------------------------------


def test_the_view_shows_offers_refusals_money_and_the_next_step() -> None:
    text = shown(plan(account=Account(OWL, FOX, ELK, e1=Estimate(20, True)), gpu_count=2))
    row = next(line for line in text.splitlines() if "swift-fox-3a" in line)
    for cell in ("1", "H200 x2", "spot", "CA", "1.89", "3.78", "~20 s", "image on the host"):
        assert cell in row
    assert text.index("swift-fox-3a") < text.index("calm-owl-11")
    assert "bold-elk-7c: NVIDIA H100 80GB HBM3 is not H200" in text
    assert "at the price ceiling: $6.00 per hour (2 x $3.00)" in text
    assert "the budget of $12.00 lasts 2.0 h at the ceiling, 3.2 h at the first offer" in text
    assert "worst case: $15.00 (the budget and one dead-man period of 30 min)" in text
    assert "balance of the account: $100.00\n" in text
    assert "the run would rent swift-fox-3a at $3.78 per hour; if that fails, the next of 1 more" in text


def test_hosts_that_fall_to_the_same_limit_are_counted_together() -> None:
    dear = [replace(OWL, executor_id=f"e-{number}", huid=f"h{number}", price_per_gpu_hour=9.0) for number in range(4)]
    text = shown(plan(FOX, *dear))
    row = next(line for line in text.splitlines() if "pod.max_price_per_gpu_hour" in line)
    assert " 4 " in row and "h0: price 9.00 > ceiling 3.00" in row and "h1" not in text


def test_a_long_list_is_cut_and_says_so() -> None:
    hosts = [replace(FOX, executor_id=f"e-{number:02}", huid=f"h{number:02}") for number in range(23)]
    text = shown(plan(*hosts))
    assert "h19" in text and "h20" not in text and "and 3 more offers" in text


@pytest.mark.parametrize(
    ("minutes", "words"), [(0, "the run would end at once"), (90, "the run would wait up to 90 min for a host")]
)
def test_without_an_offer_the_view_says_why_and_what_the_run_would_do(minutes: float, words: str) -> None:
    text = shown(plan(OWL, max_price_per_gpu_hour=1.0, capacity_wait_minutes=minutes))
    assert "no offer: price ceiling 1.00 is under every offer: the cheapest H200 is 2.49 (calm-owl-11)" in text
    assert words in text


def test_missing_guards_and_a_short_balance_are_pointed_out() -> None:
    text = shown(plan(account=Account(FOX, balance=3.0), max_price_per_gpu_hour=None))
    assert "no price ceiling: set pod.max_price_per_gpu_hour" in text
    assert "balance of the account: $3.00, less than the budget" in text
    assert "no budget: set pod.budget_usd" in shown(plan(FOX, budget_usd=None))


def test_an_unknown_balance_is_left_out() -> None:
    assert "balance" not in shown(plan(account=Account(FOX, balance=None)))


def test_what_a_host_calls_itself_is_not_read_as_markup() -> None:
    text = shown(plan(replace(FOX, huid="[red]x[/nonsense]"), replace(ELK, gpu="[/]H100")))
    assert "[red]x[/nonsense]" in text and "[/]H100 is not H200" in text


def test_boot_times_are_asked_for_the_template_that_the_image_would_use() -> None:
    account = Account(FOX)
    make_plan(recipe(image="example/trainer:1"), account, {}, 0.0)
    assert [template for _, template in account.asked] == ["template of example/trainer:1"]


def test_a_volume_that_a_rent_would_refuse_is_refused_by_the_plan() -> None:
    with pytest.raises(UserError, match="nosuch"):
        plan(FOX, volume="nosuch")
    assert plan(FOX, volume="new:name=x").first is not None


# -- several nodes ---------------------------------------------------------------------------------------------------


class Networks(Account):
    """A market with one fabric of these hosts."""

    def fabrics(self) -> list[Fabric]:
        return [Fabric("fab", "infiniband", len(self._hosts), tuple(self._hosts))]


def test_the_plan_of_a_cluster_shows_its_nodes_and_counts_all_of_them() -> None:
    pod = {"nodes": 2, "gpu_count": 8, "shared_dir": "/data", "budget_usd": 60.0}
    view = plan(account=Networks(FOX, OWL), **pod)
    assert view.first is not None and view.first.price_per_hour == pytest.approx(8 * (1.89 + 2.49))
    assert view.ceiling_per_hour == pytest.approx(2 * 8 * 3.0)
    said = shown(view)
    assert "2 nodes of H200 x8" in said and "2 nodes x 8 x $3.00" in said
    assert "the run would rent swift-fox-3a, calm-owl-11 at $35.04 per hour" in said


def test_a_budget_must_last_a_dead_man_period_of_every_node() -> None:
    wanted = recipe(nodes=2, gpu_count=8, shared_dir="/data", budget_usd=20.0)
    with pytest.raises(UserError, match=r"8 GPUs on each of 2 nodes .*cost 24\.00 USD"):
        check_budget(wanted.pod, rank([], wish_of(wanted), now=NOW))
