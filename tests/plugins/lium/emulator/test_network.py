"""A pod without its network: connections are cut, new ones refused or left hanging, and the processes live on."""

import asyncio
import socket

import asyncssh
import pytest

pytestmark = pytest.mark.filterwarnings("ignore:Pinning:UserWarning")


async def connect_to(pod, key, **more):
    options = {"known_hosts": None, "client_keys": [str(key)], "config": None, "username": "root"} | more
    return await asyncssh.connect("127.0.0.1", pod.ssh_port, **options)


def test_open_connections_are_cut_and_processes_live_on(sdk, emulator, ssh_key, wait_until):
    pod = sdk.pod()
    sdk.out(pod, "(setsid nohup sh -c 'while :; do date +%s%N > $HOME/alive; sleep 0.05; done' >/dev/null 2>&1 &)")

    async def run():
        conn = await connect_to(pod, ssh_key)
        asking = asyncio.create_task(conn.run("sleep 100"))
        listener = await conn.forward_remote_port("127.0.0.1", 0, "127.0.0.1", 1)
        await asyncio.to_thread(emulator.network, pod.id, up=False)
        await asyncio.wait_for(conn.wait_closed(), 10)
        assert (await asyncio.wait_for(asking, 10)).exit_status is None
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", listener.get_port()), 10)
        with pytest.raises(ConnectionRefusedError):
            await connect_to(pod, ssh_key, login_timeout=5)

    asyncio.run(run())
    assert sdk.call("GET", f"/pods/{pod.id}").json()["status"] == "RUNNING"
    emulator.network(pod.id, up=True)
    sdk.lium.close()
    before = sdk.out(pod, "cat $HOME/alive")  # over the pinned host key, which is the same
    wait_until(lambda: sdk.out(pod, "cat $HOME/alive") > before, "the process in the pod goes on")


def test_new_connections_can_hang_instead(sdk, emulator, ssh_key):
    pod = sdk.pod()
    emulator.network(pod.id, up=False, how="hang")
    with socket.create_connection(("127.0.0.1", pod.ssh_port), 5) as conn:
        conn.settimeout(1)
        with pytest.raises(TimeoutError):
            conn.recv(1)
    with pytest.raises((asyncssh.Error, TimeoutError, OSError)):
        asyncio.run(connect_to(pod, ssh_key, login_timeout=1))
    emulator.network(pod.id, up=True)
    assert sdk.out(pod, "echo back") == "back"


def test_a_reboot_does_not_bring_the_network_back(sdk, emulator, ssh_key, wait_until):
    pod = sdk.pod()
    emulator.network(pod.id, up=False)
    sdk.lium.reboot(pod)
    wait_until(lambda: sdk.call("GET", f"/pods/{pod.id}").json()["status"] == "RUNNING", "it runs again")
    port = int(sdk.call("GET", f"/pods/{pod.id}").json()["ports_mapping"]["22"])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)
    emulator.network(pod.id, up=True)
    assert sdk.out(sdk.ready(pod.id), "echo back") == "back"


def test_a_pod_without_network_is_still_removed_whole(sdk, emulator, processes_with):
    pod = sdk.pod()
    sdk.out(pod, "(setsid nohup sh -c 'sleep 1000 # cut-off-and-removed' >/dev/null 2>&1 &)")
    emulator.network(pod.id, up=False, how="hang")
    sdk.lium.down(pod)
    assert sdk.lium.ps() == [] and processes_with("cut-off-and-removed") == []


def test_another_word_is_refused(sdk, emulator):
    pod = sdk.pod()
    for wrong in ({"up": "no"}, {}, {"up": False, "how": "softly"}):
        answer = sdk.call("POST", f"/../_emulator/pods/{pod.id}/network", json=wrong)
        assert answer.status_code == 400, wrong
    assert sdk.out(pod, "echo there") == "there"
