from ipaddress import IPv4Network

from wrenn_sandbox.core.slots import DEFAULT_POOLS, FIRST_SLOT, LAST_SLOT, AddressPools, slot
from wrenn_sandbox.net.slotnumbers import SlotNumbers, last_number


def test_numbers_go_round_and_skip_what_is_taken() -> None:
    numbers = SlotNumbers(last=4)
    assert [numbers.take() for _ in range(3)] == [1, 2, 3]
    numbers.give_back(1)
    assert numbers.take() == 4, "a number given back rests"
    assert numbers.take() == 1
    assert numbers.take() is None
    numbers.give_back(3)
    assert numbers.take() == 3


def test_a_start_in_the_middle_reaches_all() -> None:
    numbers = SlotNumbers(last=5, first=4)
    assert [numbers.take() for _ in range(6)] == [4, 5, 1, 2, 3, None]


def test_giving_back_twice_is_no_error() -> None:
    numbers = SlotNumbers(last=1)
    assert numbers.take() == FIRST_SLOT
    numbers.give_back(1)
    numbers.give_back(1)
    assert numbers.take() == 1
    assert numbers.take() is None


def test_the_last_number_lies_in_both_pools() -> None:
    assert last_number(DEFAULT_POOLS) == LAST_SLOT
    pools = AddressPools(hosts=IPv4Network("10.61.0.0/24"), links=IPv4Network("10.62.0.0/26"))
    assert last_number(pools) == 31
    assert slot(31, pools).peer_ip == "10.62.0.63"
    assert last_number(AddressPools(hosts=IPv4Network("10.61.0.0/28"), links=pools.links)) == 14


def test_a_number_can_be_claimed_once() -> None:
    numbers = SlotNumbers(last=3)
    assert numbers.claim(2)
    assert not numbers.claim(2)
    assert not numbers.claim(0)
    assert not numbers.claim(4)
    assert [numbers.take(), numbers.take(), numbers.take()] == [1, 3, None]
    numbers.give_back(2)
    assert numbers.claim(2)


def test_ours_are_those_that_can_be_handed_out() -> None:
    numbers = SlotNumbers(3)
    assert [number for number in range(6) if numbers.has(number)] == [1, 2, 3]
