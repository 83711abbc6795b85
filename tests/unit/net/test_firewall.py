from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wrenn_sandbox.core.errors import Invalid
from wrenn_sandbox.core.slots import DEFAULT_POOLS, slot
from wrenn_sandbox.core.spec import Egress, NetworkPolicy
from wrenn_sandbox.net.firewall import (
    CLOSED_NETWORKS,
    MAX_POLICY_ENTRIES,
    HostFacts,
    Limits,
    closed_networks,
    host_rules,
    host_rules_removal,
    parse_networks,
    policy_rules,
    sandbox_rules,
)

FACTS = HostFacts(uplinks=("eth0",), addresses=(IPv4Address("11.0.0.2"),))
SLOT = slot(7)


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()]


def chain(text: str, name: str) -> list[str]:
    """Rules of one chain of a rendered table."""
    body = text.split(f"chain {name} {{\n", 1)[1].split("\n\t}", 1)[0]
    return lines(body)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_everything_not_global_is_closed(number: int) -> None:
    address = IPv4Address(number)
    if not address.is_global or address.is_multicast:
        assert any(address in network for network in CLOSED_NETWORKS)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "8.8.8.8", "11.0.0.1", "100.63.255.255", "172.32.0.1", "223.255.255.255"]
)
def test_the_internet_is_not_closed(address: str) -> None:
    assert not any(IPv4Address(address) in network for network in CLOSED_NETWORKS)


@pytest.mark.parametrize("address", ["169.254.169.254", "100.100.100.200", "192.0.0.192", "168.63.129.16"])
def test_metadata_addresses_of_clouds_are_closed(address: str) -> None:
    assert any(IPv4Address(address) in network for network in CLOSED_NETWORKS)


def test_the_hosts_addresses_are_closed() -> None:
    assert IPv4Network("11.0.0.2/32") in closed_networks(DEFAULT_POOLS, FACTS)


def test_the_guest_is_pinned_to_its_addresses() -> None:
    guard = chain(sandbox_rules(SLOT, NetworkPolicy(), DEFAULT_POOLS, FACTS, Limits()), "guard")
    assert guard == [
        'type filter hook ingress device "tap0" priority filter; policy drop;',
        "ether saddr != 02:fc:00:00:00:05 drop",
        "arp htype 1 arp ptype ip arp saddr ether 02:fc:00:00:00:05 arp saddr ip 169.254.0.21 accept",
        "ether type ip ip saddr 169.254.0.21 accept",
    ]


def test_only_the_host_gets_in_and_only_by_the_outer_address() -> None:
    text = sandbox_rules(SLOT, NetworkPolicy(), DEFAULT_POOLS, FACTS, Limits())
    assert 'iifname "eth0" ip saddr 10.12.0.14 ip daddr 10.11.0.7 dnat ip to 169.254.0.21' in chain(text, "to_guest")
    assert 'oifname "eth0" ip saddr 169.254.0.21 snat ip to 10.12.0.15' in chain(text, "from_guest")


def test_closed_ranges_are_judged_before_the_policy_and_the_policy_before_the_limits() -> None:
    limits = Limits(new_connections_per_s=3, new_connections_burst=4, tracked_connections=5)
    outward = chain(sandbox_rules(SLOT, NetworkPolicy(), DEFAULT_POOLS, FACTS, limits), "outward")
    assert outward == [
        "ct direction reply ct state established,related accept",
        "ip daddr @closed goto refuse",
        "jump egress",
        "ct state new limit rate over 3/second burst 4 packets drop",
        "ct state new ct count over 5 drop",
        "accept",
    ]


@pytest.mark.parametrize(("metadata", "ports"), [(False, "53"), (True, "{ 53, 80 }")])
def test_the_metadata_port_is_open_only_with_the_service(metadata: bool, ports: str) -> None:
    text = sandbox_rules(SLOT, NetworkPolicy(), DEFAULT_POOLS, FACTS, Limits(), metadata=metadata)
    assert f"tcp dport {ports} accept" in chain(text, "services")


@pytest.mark.parametrize(
    ("policy", "out", "back"),
    [
        (NetworkPolicy(), None, None),
        (NetworkPolicy(allow_out=("1.2.3.4",)), None, None),
        (NetworkPolicy(Egress.CLOSED, allow_out=("1.2.3.4",)), "goto refuse", "drop"),
        (NetworkPolicy(Egress.ALLOW_LIST), "goto refuse", "drop"),
        (
            NetworkPolicy(Egress.ALLOW_LIST, allow_out=("1.2.3.0/24", "1.2.3.4")),
            "ip daddr != { 1.2.3.0/24 } goto refuse",
            "ip saddr != { 1.2.3.0/24 } drop",
        ),
        (
            NetworkPolicy(deny_out=("4.4.4.4", "5.0.0.0/8")),
            "ip daddr { 4.4.4.4/32, 5.0.0.0/8 } goto refuse",
            "ip saddr { 4.4.4.4/32, 5.0.0.0/8 } drop",
        ),
    ],
)
def test_a_policy_is_one_rule_each_way(policy: NetworkPolicy, out: str | None, back: str | None) -> None:
    expected = ["flush chain inet sandbox egress", "flush chain inet sandbox egress_replies"]
    expected += [f"add rule inet sandbox egress {out}"] if out else []
    expected += [f"add rule inet sandbox egress_replies {back}"] if back else []
    assert lines(policy_rules(policy)) == expected


@pytest.mark.parametrize(
    "entry", ["", "nonsense", "1.2.3", "1.2.3.4/33", "::1/128", "1.2.3.4; flush ruleset", "1.2.3.4\n", "example.com"]
)
def test_what_is_no_network_is_refused(entry: str) -> None:
    for policy in (NetworkPolicy(allow_out=(entry,)), NetworkPolicy(deny_out=(entry,))):
        with pytest.raises(Invalid) as caught:
            policy_rules(policy)
        assert caught.value.slug == "invalid_network_policy"


@given(st.text())
def test_no_text_reaches_the_rules_unparsed(entry: str) -> None:
    try:
        rules = policy_rules(NetworkPolicy(deny_out=(entry,)))
    except Invalid:
        return
    assert set(rules) <= set("abcdefghijklmnopqrstuvwxyz_ 0123456789./{},\n")


def test_long_lists_are_refused() -> None:
    entries = [f"1.{i // 256}.{i % 256}.1" for i in range(MAX_POLICY_ENTRIES + 1)]
    assert len(parse_networks(entries[:-1])) == MAX_POLICY_ENTRIES
    with pytest.raises(Invalid):
        parse_networks(entries)


def test_host_bits_are_dropped_and_neighbours_merged() -> None:
    assert parse_networks(["1.2.3.4/24", "1.2.2.0/24"]) == (IPv4Network("1.2.2.0/23"),)


def test_sandboxes_leave_by_the_uplinks_only() -> None:
    text = host_rules("wrenn", DEFAULT_POOLS, HostFacts(uplinks=("eth0", "wlan0")), agent_uid=0)
    assert chain(text, "from_sandbox") == [
        "meta nfproto != ipv4 drop",
        "ip saddr != 10.12.0.0/16 drop",
        "ip daddr @closed goto refuse",
        'oifname { "eth0", "wlan0" } tcp flags syn tcp option maxseg size set rt mtu',
        'oifname { "eth0", "wlan0" } accept',
        "goto refuse",
    ]
    assert chain(text, "to_sandbox")[-1] == "drop"
    assert 'oifname { "eth0", "wlan0" } ip saddr 10.12.0.0/16 masquerade' in chain(text, "masqueraded")


def test_without_an_uplink_nothing_leaves() -> None:
    text = host_rules("wrenn", DEFAULT_POOLS, HostFacts(), agent_uid=0)
    assert chain(text, "from_sandbox")[-2:] == ["ip daddr @closed goto refuse", "goto refuse"]
    assert chain(text, "to_sandbox") == ["drop"]
    assert "masquerade" not in " ".join(chain(text, "masqueraded"))


def test_strangers_are_stopped_only_where_we_made_the_host_forward() -> None:
    ours = host_rules("wrenn", DEFAULT_POOLS, HostFacts(uplinks=("eth0",), router=False), agent_uid=0)
    theirs = host_rules("wrenn", DEFAULT_POOLS, HostFacts(uplinks=("eth0",), router=True), agent_uid=0)
    rule = 'iifname { "eth0" } ct state new drop'
    assert rule in chain(ours, "forwarded")
    assert rule not in chain(theirs, "forwarded")


@pytest.mark.parametrize(("uid", "users"), [(0, "{ 0 }"), (990, "{ 0, 990 }")])
def test_only_root_and_the_agent_send_to_guests(uid: int, users: str) -> None:
    rules = chain(host_rules("wrenn", DEFAULT_POOLS, FACTS, agent_uid=uid), "from_host")
    assert f'oifname "wrenn-v*" meta skuid != {users} reject with icmpx admin-prohibited' in rules
    assert "meta skuid 1900000001-1900032767 reject with icmpx admin-prohibited" in rules


def test_the_hosts_table_is_replaced_in_one_transaction() -> None:
    assert host_rules("wrenn", DEFAULT_POOLS, FACTS, 0).startswith(host_rules_removal("wrenn"))
    assert lines(host_rules_removal("wrenn")) == ["table inet wrenn-net", "delete table inet wrenn-net"]


def test_strange_interface_names_are_refused() -> None:
    with pytest.raises(Invalid):
        host_rules("wrenn", DEFAULT_POOLS, HostFacts(uplinks=('e" accept; #',)), 0)
