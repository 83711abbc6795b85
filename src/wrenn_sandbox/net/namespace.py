"""One slot's network namespace: made, entered and removed.

::

    host namespace                      │ namespace <tag>-ns-<i>              │ guest
    <tag>-v<i>  10.12.x.y/31 ═══ veth ══╪═ eth0 10.12.x.y+1/31                │
    route 10.11.a.b/32 via eth0         │ tap0 169.254.0.22/30 ═══ tap ═══════╪═ eth0 169.254.0.21/30

A namespace belongs to a thread, not to a process (setns(2)). All work inside one therefore happens in a thread that
is started for it and ends with it, so that no thread of the event loop or of a pool can be left in a wrong namespace.
Everything here blocks; the pool calls it from its own worker threads.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from wrenn_sandbox.core.slots import GATEWAY_IP, GATEWAY_MAC, GUEST_IP, GUEST_MAC, GUEST_PREFIX_LENGTH, TAP_NAME, Slot
from wrenn_sandbox.net.tap import open_tap

T = TypeVar("T")

#: Where ip-netns(8) keeps named namespaces.
NETNS_DIRECTORY = Path("/run/netns")
#: The veth end inside the namespace.
INNER_LINK = "eth0"

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_MS_BIND, _MS_REC, _MS_SHARED = 1 << 12, 1 << 14, 1 << 20  # linux/mount.h
_MNT_DETACH = 2
_NUD_PERMANENT = 0x80  # linux/neighbour.h
_LINK_PREFIX_LENGTH = 31  # RFC 3021
_TAP_QUEUE_LENGTH = 1000
_TAG = re.compile(r"[a-z][a-z0-9]{0,7}")
#: Host ends of any agent's slots, whatever its tag.
_SLOT_LINK = re.compile(r"[a-z][a-z0-9]{0,7}-v[0-9]{1,5}")

#: A router that believes nothing a neighbour tells it and answers ARP only for the address of the asked interface
#: (Documentation/networking/ip-sysctl.rst). A new namespace inherits the host's values, so each is written.
_SYSCTLS = (
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
    ("ipv4/ip_forward", "1"),
    ("ipv4/icmp_ratelimit", "0"),  # the rules have a limit of their own; refusals beyond one a second must be heard
    *(
        (f"ipv4/conf/{scope}/{name}", value)
        for scope in ("all", "default")
        for name, value in (
            ("rp_filter", "1"),
            ("accept_source_route", "0"),
            ("accept_redirects", "0"),
            ("secure_redirects", "0"),
            ("send_redirects", "0"),
            ("arp_ignore", "1"),
            ("arp_announce", "2"),
            ("proxy_arp", "0"),
            ("route_localnet", "0"),
        )
    ),
)
#: The same for the host end of a veth. ``forwarding`` is asked of the interface a packet comes in by.
_VETH_SYSCTLS = (
    ("ipv6/conf/{link}/disable_ipv6", "1"),
    ("ipv4/conf/{link}/forwarding", "1"),
    ("ipv4/conf/{link}/rp_filter", "1"),
    ("ipv4/conf/{link}/accept_redirects", "0"),
    ("ipv4/conf/{link}/send_redirects", "0"),
    ("ipv4/conf/{link}/route_localnet", "0"),
    ("ipv4/conf/{link}/arp_ignore", "1"),
)

_libc = ctypes.CDLL(None, use_errno=True)


class SlotTaken(Exception):
    """Another agent of this machine owns the slot's name or addresses; take another number."""


def valid_tag(tag: str) -> bool:
    """Whether ``tag`` keeps link names within IFNAMSIZ and cannot be a prefix of another agent's names."""
    return _TAG.fullmatch(tag) is not None


def is_slot_link(name: str) -> bool:
    """Whether ``name`` is the host end of some agent's slot."""
    return _SLOT_LINK.fullmatch(name) is not None


def prepare_directory() -> None:
    """Make /run/netns a shared mount of its own, exactly as ip-netns(8) does on its first ``add``.

    Without it a later ``ip netns add`` would cover our mounts with copies that we could not remove. It stays when the
    agent ends, since others may use it by then.
    """
    NETNS_DIRECTORY.mkdir(mode=0o755, exist_ok=True)
    path = os.fsencode(NETNS_DIRECTORY)
    if _libc.mount(b"none", path, b"none", _MS_SHARED | _MS_REC, None) == 0:
        return
    if ctypes.get_errno() != errno.EINVAL:  # EINVAL: not a mount point yet
        _raise("mount", NETNS_DIRECTORY)
    if _libc.mount(path, path, b"none", _MS_BIND | _MS_REC, None) != 0:
        _raise("mount", NETNS_DIRECTORY)
    if _libc.mount(b"none", path, b"none", _MS_SHARED | _MS_REC, None) != 0:
        _raise("mount", NETNS_DIRECTORY)


def create(slot: Slot) -> int:
    """Make the namespace of ``slot`` with its tap, cut off from the host; returns the tap's descriptor, the caller's.

    Raises SlotTaken, OSError or NetlinkError, and then leaves nothing.
    """
    path = NETNS_DIRECTORY / slot.netns
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    except FileExistsError:
        raise SlotTaken(slot.netns) from None
    try:
        return run_in_thread(lambda: _create_in_this_thread(path))
    except BaseException:
        remove_name(slot.netns)
        raise


def connect(slot: Slot) -> None:
    """Join the namespace of ``slot`` to the host by a veth pair and a route; call it when the firewall is in force.

    Raises SlotTaken, OSError or NetlinkError, and then leaves no link.
    """
    host = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        run_inside(slot.netns, lambda: _make_link(slot, host))
    finally:
        os.close(host)
    try:
        _set_up_host_end(slot)
    except BaseException:
        remove_link(slot.veth)
        raise


def is_whole(slot: Slot) -> bool:
    """Whether the namespace of ``slot`` is there, with its tap, and its link to the host."""
    try:
        run_inside(slot.netns, lambda: socket.if_nametoindex(TAP_NAME))
        socket.if_nametoindex(slot.veth)
    except OSError:
        return False
    return True


def remove_link(name: str) -> None:
    """Delete a link and with it its peer, addresses and routes; returns when the name is free."""
    try:
        index = socket.if_nametoindex(name)
    except OSError:
        return
    with IPRoute() as netlink:
        try:
            netlink.link("del", index=index)
        except NetlinkError as error:
            if error.code != errno.ENODEV:
                raise


def remove_name(name: str) -> None:
    """Unbind and unlink a named namespace; it dies with its last descriptor."""
    path = NETNS_DIRECTORY / name
    if _libc.umount2(os.fsencode(path), _MNT_DETACH) != 0 and ctypes.get_errno() not in (errno.EINVAL, errno.ENOENT):
        _raise("umount2", path)
    path.unlink(missing_ok=True)


def run_inside(name: str, work: Callable[[], T]) -> T:
    """Run ``work`` in the named namespace and return what it returns."""

    def enter() -> T:
        fd = os.open(NETNS_DIRECTORY / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc.setns(fd, _CLONE_NEWNET) != 0:
                _raise("setns", NETNS_DIRECTORY / name)
        finally:
            os.close(fd)
        return work()

    return run_in_thread(enter)


def run_in_thread(work: Callable[[], T]) -> T:
    """Run ``work`` in a thread of its own that ends before this returns."""
    box: _Box[T] = _Box(work)
    thread = threading.Thread(target=box.run, name="netns")
    thread.start()
    thread.join()
    return box.get()


def names(tag: str) -> list[str]:
    """Named namespaces of all slots of ``tag``, dead or alive."""
    prefix = re.compile(re.escape(tag) + r"-ns-[0-9]+")
    if not NETNS_DIRECTORY.is_dir():
        return []
    return sorted(entry.name for entry in NETNS_DIRECTORY.iterdir() if prefix.fullmatch(entry.name))


def links(tag: str) -> list[str]:
    """Host ends of all slots of ``tag``."""
    prefix = re.compile(re.escape(tag) + r"-v[0-9]+")
    return sorted(name for _, name in socket.if_nameindex() if prefix.fullmatch(name))


def write_sysctl(key: str, value: str) -> bool:
    """Write ``/proc/sys/net/<key>`` of the calling thread's namespace; False when this kernel has no such key."""
    try:
        (Path("/proc/sys/net") / key).write_text(value)
    except FileNotFoundError:
        return False
    return True


def _create_in_this_thread(path: Path) -> int:
    if _libc.unshare(_CLONE_NEWNET) != 0:
        _raise("unshare", path)
    if _libc.mount(b"/proc/thread-self/ns/net", os.fsencode(path), b"none", _MS_BIND, None) != 0:
        _raise("mount", path)
    for key, value in _SYSCTLS:
        write_sysctl(key, value)
    tap_fd = open_tap(TAP_NAME)
    try:
        _set_up_tap()
    except BaseException:
        os.close(tap_fd)
        raise
    return tap_fd


def _set_up_tap() -> None:
    index = socket.if_nametoindex(TAP_NAME)
    with IPRoute() as netlink:
        netlink.link("set", index=socket.if_nametoindex("lo"), state="up")
        netlink.link("set", index=index, address=GATEWAY_MAC, txqlen=_TAP_QUEUE_LENGTH, state="up")
        netlink.addr("add", index=index, address=GATEWAY_IP, prefixlen=GUEST_PREFIX_LENGTH)
        # Known for ever: the first packet to a guest just restored needs no ARP, and no guest's ARP can change it.
        netlink.neigh("add", ifindex=index, dst=GUEST_IP, lladdr=GUEST_MAC, state=_NUD_PERMANENT)


def _make_link(slot: Slot, host: int) -> None:
    with IPRoute() as netlink:
        with _taken(slot.veth):
            netlink.link("add", ifname=INNER_LINK, kind="veth", peer={"ifname": slot.veth, "net_ns_fd": host})
        index = socket.if_nametoindex(INNER_LINK)
        try:
            netlink.addr("add", index=index, address=slot.peer_ip, prefixlen=_LINK_PREFIX_LENGTH)
            netlink.link("set", index=index, state="up")
            netlink.route("add", dst="default", gateway=slot.veth_ip, oif=index)
        except BaseException:
            netlink.link("del", index=index)
            raise


def _set_up_host_end(slot: Slot) -> None:
    for key, value in _VETH_SYSCTLS:
        write_sysctl(key.format(link=slot.veth), value)
    index = socket.if_nametoindex(slot.veth)
    with IPRoute() as netlink:
        netlink.addr("add", index=index, address=slot.veth_ip, prefixlen=_LINK_PREFIX_LENGTH)
        netlink.link("set", index=index, state="up")
        with _taken(slot.host_ip):  # the route is what two agents with one address pool compete for
            netlink.route("add", dst=f"{slot.host_ip}/32", gateway=slot.peer_ip, oif=index)


@contextmanager
def _taken(what: str) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code == errno.EEXIST:
            raise SlotTaken(what) from None
        raise


def _raise(call: str, path: Path) -> None:
    number = ctypes.get_errno()
    raise OSError(number, f"{call}: {os.strerror(number)}", str(path))


class _Box(Generic[T]):
    """What a thread returned or raised."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._result: list[T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._result.append(self._work())
        except BaseException as error:
            self._error = error

    def get(self) -> T:
        if self._error is not None:
            raise self._error
        return self._result[0]
