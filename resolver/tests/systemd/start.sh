#!/bin/bash
# A real systemd as process 1 of namespaces of its own, with our unit and nothing else to do.
#
#   start.sh CGROUP PROGRAM UNIT      in the network namespace of the test
#
# What it would write to is a copy or empty: /etc, /run, /tmp, /usr/local/bin; the kernel's settings are read-only.
set -euo pipefail
cgroup=$1 program=$2 unit=$3

if [[ ${4:-} != inside ]]; then
    for folder in /sys/fs/cgroup /sys/fs/cgroup/*/; do
        [[ -e $folder/cgroup.procs ]] || continue
        mkdir -p "$folder/$cgroup"
        for file in cpuset.cpus cpuset.mems; do
            # Version 1 lets nobody into a group that has none.
            [[ ! -e $folder/$file || -n $(cat "$folder/$cgroup/$file") ]] || cat "$folder/$file" > "$folder/$cgroup/$file"
        done
        echo $BASHPID > "$folder/$cgroup/cgroup.procs"
        # Version 2 is one tree.
        [[ $folder != /sys/fs/cgroup ]] || break
    done
    # Should the test be killed, this ends by itself.
    exec timeout --signal=KILL 300 unshare --mount --pid --uts --ipc --fork --kill-child \
        bash "$0" "$cgroup" "$program" "$unit" inside
fi

mount --make-rprivate /
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount -o remount,bind,ro /sys
mount --bind /dev/null /dev/console
mount -t tmpfs tmpfs /mnt
cp -a /etc /mnt/etc
cp "$program" /mnt/program
rm -rf /mnt/etc/systemd/system
mkdir -p /mnt/etc/systemd/system /mnt/etc/nodestub
cp "$unit" /mnt/etc/systemd/system/
mount --bind /mnt/etc /etc
for folder in /run /tmp /var/tmp /usr/local/bin; do mount -t tmpfs -o mode=1777 tmpfs "$folder"; done
install -m 755 /mnt/program /usr/local/bin/nodestub-resolver

echo 'NODESTUB_FLAGS=-localip 169.254.20.10 --fallback 10.96.0.10' > /etc/nodestub/resolver.env
cat > /etc/nodestub/Corefile << END
.:53 {
    bind 127.0.0.1 169.254.20.10
    cache 3600
    forward . 127.0.0.1:5300
}
END
# There is no journal here.
mkdir '/etc/systemd/system/nodestub-resolver@.service.d'
printf '[Service]\nStandardError=append:/run/%%i.log\n' > '/etc/systemd/system/nodestub-resolver@.service.d/log.conf'
printf '[Unit]\nDescription=Nothing else\n' > /etc/systemd/system/nothing-else.target
exec env -i PATH="$PATH" container=other /lib/systemd/systemd --system --unit=nothing-else.target --log-target=null
