"""Port forwarding through a pod's SSH server, as the tunnel of the Lium plugin uses it: loopback only."""

import asyncio
import contextlib

import asyncssh
import pytest


async def echo_server():
    async def answer(reader, writer):
        writer.write(b"echo:" + await reader.readline())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


@contextlib.asynccontextmanager
async def connected(pod, key):
    options = {"known_hosts": None, "client_keys": [str(key)], "config": None, "username": "root"}
    async with asyncssh.connect("127.0.0.1", pod.ssh_port, **options) as conn:
        yield conn


async def ask(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"hello\n")
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


@pytest.mark.parametrize("asked_host", ["127.0.0.1", "", "0.0.0.0"])
def test_a_remote_forward_listens_on_loopback_only(sdk, ssh_key, asked_host):
    pod = sdk.pod()

    async def run():
        server, port = await echo_server()
        async with server, connected(pod, ssh_key) as conn:
            listener = await conn.forward_remote_port(asked_host, 0, "127.0.0.1", port)
            got = await ask(listener.get_port())
            listening = await conn.run(
                f"awk '$4 == \"0A\" && $2 ~ /:{listener.get_port():04X}$/ {{print $2}}' /proc/net/tcp"
            )
            inside = await conn.run(f"exec 3<>/dev/tcp/127.0.0.1/{listener.get_port()}; echo pod >&3; cat <&3")
            return got, str(listening.stdout), str(inside.stdout)

    got, listening, inside = asyncio.run(run())
    assert got == b"echo:hello\n" and inside == "echo:pod\n"
    assert [line.split(":")[0] for line in listening.split()] == ["0100007F"]


def test_a_local_forward_reaches_loopback_and_nothing_else(sdk, ssh_key):
    pod = sdk.pod()

    async def run():
        server, port = await echo_server()
        async with server, connected(pod, ssh_key) as conn:
            listener = await conn.forward_local_port("127.0.0.1", 0, "127.0.0.1", port)
            assert await ask(listener.get_port()) == b"echo:hello\n"
            with pytest.raises(asyncssh.ChannelOpenError):
                await conn.open_connection("192.0.2.1", 80)

    asyncio.run(run())


def test_only_the_key_of_the_rent_opens_the_pod(sdk):
    pod = sdk.pod()

    async def run():
        stranger = asyncssh.generate_private_key("ssh-ed25519")
        options = {"known_hosts": None, "client_keys": [stranger], "config": None, "username": "root"}
        with pytest.raises(asyncssh.PermissionDenied):
            await asyncssh.connect("127.0.0.1", pod.ssh_port, agent_path=None, **options)

    asyncio.run(run())
