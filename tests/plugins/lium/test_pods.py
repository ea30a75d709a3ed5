"""Reading what Lium sends, and what its refusals mean."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
import requests
from lium.sdk import exceptions as lium

from plugins.errors import CapacityError, ControlPlaneError, TrainstackError, UserError
from plugins.lium.boundary import NotFound, OutcomeUnknown, RateLimited, boundary, convert
from plugins.lium.pods import event_from_json, format_time, parse_time, record_from_json, row_from_json, ssh_target


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("ssh root@127.0.0.1 -p 40001", ("root", "127.0.0.1", 40001)),
        ("ssh user.name@host-1.example", ("user.name", "host-1.example", 22)),
        (None, None),
        ("", None),
        ("ssh root@host -p 22 -o ProxyCommand=x", None),
        ("ssh -i key root@host", None),
        ("ssh root@-oProxyCommand=x", None),
        ("ssh root@host; rm -rf /", None),
    ],
)
def test_only_the_plain_ssh_command_is_read(command, expected) -> None:
    assert ssh_target(command) == expected


def test_times_are_read_as_utc_and_written_with_a_z() -> None:
    noon = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
    for text in ("2026-11-22T12:00:00Z", "2026-11-22T12:00:00", "2026-11-22T14:00:00+02:00"):
        assert parse_time(text) == noon
    assert [parse_time(value) for value in (None, "", "soon", 5)] == [None] * 4
    assert format_time(noon.astimezone(timezone(timedelta(hours=5)))) == "2026-11-22T12:00:00Z"


def test_a_row_is_read_from_as_little_as_an_id() -> None:
    bare = row_from_json({"id": "p"})
    assert (bare.status, bare.ssh_host, bare.gpu_count, bare.reachable, bare.terminal) == (
        "UNKNOWN",
        None,
        None,
        False,
        False,
    )
    full = row_from_json({"id": "p", "status": "running", "gpu_count": "2", "ssh_connect_cmd": "ssh root@h -p 5"})
    assert (full.status, full.gpu_count, full.ssh_port, full.reachable) == ("RUNNING", 2, 5, True)


def test_the_record_survives_missing_figures() -> None:
    record = record_from_json({"pod_id": "p", "total": None, "billed_seconds": "11.5"})
    assert (record.cost_usd, record.billed_seconds, record.removed_at) == (0.0, 11.5, None)


@pytest.mark.parametrize(
    ("raw", "cause"),
    [
        ({"error": "boom", "reason": "x"}, "boom"),
        ({"reason": "reclaimed", "detail": "by owner"}, "reclaimed: by owner"),
        ({"reason": "reclaimed"}, "reclaimed"),
        ({}, None),
    ],
)
def test_an_events_cause(raw, cause) -> None:
    assert event_from_json(raw).cause == cause


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (lium.LiumAuthError("Invalid API key"), UserError),
        (lium.LiumBudgetExceededError("budget"), UserError),
        (lium.LiumInsufficientBalanceError("insufficient balance"), UserError),
        (lium.LiumScopeError("scope"), UserError),
        (lium.LiumNotFoundError("Resource not found"), NotFound),
        (lium.LiumRateLimitError("Rate limit exceeded"), RateLimited),
        (lium.LiumServerError("Server error: 503"), OutcomeUnknown),
        (lium.LiumError("x", code="rent_outcome_unknown"), OutcomeUnknown),
        (lium.LiumError("API error 409: busy", code="idempotency_in_progress"), OutcomeUnknown),
        (lium.LiumError("API error 409: gpu_count=3: none of the 5 node(s)"), CapacityError),
        (lium.LiumError("No node matches gpu_type=H200."), CapacityError),
        (lium.LiumError("API error 422: termination_hours"), UserError),
        (lium.LiumError("API error 418: teapot"), ControlPlaneError),
        (requests.ConnectionError("refused"), OutcomeUnknown),
        (requests.Timeout("timed out"), OutcomeUnknown),
        (OSError("no route"), OutcomeUnknown),
        (ValueError("No SSH keys found"), UserError),
        (TypeError("'NoneType' object is not iterable"), ControlPlaneError),
        (AttributeError("'str' object has no attribute 'get'"), ControlPlaneError),
    ],
)
def test_every_foreign_error_has_one_decision(error, expected) -> None:
    converted = convert(error, "rent pod x")
    assert type(converted) is expected
    assert isinstance(converted, TrainstackError) and str(converted).startswith("rent pod x: ")


def test_the_boundary_keeps_the_cause_and_lets_ours_pass() -> None:
    with pytest.raises(ControlPlaneError) as caught, boundary("list pods"):
        raise KeyError("id")
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(CapacityError, match=r"^ours$"), boundary("list pods"):
        raise CapacityError("ours")
