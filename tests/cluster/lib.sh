# shellcheck shell=bash
# What the scripts of this folder share. README.md tells how they are used.
#
#   settings                  environment variables, and what follows from them
#   say, die, wait_for        words and waiting
#   why_not, install_tools    what a machine needs
#   on_node, kubectl          a command inside the node's namespaces, or on its cluster
#   start, stop, running      one component: a process on the node, named by a pid file
#   make_image, import_image  images for the node
#
# shellcheck disable=SC2034 # most of what is set here is for those who read this file
#
# The node is process 1 of a pid namespace (`holder`); its mounts, network, processes and cgroups are its own and end
# with it. Nothing of the machine's own is changed: not an address, not a rule, not a sysctl.

set -euo pipefail

readonly HERE=${BASH_SOURCE[0]%/*}
OUR_CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/nodestub
CLUSTER_DIR=${NODESTUB_CLUSTER_DIR:-$OUR_CACHE/cluster}
KUBE_BIN=${NODESTUB_KUBE_BIN:-$OUR_CACHE/kube}
readonly CLUSTER_DIR KUBE_BIN
readonly RUN=$CLUSTER_DIR/run LOGS=$CLUSTER_DIR/logs CONF=$CLUSTER_DIR/conf PKI=$CLUSTER_DIR/pki

# The cluster's addresses: kubeadm's defaults where it has any. Nobody outside the namespaces sees them. A cluster that is
# not ours (`here`) has others.
readonly NODE_NAME=node1 NODE_ADDRESS=10.209.0.2 POD_CIDR=10.244.0.0/16 NODE_POD_CIDR=10.244.0.0/24 \
    SERVICE_CIDR=10.96.0.0/16 OUTSIDE_DNS=198.51.100.53
readonly KUBERNETES_SERVICE=${FOREIGN_KUBERNETES_SERVICE:-10.96.0.1} CLUSTER_DNS=${FOREIGN_DNS:-10.96.0.10} \
    CLUSTER_DOMAIN=${FOREIGN_DOMAIN:-cluster.local}
# Where images of tests are: what stands before `/asker:1`. Our own node has them by these names.
IMAGES=nodestub.test
[[ -z ${FOREIGN:-} ]] || IMAGES=${NODESTUB_IMAGES:-}
readonly IMAGES
readonly SERVER=https://$NODE_ADDRESS:6443
readonly CONTAINERD_SOCKET=/run/containerd/containerd.sock
CNI_BIN=${CNI_BIN:-/usr/lib/cni}
readonly CNI_BIN

# A user of Debian has no sbin in the path.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

# The programs that are called, and the Debian package of each.
readonly CLUSTER_TOOLS=(
    containerd:containerd
    runc:runc
    "$CNI_BIN/bridge:containernetworking-plugins"
    "$CNI_BIN/portmap:containernetworking-plugins"
    conntrack:conntrack
    cc:gcc
    curl:curl
    dig:dnsutils
    ip:iproute2
    iptables:iptables
    jq:jq
    nft:nftables
    nsenter:util-linux
    openssl:openssl
    setcap:libcap2-bin
)
readonly BUSYBOX=/bin/busybox

say() {
    printf 'cluster: %s\n' "$*" >&2
}

die() {
    say "$*"
    exit 1
}

# wait_for SECONDS WHAT COMMAND...: until the command succeeds; after SECONDS its last output is shown and we fail.
wait_for() {
    local end=$((SECONDS + $1)) what=$2 output
    shift 2
    until output=$("$@" 2>&1); do
        if ((SECONDS >= end)); then
            say "gave up waiting for $what${output:+: ${output: -600}}"
            return 1
        fi
        sleep 0.2
    done
}

# Prints why no cluster can run on this machine; nothing when one can.
why_not() {
    if ((EUID != 0)); then
        echo "a node needs root"
        return
    fi
    if ! awk '$3 == "cgroup" && $4 ~ /memory/ || $3 == "cgroup2" { found = 1 } END { exit !found }' /proc/mounts; then
        echo "this machine has no cgroups mounted"
        return
    fi
    if ! unshare --mount --net --pid --cgroup --fork true 2> /dev/null; then
        echo "this machine makes no namespaces"
        return
    fi
    if [[ ! -x $KUBE_BIN/kubelet ]] && ! command -v go > /dev/null; then
        echo "Go is missing, which builds Kubernetes: see https://go.dev/dl"
        return
    fi
    if ! command -v apt-get > /dev/null && [[ -n $(missing_packages) ]]; then
        echo "missing: $(missing_packages | tr '\n' ' ')"
    fi
}

# The packages that are not installed.
missing_packages() {
    local tool
    for tool in "${CLUSTER_TOOLS[@]}"; do
        command -v "${tool%%:*}" > /dev/null || echo "${tool##*:}"
    done | sort -u
    # Of no use in an image unless it is static.
    if [[ ! -x $BUSYBOX ]] || ldd "$BUSYBOX" > /dev/null 2>&1; then
        echo busybox-static
    fi
}

# Installs by apt what is missing. The container runtime is wanted as a program, not as a service of this machine.
install_tools() {
    local missing policy=/usr/sbin/policy-rc.d
    missing=$(missing_packages)
    [[ -n $missing ]] || return 0
    if ((EUID != 0)) || ! command -v apt-get > /dev/null; then
        die "missing: ${missing//$'\n'/ }"
    fi
    say "installing ${missing//$'\n'/ }"
    (
        if [[ ! -e $policy ]]; then
            trap 'rm -f "$policy"' EXIT
            printf '#!/bin/sh\nexit 101\n' > "$policy"
            chmod +x "$policy"
        fi
        apt-get update -qq
        # shellcheck disable=SC2086 # a list
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing > /dev/null
    ) || die "apt-get could not install: ${missing//$'\n'/ }"
}

# is_asset NAME: whether KUBEBUILDER_ASSETS has it.
is_asset() {
    case $1 in
        etcd | kube-apiserver | kubectl) [[ -n ${KUBEBUILDER_ASSETS:-} && -x $KUBEBUILDER_ASSETS/$1 ]] ;;
        *) false ;;
    esac
}

# program NAME: the path of a component.
program() {
    if is_asset "$1"; then
        echo "$KUBEBUILDER_ASSETS/$1"
    else
        echo "$KUBE_BIN/$1"
    fi
}

# pinned_version MODULE: as modules/*/go.mod says.
pinned_version() {
    awk -v module="$1" '{ sub(/^require /, "") } $1 == module { print $2; exit }' "$HERE"/modules/*/go.mod
}

# The start time of a process: with it a number that is used again is told from the process that had it first.
started_at() {
    local stat fields
    stat=$(cat "/proc/$1/stat" 2> /dev/null) || return 1
    read -r -a fields <<< "${stat##*) }"
    # A zombie is gone.
    [[ ${fields[0]} != Z ]] || return 1
    echo "${fields[19]}"
}

# Prints the number of the process that holds the node from outside; fails when there is no node.
holder() {
    local pid start
    [[ -s $RUN/holder ]] || return 1
    read -r pid start < "$RUN/holder"
    [[ $(started_at "$pid") == "$start" ]] || return 1
    echo "$pid"
}

# Prints the number of the node's process 1, as this machine sees it.
process_1() {
    local pid first
    pid=$(holder) || return 1
    # One line, without an end.
    read -r first _ < "/proc/$pid/task/$pid/children" || [[ -n $first ]] || return 1
    echo "$first"
}

# on_node COMMAND...: inside the node's namespaces, where the folders of this machine are seen as well.
on_node() {
    local pid
    [[ -z ${FOREIGN:-} ]] || die "a test went to the node of a cluster that is not ours: cases/own-cluster-only has to name it"
    pid=$(process_1) || die "no cluster is up (tests/cluster/up)"
    nsenter --target "$pid" --mount --net --pid --cgroup -- "$@"
}

# With FOREIGN, the kubeconfig of a cluster that is not ours, on that.
kubectl() {
    if [[ -n ${FOREIGN:-} ]]; then
        "${FOREIGN_KUBECTL:-kubectl}" --kubeconfig "$FOREIGN" "$@"
        return
    fi
    on_node "$(program kubectl)" --kubeconfig "$CLUSTER_DIR/admin.kubeconfig" "$@"
}

# running NAME: whether that component's process lives.
running() {
    # shellcheck disable=SC2016 # expanded by the inner shell
    [[ -s $RUN/$1.pid ]] && on_node bash -c "$(declare -f started_at)"'
        read -r pid start < "$1"
        [[ $(started_at "$pid") == "$start" ]]' _ "$RUN/$1.pid"
}

# start NAME COMMAND...: a component, unless it runs; its output goes to $LOGS/NAME.log.
start() {
    local name=$1 folder
    shift
    ! running "$name" || return 0
    [[ -x $1 ]] || die "there is no program $1"
    # Entering a cgroup namespace changes what is seen, not where one is: so the process moves before. Its number goes to
    # the file before the program runs.
    # shellcheck disable=SC2016 # expanded by the inner shell
    (
        while read -r _ folder; do
            [[ ! -d $folder/node ]] || folder+=/node
            echo "$BASHPID" > "$folder/cgroup.procs"
        done < "$RUN/cgroups"
        on_node setsid --fork bash -c "$(declare -f started_at)"'
            exec >> "$1" 2>&1 < /dev/null
            echo "$$ $(started_at $$)" > "$2.new" && mv "$2.new" "$2"
            cd /
            shift 2
            exec "$@"' _ "$LOGS/$name.log" "$RUN/$name.pid" "$@"
    )
    wait_for 10 "$name to start" running "$name"
}

# stop NAME [SECONDS]: asks the component to end, and ends it after SECONDS.
stop() {
    if running "$1"; then
        # shellcheck disable=SC2016 # expanded by the inner shell
        on_node bash -c "$(declare -f started_at)"'
            read -r pid start < "$1"
            kill -TERM "$pid"
            for ((tenths = $2 * 10; tenths > 0; tenths--)); do
                [[ $(started_at "$pid") == "$start" ]] || exit 0
                sleep 0.1
            done
            kill -KILL "$pid"
            while [[ $(started_at "$pid") == "$start" ]]; do sleep 0.1; done' _ "$RUN/$1.pid" "${2:-10}"
    fi
    rm -f "$RUN/$1.pid"
}

# How containerd keeps files: overlays, except on one, where copies are kept.
snapshotter() {
    if [[ -n ${NODESTUB_SNAPSHOTTER:-} ]]; then
        echo "$NODESTUB_SNAPSHOTTER"
    elif [[ $(stat --file-system --format %T "$CLUSTER_DIR") == overlayfs ]]; then
        echo native
    else
        echo overlayfs
    fi
}

# make_image NAME OPTION...: makes an image (see `image`) and gives it to the node. Needs a node.
make_image() {
    local tar
    tar=$CLUSTER_DIR/image.$BASHPID.tar
    "$HERE/image" --output "$tar" --name "$@"
    import_image "$tar"
    rm -f "$tar"
}

# The folder of our programs, in the profile that is asked for.
our_programs() {
    local profile=${NODESTUB_PROFILE:-quick}
    # Cargo keeps what profile `dev` makes in `debug`.
    realpath --canonicalize-missing "${CARGO_TARGET_DIR:-$HERE/../../target}/${profile/#dev/debug}"
}

# asker_image NAME OPTION...: the image that tests ask from: a shell, and two who ask, glibc's own resolver and dig.
asker_image() {
    local applet links=()
    while read -r applet; do
        [[ $applet == busybox ]] || links+=(--link "busybox:/bin/$applet")
    done < <("$BUSYBOX" --list | grep -vx getent)
    "$HERE/image" --name "$@" --program "$BUSYBOX:/bin/busybox" "${links[@]}" --dir /tmp:1777 \
        --program "$(command -v getent):/bin/getent" --program "$(command -v dig):/bin/dig" \
        --text "/etc/nsswitch.conf:hosts: files dns" --text /etc/passwd:root:x:0:0:root:/:/bin/sh --cmd '["/bin/sh"]'
}

import_image() {
    on_node ctr --address "$CONTAINERD_SOCKET" --namespace k8s.io images import --digests=false \
        --snapshotter "$(snapshotter)" "$1" > /dev/null
}
