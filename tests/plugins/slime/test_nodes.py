"""The network between nodes: which interface has an address, and the variables that slime's own scripts set."""

from plugins.slime.nodes import interface_of, multi_node_env


def test_the_interface_of_an_address_is_found_and_of_another_s_is_not() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None


def test_the_variables_name_address_and_interface_and_keep_the_address_off_proxies() -> None:
    env = multi_node_env("10.42.0.1", "wg0")
    assert env["MASTER_ADDR"] == "10.42.0.1" and "10.42.0.1" in env["no_proxy"].split(",")
    names = {"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "NVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME"}
    assert {env[name] for name in names} == {"wg0"} and set(env) == {*names, "MASTER_ADDR", "no_proxy"}
