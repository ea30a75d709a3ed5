"""What the API says of a host or a pod, in the SDK's own models and as JSON. Rows are kept until something changes."""

from typing import Any

from lium.sdk.models import ExecutorInfo, PodInfo

from tests.faults.machines import SimHost, SimPod, iso

KIB_PER_TB = 1_000_000_000


def executor_info(host: SimHost) -> ExecutorInfo:
    """A host as `Lium.ls` gives it."""
    plan = host.plan
    gpu = {"count": plan.gpus, "driver": "580.95.05", "details": [{"name": plan.gpu, "capacity": 143771}]}
    return ExecutorInfo(
        id=host.id,
        huid=f"host-{plan.number}",
        machine_name=plan.gpu,
        gpu_type=plan.gpu.split()[-1],
        gpu_count=plan.gpus,
        price_per_hour=host.price * plan.gpus,
        price_per_gpu=host.price,
        location={"country": plan.country, "country_code": plan.country},
        specs={"gpu": gpu, "ram": {"total": KIB_PER_TB}, "hard_disk": {"free": KIB_PER_TB}, "cpu": {"count": 64}},
        status="active",
        docker_in_docker=False,
        ip="127.0.0.1",
        available_port_count=20,
        effective_download_speed_mbps=plan.download_mbps,
        max_cuda_version=13.0,
        tier=plan.tier,
        available_gpu_count=host.free,
        whole_host_only=False,
        frequent_rent_failures=plan.frequent_failures,
    )


def pod_info(pod: SimPod) -> PodInfo:
    """A pod as `Lium.ps` gives it."""
    if pod.shown is not None and pod.shown[0] == pod.version:
        return pod.shown[1]
    executor = executor_info(pod.host)
    executor.price_per_hour, executor.price_per_gpu = pod.price, pod.price / pod.gpus
    row = PodInfo(
        id=pod.id,
        name=pod.name,
        status=pod.status,
        huid=f"pod-{pod.id[:4]}",
        ssh_cmd=ssh_command(pod),
        ports={},
        created_at=iso(pod.rented_at) or "",
        updated_at="",
        executor=executor,
        template={},
        removal_scheduled_at=iso(pod.removal_at),
        jupyter_installation_status=None,
        jupyter_url=None,
        gpu_count=pod.gpus,
    )
    pod.shown = (pod.version, row)
    return row


def pod_json(pod: SimPod) -> dict[str, Any]:
    """A pod as `GET /pods/{id}` answers."""
    return {
        "id": pod.id,
        "pod_name": pod.name,
        "status": pod.status,
        "gpu_count": str(pod.gpus),
        "gpu_name": pod.host.plan.gpu,
        "price": pod.price,
        "ssh_connect_cmd": ssh_command(pod),
        "created_at": iso(pod.rented_at),
        "removal_scheduled_at": iso(pod.removal_at),
        "executor": {"id": pod.host.id, "machine_name": pod.host.plan.gpu},
        "volume_id": None,
    }


def ssh_command(pod: SimPod) -> str | None:
    """Where SSH listens, once the pod runs."""
    return "ssh root@127.0.0.1 -p 2222" if pod.status == "RUNNING" else None
