from ipaddress import IPv4Address
from pathlib import Path

import pytest

from wrenn_sandbox.core.slots import DEFAULT_POOLS
from wrenn_sandbox.net import host
from wrenn_sandbox.net.firewall import HostFacts
from wrenn_sandbox.net.host import HostSide

ETH0 = HostFacts(uplinks=("eth0",), addresses=(IPv4Address("11.0.0.2"),))


class Kernel:
    """The host as far as it is touched: facts to read, forwarding switches, what was transacted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, marks: Path) -> None:
        self.marks = marks
        self.facts = ETH0
        self.forwarding: dict[str, bool] = {"all": False, "eth0": False, "wlan0": False}
        self.transactions: list[str] = []
        self.links = ["lo", "eth0"]
        monkeypatch.setattr(host, "read_facts", lambda pools: self.facts)
        monkeypatch.setattr(host, "_MARKS", marks)
        monkeypatch.setattr(host, "_forwards", lambda scope: self.forwarding[scope])
        monkeypatch.setattr(host.nftables, "transact", self.transactions.append)
        monkeypatch.setattr(host.namespace, "write_sysctl", self.write)
        monkeypatch.setattr(host.socket, "if_nameindex", lambda: list(enumerate(self.links, 1)))

    def write(self, key: str, value: str) -> bool:
        self.forwarding[key.split("/")[2]] = value == "1"
        return True


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Kernel:
    return Kernel(monkeypatch, tmp_path / "marks")


@pytest.fixture
def side() -> HostSide:
    return HostSide("wrenn", DEFAULT_POOLS, 0)


def test_forwarding_is_switched_on_for_the_uplink_alone_and_back(kernel: Kernel, side: HostSide) -> None:
    side.set_up()
    assert kernel.forwarding == {"all": False, "eth0": True, "wlan0": False}
    side.tear_down()
    assert kernel.forwarding == {"all": False, "eth0": False, "wlan0": False}
    assert not kernel.marks.exists()


def test_what_a_crashed_agent_switched_on_the_next_one_turns_back(kernel: Kernel, side: HostSide) -> None:
    side.set_up()
    after_crash = HostSide("wrenn", DEFAULT_POOLS, 0)
    after_crash.set_up()
    after_crash.tear_down()
    assert not kernel.forwarding["eth0"]


def test_the_last_of_two_agents_turns_it_back(kernel: Kernel, side: HostSide) -> None:
    side.set_up()
    other = HostSide("other", DEFAULT_POOLS, 0)
    other.set_up()
    kernel.links.append("other-v1")
    side.tear_down()
    assert kernel.forwarding["eth0"]
    kernel.links.remove("other-v1")
    other.tear_down()
    assert not kernel.forwarding["eth0"]


def test_marks_of_other_namespaces_are_left_alone(kernel: Kernel, side: HostSide) -> None:
    kernel.marks.mkdir()
    (kernel.marks / "1-eth0").touch()
    kernel.forwarding["eth0"] = True
    side.set_up()
    side.tear_down()
    assert kernel.forwarding["eth0"]
    assert [mark.name for mark in kernel.marks.iterdir()] == ["1-eth0"]


def test_what_was_on_stays_on(kernel: Kernel, side: HostSide) -> None:
    kernel.forwarding["eth0"] = True
    side.set_up()
    side.tear_down()
    assert kernel.forwarding["eth0"]


@pytest.mark.parametrize("reason", ["became a router", "another agent"])
def test_what_others_rely_on_by_now_stays_on(kernel: Kernel, side: HostSide, reason: str) -> None:
    side.set_up()
    if reason == "another agent":
        kernel.links.append("other-v3")
    else:
        kernel.forwarding["all"] = True
    side.tear_down()
    assert kernel.forwarding["eth0"]


def test_rules_are_written_again_only_when_the_host_changed(kernel: Kernel, side: HostSide) -> None:
    side.set_up()
    assert not side.refresh()
    assert len(kernel.transactions) == 1
    kernel.facts = HostFacts(uplinks=("wlan0",), router=True)
    assert side.refresh()
    assert "wlan0" in kernel.transactions[1]
    assert kernel.forwarding["wlan0"]
    side.tear_down()
    assert kernel.transactions[2] == "table inet wrenn-net\ndelete table inet wrenn-net\n"
    assert not kernel.forwarding["wlan0"]


def test_forwarding_that_someone_turned_off_comes_back(kernel: Kernel, side: HostSide) -> None:
    side.set_up()
    kernel.forwarding["eth0"] = False
    assert not side.refresh()
    assert kernel.forwarding["eth0"]
