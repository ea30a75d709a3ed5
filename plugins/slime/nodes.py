"""What slime needs to know of the network between several nodes (slime.md 1.4).

NCCL, Gloo and the tensor pipe look for an interface by themselves and may take one that the other nodes cannot reach;
slime's own scripts for several nodes name it in these variables.
"""

import fcntl
import socket
import struct

SIOCGIFADDR = 0x8915  # asm-generic/sockios.h


def multi_node_env(master_addr: str, interface: str) -> dict[str, str]:
    """Environment of a job on several nodes: `master_addr` is node 0's address among them, `interface` carries it."""
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "NVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME")
    no_proxy = ",".join(dict.fromkeys(("127.0.0.1", "localhost", master_addr)))
    return {"MASTER_ADDR": master_addr, "no_proxy": no_proxy, **dict.fromkeys(names, interface)}


def interface_of(address: str) -> str | None:
    """Name of this machine's network interface that has an IPv4 address; None when none has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(asker.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # an interface without an IPv4 address
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None
