"""Which addresses a caller may make us talk to."""

import ipaddress

import pytest

from api.addresses import is_public

PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "93.184.216.34",
    "172.15.0.1",
    "172.32.0.1",
    "100.63.255.255",
    "2606:4700::1111",
]

NOT_PUBLIC = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.7",
    "203.0.113.9",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::808:808",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:2::1",
    "2001:10::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:808:808::",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_unicast_may_be_reached(address: str) -> None:
    """Neighbours of forbidden ranges included: an off-by-one would break real hosts."""
    assert is_public(address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_everything_else_may_not(address: str) -> None:
    """Loopback, private, metadata, and IPv4 in IPv6's clothing."""
    assert not is_public(address)


@pytest.mark.parametrize(
    "text", ["", "localhost", "2130706433", "0x7f.1", "127.1", "0177.0.0.1", "1.2.3.4.5"]
)
def test_what_is_no_address_is_not_public(text: str) -> None:
    """Only a resolver's answers are ever asked about; anything else is a mistake."""
    assert not is_public(text)


def test_the_standard_librarys_own_test_would_not_do() -> None:
    """Why there is a table: these are not private to ``ipaddress``, and reach inside."""
    passes = [a for a in NOT_PUBLIC if not ipaddress.ip_address(a).is_private]
    assert {"100.64.0.1", "168.63.129.16", "::127.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1"} <= set(passes)
