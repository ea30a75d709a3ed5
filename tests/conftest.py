"""Options of the conformance suite, and the refusal to spend money by accident.

They stand here because pytest reads options from a conftest of the first folder it is given. The suite itself is in
`tests/plugins/lium/emulator/conformance`; every other test ignores them.
"""

import ipaddress
from urllib.parse import urlsplit

import pytest


def pytest_addoption(parser):
    group = parser.getgroup("lium", "conformance of the Lium emulator and the real service")
    url = "the API to run the conformance suite against, e.g. https://lium.io/api (default: an emulator of its own)"
    group.addoption("--base-url", metavar="URL", help=url)
    pay = "allow a --base-url that is not on this machine: the suite rents real pods and spends money of LIUM_API_KEY"
    group.addoption("--i-will-pay", action="store_true", help=pay)
    most = "pods that the conformance suite may rent in all (default 2), one GPU and one hour each at the most"
    group.addoption("--pods-at-most", type=int, default=2, metavar="N", help=most)


def pytest_configure(config):
    url = config.getoption("--base-url")
    if url is None:
        return
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise pytest.UsageError(f"--base-url {url}: not an http(s) address; it is like https://lium.io/api")
    if not _is_loopback(parts.hostname) and not config.getoption("--i-will-pay"):
        raise pytest.UsageError(
            f"--base-url {url} is not on this machine: the conformance suite would rent pods there and spend money. "
            "Give --i-will-pay as well if that is what you want. Nothing was called."
        )


def _is_loopback(host):
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
