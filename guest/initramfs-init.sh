#!/bin/busybox sh
# First program of a sandbox: make the disks appear, mount root file system and tools disk, hand over to wrenn-init.
#   /dev/vda  root file system, writable
#   /dev/vdb  tools disk, squashfs
# Nothing here may depend on what is inside the root file system.
# Plain names are busybox's own applets: its shell prefers them, and starts them through /proc/self/exe.

die() {
    echo "wrenn-initramfs: $*" >/dev/console
    exec /bin/busybox reboot -f # the VMM ends
}

/bin/busybox mount -t proc proc /proc || die "cannot mount /proc"
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev || die "cannot mount /dev"

while read -r module; do
    # ptp_kvm refuses to load where there is no KVM clock; a disk that does not appear is noticed below.
    insmod "/modules/$module" 2>/dev/null
done </modules/order

for disk in vda vdb; do
    tries=0
    while [ ! -b /dev/$disk ]; do
        [ $tries -lt 500 ] || die "disk $disk did not appear"
        tries=$((tries + 1))
        usleep 10000
    done
done

mount -t ext4 -o rw,noatime /dev/vda /newroot || die "cannot mount the root file system"
mkdir -p /newroot/run || die "cannot make /run: the root file system is full or read-only"
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /newroot/run || die "cannot mount /run"
mkdir -p /newroot/run/wrenn/tools
mount -t squashfs -o ro,nodev /dev/vdb /newroot/run/wrenn/tools || die "cannot mount the tools disk"

for folder in sys dev proc; do # proc last: applets start through it
    mkdir -p /newroot/$folder
    mount --move /$folder /newroot/$folder || die "cannot move /$folder"
done
exec /bin/busybox switch_root -c /dev/console /newroot /run/wrenn/tools/sbin/wrenn-init
