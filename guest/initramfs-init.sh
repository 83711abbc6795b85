#!/bin/busybox sh
# First program of a sandbox: make the disks appear, mount root file system and tools disk, hand over to wrenn-init.
#   /dev/vda  root file system, writable
#   /dev/vdb  tools disk, squashfs
# Nothing here may depend on what is inside the root file system.

B=/bin/busybox

die() {
    $B echo "wrenn-initramfs: $*" >/dev/console
    $B sleep 1
    $B reboot -f
}

$B mount -t proc proc /proc
$B mount -t sysfs sysfs /sys
$B mount -t devtmpfs devtmpfs /dev || die "cannot mount /dev"

while read -r module; do
    # ptp_kvm refuses to load where there is no KVM clock; a disk that does not appear is noticed below.
    $B insmod "/modules/$module" 2>/dev/null
done </modules/order

for disk in vda vdb; do
    tries=0
    while [ ! -b /dev/$disk ]; do
        [ $tries -lt 500 ] || die "disk $disk did not appear"
        tries=$((tries + 1))
        $B usleep 10000
    done
done

$B mount -t ext4 -o rw,noatime /dev/vda /newroot || die "cannot mount the root file system"
$B mkdir -p /newroot/run || die "cannot make /run: the root file system is full or read-only"
$B mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /newroot/run || die "cannot mount /run"
$B mkdir -p /newroot/run/wrenn/tools
$B mount -t squashfs -o ro,nodev /dev/vdb /newroot/run/wrenn/tools || die "cannot mount the tools disk"

for folder in proc sys dev; do
    $B mkdir -p /newroot/$folder
    $B mount --move /$folder /newroot/$folder || die "cannot move /$folder"
done
exec $B switch_root -c /dev/console /newroot /run/wrenn/tools/sbin/wrenn-init
