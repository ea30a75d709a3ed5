"""The unmodified SDK against the emulator: rent, work in the pod, schedule, bill, faults."""

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from lium import Config, Lium
from lium.sdk.exceptions import LiumAuthError, LiumError, LiumNotFoundError

pytestmark = pytest.mark.filterwarnings("ignore:Pinning:UserWarning")


def test_a_pod_runs_commands_and_is_gone_after_down(sdk):
    pod = sdk.pod()
    result = sdk.lium.exec(pod, command="echo out; echo err >&2; exit 3")
    assert (result["stdout"], result["stderr"], result["exit_code"]) == ("out\n", "err\n", 3)
    assert sdk.out(pod, "echo $SECRET; pwd; echo $POD_NAME", env={"SECRET": "s3"}).split()[0] == "s3"
    assert sdk.lium.exec(pod, command="kill -9 $$")["exit_code"] == -1
    assert len(sdk.lium.exec(pod, command="head -c 3000000 /dev/zero | tr '\\0' x")["stdout"]) == 3_000_000
    sdk.lium.down(pod)
    assert sdk.lium.ps() == []
    with pytest.raises(LiumNotFoundError):
        sdk.lium.down(pod)


def test_a_terminal_is_a_terminal(sdk):
    pod = sdk.pod()
    text = "".join(
        chunk.get("data", "") for chunk in sdk.lium.stream_exec(pod, command="test -t 0 && echo tty; exit 0")
    )
    assert text.strip() == "tty"


def test_files_go_up_and_come_down(sdk, tmp_path):
    pod = sdk.pod()
    data = bytes(range(256)) * 4000
    (tmp_path / "up").write_bytes(data)
    sdk.lium.upload(pod, local=str(tmp_path / "up"), remote="/root/new/dir/")
    assert sdk.out(pod, "wc -c < $HOME/new/dir/up") == str(len(data))
    sdk.lium.download(pod, remote="/root/new/dir/up", local=str(tmp_path / "down"))
    assert (tmp_path / "down").read_bytes() == data


def test_sftp_follows_a_link_inside_the_pod_and_never_out_of_it(sdk, emulator, tmp_path):
    if not emulator.namespaces:
        pytest.skip("plain pods see the host's files")
    pod = sdk.pod()
    sdk.out(pod, "echo inside > /root/real; ln -s /root/real /tmp/link; ln -s /root/outside /root/dangling")
    sdk.lium.download(pod, remote="/tmp/link", local=str(tmp_path / "got"))
    assert (tmp_path / "got").read_text() == "inside\n"
    (tmp_path / "up").write_text("x")
    sdk.lium.upload(pod, local=str(tmp_path / "up"), remote="/root/dangling")
    assert not Path("/root/outside").exists()
    assert sdk.out(pod, "cat /root/outside") == "x"


def test_the_pod_shows_the_rented_gpus(sdk):
    pod = sdk.pod(gpu_count=2)
    assert sdk.out(pod, "nvidia-smi -L").count("NVIDIA GeForce RTX 4090") == 2
    query = "nvidia-smi --query-gpu=index,memory.total --format=csv,noheader,nounits"
    assert sdk.out(pod, query).splitlines() == ["0, 24564", "1, 24564"]
    assert len(sdk.lium.gpu_stats(pod)) == 2


def test_a_volume_outlives_its_pod_and_serves_one_pod_at_a_time(sdk):
    volume = sdk.lium.volume_create("data", description="d")
    place = "${POD_VOLUME:-/mnt}"
    pod = sdk.pod(volume_id=volume.id)
    sdk.out(pod, f"echo kept > {place}/file")
    with pytest.raises(LiumError, match="one pod at a time"):
        sdk.pod(volume_id=volume.id)
    sdk.lium.down(pod)
    again = sdk.pod(volume_id=volume.id)
    assert sdk.out(again, f"cat {place}/file") == "kept"
    assert next(row for row in sdk.lium.volumes() if row.id == volume.id).current_file_count == 1
    sdk.lium.down(again)
    assert sdk.lium.volume_delete(volume.id)
    assert sdk.lium.volumes() == []


def test_a_reboot_is_a_new_container_on_the_same_home(sdk, tmp_path):
    pod = sdk.pod()
    sdk.out(pod, "echo kept > $HOME/file; (setsid nohup sleep 3600 >/dev/null 2>&1 &)")
    pins = tmp_path / ".lium" / "known_hosts" / pod.id
    before = pins.read_text()
    sdk.lium.reboot(pod)
    pod = sdk.ready(pod.id)
    assert sdk.out(pod, "cat $HOME/file") == "kept"
    assert pins.read_text() != before
    assert [event["to_status"] for event in sdk.lium.pod_events(pod.id)][-2:] == ["REBOOT_PENDING", "RUNNING"]


def test_a_scheduled_end_fires_and_the_events_say_why(sdk, wait_until):
    pod = sdk.pod()
    soon = datetime.now(UTC) + timedelta(seconds=1)
    sdk.lium.schedule_termination(pod, termination_time=soon.isoformat())
    wait_until(lambda: not sdk.lium.ps(), "the pod is removed")
    last = sdk.lium.pod_events(pod.id)[-1]
    assert (last["to_status"], last["reason"]) == ("DELETED", "scheduled termination")
    assert sdk.lium.pod_record(pod.id)["close_reason"] == "scheduled termination"


def test_a_schedule_can_be_moved_and_taken_back_and_not_set_in_the_past(sdk):
    pod = sdk.pod(termination_hours=2)
    row = sdk.call("GET", f"/pods/{pod.id}").json()
    removal = datetime.fromisoformat(row["removal_scheduled_at"])
    assert timedelta(hours=2) >= removal - datetime.now(UTC) > timedelta(hours=1, minutes=55)
    later = datetime.now(UTC) + timedelta(hours=5)
    sdk.lium.schedule_termination(pod, termination_time=later.isoformat())
    assert sdk.call("GET", f"/pods/{pod.id}").json()["removal_scheduled_at"][:16] == later.isoformat()[:16]
    past = {"removal_scheduled_at": "2020-01-01T00:00:00Z"}
    assert sdk.call("POST", f"/pods/{pod.id}/schedule-removal", json=past).status_code == 400
    sdk.lium.cancel_scheduled_termination(pod)
    assert sdk.call("GET", f"/pods/{pod.id}").json()["removal_scheduled_at"] is None


def test_the_bill_counts_seconds_and_stays_after_removal(sdk, wait_until):
    before = sdk.call("GET", "/users/me").json()["balance"]
    pod = sdk.pod()
    running = wait_until(lambda: sdk.lium.pod_record(pod.id)["total"], "the pod costs something")
    sdk.lium.down(pod)
    record = sdk.lium.pod_record(pod.id)
    assert record["removed"] and record["total"] >= running
    assert record["total"] == pytest.approx(record["billed_seconds"] / 3600 * 0.35, abs=2e-6)
    assert before - sdk.call("GET", "/users/me").json()["balance"] == pytest.approx(record["total"], abs=2e-6)
    statement = sdk.call("GET", "/billing/statement").json()
    assert [row["pod_id"] for row in statement["pods"]] == [pod.id]
    assert statement["total"] == pytest.approx(record["total"], abs=2e-6)


def rent_body(ssh_key, **more):
    return {"gpu_type": "4090", "pod_name": "p", "user_public_key": [ssh_key.with_suffix(".pub").read_text()]} | more


def test_a_repeated_rent_gets_the_first_answer(sdk, ssh_key):
    headers = {"Idempotency-Key": "k1"}
    first, second = (
        sdk.call("POST", "/executors/rent-by-spec", json=rent_body(ssh_key), headers=headers) for _ in range(2)
    )
    assert first.json() == second.json()
    assert second.headers["Idempotent-Replayed"] == "true" and "Idempotent-Replayed" not in first.headers
    assert len(sdk.lium.ps()) == 1
    other = sdk.call("POST", "/executors/rent-by-spec", json=rent_body(ssh_key, gpu_count=2), headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")


def test_a_lost_rent_answer_leaves_one_pod_which_the_sdk_finds(sdk, emulator):
    emulator.faults(lose_rent_answer=1)
    rented = sdk.lium.rent(gpu_type="4090", name="lost-one")
    assert [pod.id for pod in sdk.lium.ps()] == [rented.pod["id"]]


def test_a_failed_boot_says_its_cause(sdk, emulator):
    emulator.faults(boot_fail=1)
    rented = sdk.lium.rent(gpu_type="4090", name="broken")
    with pytest.raises(Exception, match="asked to fail") as raised:
        sdk.lium.wait_ready(rented.pod["id"], timeout=20, poll_interval=0.05)
    assert type(raised.value).__name__ == "PodStartError"
    assert sdk.lium.pod_record(rented.pod["id"])["total"] == 0


def test_capacity_goes_down_and_a_refusal_names_the_constraint(sdk):
    def available():
        rows = [node for node in sdk.lium.ls() if "A100" in node.machine_name]
        return rows[0].available_gpu_count if rows else 0

    assert available() == 4
    pod = sdk.pod(gpu_type="A100", gpu_count=3)
    assert available() == 1
    with pytest.raises(LiumError, match=r"gpu_count=2: .* rentable GPU counts: 1$"):
        sdk.lium.rent(gpu_type="A100", gpu_count=2, name="too-many")
    with pytest.raises(LiumError, match=r"max_price_per_gpu_hour=0.5: none of the 1 node"):
        sdk.lium.rent(gpu_type="A100", name="too-cheap", max_price_per_gpu_hour=0.5)
    with pytest.raises(LiumError, match="gpu_type=B300"):
        sdk.lium.rent(gpu_type="B300", name="unknown")
    sdk.lium.down(pod)
    assert available() == 4


def test_a_whole_host_machine_is_not_split(sdk):
    with pytest.raises(LiumError, match=r"gpu_count=1: .* rentable GPU counts: 8"):
        sdk.lium.rent(gpu_type="H100", name="part")
    assert sdk.lium.rent(gpu_type="H100", gpu_count=8, name="whole", dry_run=True).price_per_hour == pytest.approx(
        14.32
    )


def test_ordered_http_errors_reach_the_client_and_the_sdk_retries_a_429(sdk, emulator):
    emulator.order({"429:GET /api/volumes": 1})
    assert sdk.lium.volumes() == []
    statuses = [row["status"] for row in emulator.journal() if row["api_key_tail"] == sdk.key[-4:]]
    assert statuses[-2:] == [429, 200]
    emulator.order({"503:GET /api/billing/*": 1})
    answer = sdk.call("GET", "/billing/statement")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "emulated_fault")


def test_no_capacity_can_be_ordered(sdk, emulator):
    emulator.faults(no_capacity=1)
    with pytest.raises(LiumError, match="rentable GPU counts: none now"):
        sdk.lium.rent(gpu_type="4090", name="none")


def test_a_wrong_fault_is_refused(sdk):
    answer = sdk.call("POST", "/../_emulator/faults", json={"nonsense": 1})
    assert answer.status_code == 400 and "lose_rent_answer" in answer.json()["message"]


def test_the_journal_holds_no_secret(sdk, emulator):
    sdk.call("POST", "/templates", json={"name": "t", "docker_image": "i", "environment": {"TOKEN": "s3cr3t-value"}})
    text = json.dumps(emulator.journal())
    assert "s3cr3t-value" not in text and sdk.key not in text
    assert emulator.journal()[-1]["body_keys"] == ["docker_image", "environment", "name"]


@pytest.mark.parametrize(("how", "listed"), [("vanish", []), ("broken", ["BROKEN"]), ("silent", ["RUNNING"])])
def test_a_reclaimed_pod_looks_as_asked_and_answers_no_more(sdk, emulator, how, listed):
    pod = sdk.pod()
    sdk.out(pod, "true")
    assert emulator.kill_pod(pod.id, how, "spot reclaim: outbid").status_code == 200
    assert [row.status for row in sdk.lium.ps()] == listed
    with pytest.raises((OSError, EOFError, Exception)):
        sdk.out(pod, "true")
    if how != "silent":
        assert sdk.lium.pod_events(pod.id)[-1]["reason"] == "spot reclaim: outbid"


def test_a_template_brings_its_environment(sdk):
    body = {"name": "mine", "docker_image": "me/img", "docker_image_tag": "1", "environment": {"COLOUR": "blue"}}
    template = sdk.call("POST", "/templates", json=body).json()
    assert template["status"] == "VERIFY_SUCCESS" and sdk.call("GET", f"/templates/{template['id']}").json() == template
    pod = sdk.pod(template_id=template["id"])
    assert sdk.out(pod, "echo $COLOUR") == "blue"


def test_keys_decide_who_may_call(emulator, connect, ssh_key):
    with pytest.raises(LiumAuthError):
        connect(emulator, "bad-key").lium.ps()
    anonymous = Lium(Config(api_key="", base_url=emulator.url, ssh_key_path=ssh_key))
    assert len(anonymous.ls()) >= 4
    one, other = connect(emulator), connect(emulator)
    volume = one.lium.volume_create("mine")
    assert other.lium.volumes() == []
    assert other.call("GET", f"/volumes/{volume.id}").status_code == 404


def test_an_unknown_endpoint_says_so(sdk):
    answer = sdk.call("GET", "/tao/rates")
    assert answer.status_code == 404 and "may not have this endpoint" in answer.json()["message"]


def test_a_bounded_job_ends_when_its_command_does(sdk, emulator):
    if not emulator.namespaces:
        pytest.skip("jobs write to /workspace, which plain pods share with the host")
    began = time.monotonic()
    job = sdk.lium.run_job(gpu_type="4090", command="echo done; exit 4", max_cost_usd=1, deadline_s=200)
    assert job.exit_code == 4, job
    assert time.monotonic() - began < 100, "the end of the command was noticed, not the deadline"
    assert sdk.lium.ps() == []
