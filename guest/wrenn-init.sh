#!/run/wrenn/tools/bin/busybox sh
# Process 1 until envd takes over: make the root file system a place where programs can run.
# The initramfs has mounted /proc, /sys, /dev, /run and the tools disk. Everything comes from the tools disk, so that a
# root file system with nothing in it works. Only what cannot be done without stops the boot: the rest is reported on
# the console and passed over, since a sandbox without, say, a clock daemon is still a sandbox.

T=/run/wrenn/tools
# Plain names are busybox's own applets, which this shell prefers; nothing of the root file system is ever run here.
export PATH=$T/bin

# Kept the same as core/slots.py by a test.
GUEST_IP=169.254.0.21
GATEWAY_IP=169.254.0.22
PREFIX_LENGTH=30
GATEWAY_MAC=02:fc:00:00:00:06

say() {
    echo "wrenn-init: $*"
}

# attempt WHAT COMMAND...: run it, and say so when it fails
attempt() {
    what=$1
    shift
    "$@" || say "$what failed"
}

# write FILE TEXT: as far as the root file system lets us
write() {
    { printf '%s\n' "$2" >"$1"; } 2>/dev/null || say "$1 is not writable"
}

mounts() {
    mkdir -p /dev/pts /dev/shm /tmp /run/lock /run/wrenn
    attempt /dev/pts mount -t devpts -o gid=5,mode=620,ptmxmode=666,nosuid,noexec devpts /dev/pts
    attempt /dev/shm mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs /dev/shm
    # /tmp stays on the disk: a tmpfs would take the sandbox's memory, and its snapshots' too.
    chmod 1777 /tmp /run/lock
    for link in fd:/proc/self/fd stdin:/proc/self/fd/0 stdout:/proc/self/fd/1 stderr:/proc/self/fd/2; do
        [ -e "/dev/${link%%:*}" ] || ln -s "${link#*:}" "/dev/${link%%:*}"
    done
    [ ! -e /dev/fuse ] || chmod 666 /dev/fuse
}

cgroups() {
    attempt /sys/fs/cgroup mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 /sys/fs/cgroup || return
    for controller in cpu memory io pids; do
        echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control || say "no $controller controller"
    done
}

modules() {
    release=$(uname -r)
    [ -d "$T/modules/$release" ] || return
    mkdir -p "/lib/modules/$release" && attempt modules mount --bind "$T/modules/$release" "/lib/modules/$release"
}

# An idle sandbox should sleep. Statistics and compaction wake it for nobody.
quiet() {
    echo 60 >/proc/sys/vm/stat_interval
    echo 0 >/proc/sys/vm/compaction_proactiveness
} 2>/dev/null

# Even an empty root file system has users, a name and a resolver.
identity() {
    mkdir -p /etc /root
    [ -e /etc/passwd ] || write /etc/passwd 'root:x:0:0:root:/root:/bin/sh'
    [ -e /etc/group ] || write /etc/group 'root:x:0:'
    name=$(cat /etc/hostname 2>/dev/null)
    hostname "${name:-sandbox}"
    grep -q "127.0.0.1" /etc/hosts 2>/dev/null || write /etc/hosts "127.0.0.1 localhost
127.0.1.1 ${name:-sandbox}
::1 localhost ip6-localhost ip6-loopback"
    if [ -L /etc/resolv.conf ]; then rm -f /etc/resolv.conf; fi # would point at a resolver that does not run here
    write /etc/resolv.conf "nameserver $GATEWAY_IP"
}

network() {
    attempt lo ip link set lo up
    if [ ! -e /sys/class/net/eth0 ]; then
        say "no network device"
        return
    fi
    attempt address ip address add $GUEST_IP/$PREFIX_LENGTH dev eth0
    attempt eth0 ip link set eth0 up
    attempt route ip route add default via $GATEWAY_IP
    # The gateway's address is the same on every slot, so a restored sandbox never has to ask for it.
    attempt neighbour arp -i eth0 -s $GATEWAY_IP $GATEWAY_MAC
    # Memory is short and one address is all there is: IPv6 stays off until it is supported outside.
    echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6 2>/dev/null
}

# The kernel has read the clock device once, at boot; from here chronyd keeps it, also across restores.
clock() {
    mkdir -p -m 700 /run/wrenn/chrony # chronyd refuses a wider one
    if [ -e /dev/ptp0 ]; then
        source="refclock PHC /dev/ptp0 poll 0 dpoll -2 offset 0"
    else
        source="server $GATEWAY_IP iburst minpoll -2 maxpoll 2"
    fi
    cat >/run/wrenn/chrony.conf <<EOF
$source
makestep 1.0 -1
cmdport 0
port 0
user root
pidfile /run/wrenn/chrony/chronyd.pid
bindcmdaddress /run/wrenn/chrony/chronyd.sock
EOF
    attempt chronyd $T/bin/chronyd -f /run/wrenn/chrony.conf </dev/null
}

mounts
cgroups
quiet
modules
identity
network
clock
say "ready after $(cut -d ' ' -f 1 /proc/uptime) s"
cd /
exec $T/bin/tini -- $T/bin/python -P -m wrenn_sandbox.envd --port 49983 </dev/null
