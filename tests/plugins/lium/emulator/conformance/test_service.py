"""What trainstack counts on, asked of a live service through the unmodified SDK and CLI: the emulator or the real one.

    pytest tests/plugins/lium/emulator/conformance                                            an emulator
    pytest -n 0 tests/plugins/lium/emulator/conformance --base-url https://lium.io/api --i-will-pay

The tests are in order: they look, rent one pod, use it, and give it back. What no document says is not judged but
written to the report at the end.
"""

import asyncio
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncssh
import httpx
import pytest
from lium import Config, Lium
from lium.sdk.exceptions import LiumAuthError, LiumError, LiumNotFoundError

pytestmark = [
    pytest.mark.filterwarnings("ignore:Pinning:UserWarning"),
    pytest.mark.timeout(1200),
    pytest.mark.xdist_group("conformance"),
]
CLI = str(Path(sys.executable).with_name("lium"))


@pytest.fixture(scope="module")
def pod(account, note):
    """The pod of most tests, with a volume."""
    volume = account.lium.volume_create(account.run, description="conformance")
    node = account.cheapest()
    note("host", f"{node.machine_name}, {node.price_per_gpu} USD per GPU-hour, tier {node.tier}")
    row = account.ready(account.rent(node, idempotency_key=account.run, volume_id=volume.id))
    note("statuses seen until RUNNING", ", ".join(account.statuses))
    return row | {"asked_volume": volume.id, "node": node, "info": account.info(row["id"])}


@pytest.fixture(scope="module")
def cli(account, tmp_path_factory):
    home = tmp_path_factory.mktemp("cli")
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "LIUM_BASE_URL": account.url, "LIUM_API_KEY": account.key}
    env |= {"LIUM_SSH_KEY_PATH": str(account.key_path), "LIUM_SSH_PERSIST": "0", "COLUMNS": "160"}

    def run(*argv, status=0):
        done = subprocess.run(
            [CLI, *argv], env=env, cwd=home, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300
        )
        assert done.returncode == status, (argv, done.returncode, done.stdout, done.stderr)
        return done.stdout

    return run


def test_the_listing_has_what_offers_are_ranked_by(account):
    nodes = account.lium.ls()
    assert nodes
    for node in nodes:
        assert node.id and node.machine_name and node.price_per_gpu >= 0 and node.gpu_count >= 1
        assert node.tier in (None, "spot", "secure") and "gpu" in node.specs
    assert any(node.available_gpu_count for node in nodes)


def test_a_wrong_key_is_refused(account):
    with pytest.raises(LiumAuthError):
        Lium(Config(api_key="bad-key", base_url=account.url, ssh_key_path=account.key_path)).ps()


def test_what_nobody_offers_is_refused_without_a_pod(account, note):
    before = len(account.rows())
    for wanted in ({"country": "ZZ"}, {"max_price_per_gpu_hour": 0.0001}):
        with pytest.raises(LiumError) as refused:
            gpu = account.cheapest().gpu_type
            account.lium.rent(gpu_type=gpu, name=f"{account.run}-no", dry_run=True, **wanted)
        note(f"refusal of {next(iter(wanted))}", f"{getattr(refused.value, 'code', None)}: {refused.value}")
    assert len(account.rows()) == before


def test_the_row_of_a_running_pod(pod, account, note):
    assert re.fullmatch(r"ssh \S+@\S+( -p \d+)?", pod["ssh_connect_cmd"])
    assert (str(pod["gpu_count"]), pod["executor"]["id"]) == ("1", pod["node"].id)
    assert float(pod["price"]) == pytest.approx(pod["node"].price_per_gpu, rel=0.01)
    removal = datetime.fromisoformat(pod["removal_scheduled_at"])
    left = (removal if removal.tzinfo else removal.replace(tzinfo=UTC)) - datetime.now(UTC)
    assert timedelta() < left <= timedelta(hours=1, minutes=5), "termination_hours=1"
    holders = [name for name, value in pod.items() if value == pod["asked_volume"] and name != "asked_volume"]
    note("the row carries the volume's id", f"yes, in {', '.join(holders)}" if holders else "no")
    note("keys of a row", ", ".join(sorted(set(pod) - {"asked_volume", "node", "info"})))


def test_a_repeated_rent_is_not_a_second_pod(pod, account, note):
    if account.rented >= account.pods_at_most:
        pytest.skip("--pods-at-most leaves no room for the case that it is one")
    again = account.rent(pod["node"], idempotency_key=account.run, volume_id=pod["asked_volume"])
    note("a repeated rent is answered with the first pod", "yes" if again == pod["id"] else "NO")
    assert again == pod["id"] and len(account.rows()) == 1


def test_commands_and_files(pod, account, tmp_path):
    done = account.lium.exec(pod["info"], command="echo out; echo err >&2; exit 3")
    assert (done["stdout"], done["stderr"], done["exit_code"]) == ("out\n", "err\n", 3)
    assert account.lium.exec(pod["info"], command="echo $WORD", env={"WORD": "from stdin"})["stdout"] == "from stdin\n"
    data = bytes(range(256)) * 1000
    (tmp_path / "up").write_bytes(data)
    account.lium.upload(pod["info"], local=str(tmp_path / "up"), remote="/root/conf/")
    account.lium.download(pod["info"], remote="/root/conf/up", local=str(tmp_path / "down"))
    assert (tmp_path / "down").read_bytes() == data


def test_the_gpu_is_the_one_that_was_listed(pod, account, note):
    query = "nvidia-smi --query-gpu=name,memory.total,driver_version,utilization.gpu --format=csv,noheader,nounits"
    done = account.lium.exec(pod["info"], command=query)
    assert done["exit_code"] == 0 and len(done["stdout"].splitlines()) == 1
    note("nvidia-smi in the pod", done["stdout"].strip())
    assert done["stdout"].split(",")[0].strip() == pod["node"].machine_name


def test_what_a_pod_is_like(pod, account, note):
    """Nothing is judged here."""
    asks = {
        "shared memory": "df -h /dev/shm | tail -n 1",
        "volume mount": "df -h /mnt | tail -n 1",
        "python3": "command -v python3 && python3 --version",
        "sshd options": "sshd -T 2>/dev/null | grep -i -E 'forwarding|maxsessions|permitlisten' | tr '\\n' ';'",
    }
    for name, command in asks.items():
        done = account.lium.exec(pod["info"], command=command)
        note(name, " ".join(done["stdout"].split()) or f"no answer (status {done['exit_code']})")


def test_reverse_forwarding(pod, account, note):
    """Whether the pod's SSH server allows `-R`, which decides how a pod can reach a laptop."""
    where = re.fullmatch(r"ssh (\S+)@(\S+?)(?: -p (\d+))?", pod["ssh_connect_cmd"])
    assert where

    async def ask():
        options = {"known_hosts": None, "client_keys": [str(account.key_path)], "config": None, "username": where[1]}
        server = await asyncio.start_server(lambda _, writer: (writer.write(b"here\n"), writer.close()), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, asyncssh.connect(where[2], int(where[3] or 22), **options) as conn:
            try:
                listener = await conn.forward_remote_port("127.0.0.1", 0, "127.0.0.1", port)
            except asyncssh.Error as error:
                return f"no: {error}"
            command = f"timeout 10 bash -c 'exec 3<>/dev/tcp/127.0.0.1/{listener.get_port()}; cat <&3'"
            done = await conn.run(command, timeout=30)
            return "yes" if done.stdout == "here\n" else f"accepted, and no bytes came through: {done.stderr}"

    note("sshd allows -R forwarding", asyncio.run(ask()))


def test_the_end_can_be_moved_and_not_into_the_past(pod, account, note):
    soon = datetime.now(UTC) + timedelta(minutes=50)
    account.lium.schedule_termination(pod["info"], termination_time=soon.isoformat())
    shown = next(row for row in account.rows() if row["id"] == pod["id"])["removal_scheduled_at"]
    assert shown[:16] == soon.isoformat()[:16]
    path = f"{account.url}/pods/{pod['id']}/schedule-removal"
    past = {"removal_scheduled_at": "2020-01-01T00:00:00Z"}
    answer = httpx.post(path, json=past, headers={"X-API-KEY": account.key}, timeout=30)
    note("an end in the past", f"{answer.status_code} {answer.text[:120]}")
    assert answer.status_code == 400


def test_the_cli_sees_and_uses_the_same_pod(pod, account, cli, tmp_path):
    cli("ls")
    assert account.run in cli("ps", "--json")
    assert "in the pod" in cli("exec", account.run, "echo in the pod")
    cli("exec", account.run, "exit 7", status=7)
    (tmp_path / "file").write_text("going up\n")
    cli("scp", account.run, str(tmp_path / "file"), "/root/from-cli")
    assert "going up" in cli("exec", account.run, "cat $HOME/from-cli")


def test_a_removed_pod_is_gone_and_its_history_stays(pod, account, cli, note):
    cli("rm", account.run, "-y")
    assert pod["id"] not in [row["id"] for row in account.rows() if row["status"] not in ("DELETING", "STOP_PENDING")]
    with pytest.raises(LiumNotFoundError):
        account.lium.down(pod["info"])
    events = account.lium.pod_events(pod["id"])
    note("events of a removed pod", ", ".join(str(event["to_status"]) for event in events))
    record = account.lium.pod_record(pod["id"])
    note("cost of the run in USD", record["total"])
    assert record["removed"] and 0 <= record["total"] < pod["node"].price_per_gpu
    note("statuses seen", ", ".join(account.statuses))
