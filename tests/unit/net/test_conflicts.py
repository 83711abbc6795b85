from ipaddress import IPv4Network

import pytest

from wrenn_sandbox.core.errors import Conflict
from wrenn_sandbox.core.slots import DEFAULT_POOLS, AddressPools
from wrenn_sandbox.net.conflicts import (
    Finding,
    Severity,
    check_forward_chains,
    check_pools,
    check_privileges,
    check_tag,
    require_clear,
)
from wrenn_sandbox.net.host import HostRoute


def route(network: str, interface: str = "eth1") -> HostRoute:
    return HostRoute(IPv4Network(network), interface)


@pytest.mark.parametrize(
    ("network", "option"),
    [
        ("10.11.3.0/24", "WRENN_HOST_POOL"),
        ("10.11.0.1/32", "WRENN_HOST_POOL"),
        ("10.0.0.0/8", "WRENN_HOST_POOL"),
        ("10.12.255.0/24", "WRENN_LINK_POOL"),
    ],
)
def test_a_used_network_names_the_option_to_change(network: str, option: str) -> None:
    finding = check_pools(DEFAULT_POOLS, [route("192.168.1.0/24"), route(network)])[0]
    assert finding.slug == "address_pool_conflict"
    assert finding.severity is Severity.ERROR
    assert option in finding.message
    assert network in finding.message


def test_other_agents_slots_and_other_networks_are_no_clash() -> None:
    routes = [route("10.11.0.1/32", "wrenn-v1"), route("10.12.0.2/31", "other-v1"), route("10.13.0.0/16")]
    assert check_pools(DEFAULT_POOLS, [*routes, route("0.0.0.0/0")]) == []


def test_pools_must_not_overlap_each_other() -> None:
    pools = AddressPools(hosts=IPv4Network("10.11.0.0/16"), links=IPv4Network("10.11.128.0/17"))
    (finding,) = check_pools(pools, [])
    assert finding.slug == "address_pool_conflict"


def test_missing_capabilities_are_named() -> None:
    assert check_privileges(1 << 12 | 1 << 21) == []
    (finding,) = check_privileges(1 << 12)
    assert "CAP_SYS_ADMIN" in finding.message
    assert "CAP_NET_ADMIN" not in finding.message
    assert "CAP_NET_ADMIN and CAP_SYS_ADMIN" in check_privileges(0)[0].message


def test_tags_that_do_not_fit_are_found() -> None:
    assert check_tag("wrenn") == []
    assert check_tag("a-very-long-tag")[0].slug == "invalid_tag"


def forward(table: str, policy: str, family: str = "ip", name: str = "FORWARD") -> dict[str, object]:
    return {"chain": {"family": family, "table": table, "name": name, "hook": "forward", "policy": policy}}


def test_dockers_drop_is_a_warning_that_tells_the_command() -> None:
    user = {"chain": {"family": "ip", "table": "filter", "name": "DOCKER-USER"}}
    (finding,) = check_forward_chains([forward("filter", "drop"), user], "wrenn")
    assert finding.severity is Severity.WARNING
    assert "iptables -I DOCKER-USER -i wrenn-v+ -j ACCEPT" in finding.message
    (finding,) = check_forward_chains([forward("filter", "drop")], "wrenn")
    assert "iptables -I FORWARD -i wrenn-v+ -j ACCEPT" in finding.message


def test_our_own_and_harmless_chains_are_no_finding() -> None:
    chains = [forward("wrenn-net", "drop", "inet"), forward("filter", "accept"), forward("filter", "drop", "ip6")]
    assert check_forward_chains([*chains, {"metainfo": {}}], "wrenn") == []


def test_errors_stop_and_warnings_do_not() -> None:
    warning = Finding("forward_drop", "A warning.", Severity.WARNING)
    require_clear([warning])
    with pytest.raises(Conflict, match=r"First\. Second\.") as caught:
        require_clear([warning, Finding("a", "First.", Severity.ERROR), Finding("b", "Second.", Severity.ERROR)])
    assert caught.value.slug == "a"
