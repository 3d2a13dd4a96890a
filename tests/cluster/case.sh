# shellcheck shell=bash
# Runs one test, with what tests are written in.
#
#   bash tests/cluster/case.sh FILE NAME      sources FILE and calls test_NAME
#
# Set for a test: $namespace (of its own, made and removed), $PROXY_MODE, $OUR_PROGRAMS (the folder of our binaries) and
# $CLIENT_PROGRAMS (the same with the Kubernetes client, for cases/install*.sh).
# What a test starts on the node and what our resolver sets up there is taken away after it. On a cluster that is not ours
# ($FOREIGN) there is no node to go into, and each namespace has a label by which `here` finds it again.

# shellcheck disable=SC2034 # constants are for the tests

# shellcheck source=tests/cluster/lib.sh
source "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/lib.sh"

readonly LOCAL_ADDRESS=169.254.20.10
readonly KUBERNETES_NAME=kubernetes.default.svc.$CLUSTER_DOMAIN
# Beyond this, whatever it is will not happen: a busy machine starts a pod in some seconds.
readonly PATIENCE=90

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

# figure WORD...: a line that is shown when the test passes, too.
figure() {
    echo "figure: $*"
}

# expect_equal WHAT ACTUAL EXPECTED
expect_equal() {
    [[ $2 == "$3" ]] || fail "$1 is ${2@Q}, not ${3@Q}"
}

# k COMMAND...: kubectl in the test's namespace.
k() {
    kubectl --namespace "$namespace" "$@"
}

# new_namespace NAME [LABEL=VALUE...]
new_namespace() {
    kubectl create namespace "$1" > /dev/null
    namespaces+=("$1")
    [[ -z ${FOREIGN:-} ]] || kubectl label namespace "$1" "$FOREIGN_MARK" > /dev/null
    (($# < 2)) || kubectl label namespace "$1" "${@:2}" > /dev/null
    # Made by a controller, a moment later; no pod is let in before.
    wait_for "$PATIENCE" "the ServiceAccount of namespace $1" kubectl --namespace "$1" get serviceaccount default
}

# asker NAME: a pod that nobody says anything of DNS for, ready to be asked from.
asker() {
    k apply --filename - > /dev/null << END
apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: asker, image: "$IMAGES/asker:1", command: [sleep, "3600"]}]
END
    k wait --for=condition=Ready "pod/$1" --timeout="${PATIENCE}s" > /dev/null
}

# getent_in POD NAME: the IPv4 addresses that glibc finds in that pod.
getent_in() {
    k exec "$1" -- getent ahostsv4 "$2" | awk '{ print $1 }' | sort -u
}

# dig_in POD ARGUMENT...
dig_in() {
    k exec "$1" -- dig +noall +answer +tries=2 +time=3 "${@:2}"
}

# counter NAME: the sum of a counter of the resolver on this node, over all its labels.
counter() {
    on_node curl -fsS "http://127.0.0.1:9253/metrics" | awk -v name="$1" '$1 ~ "^"name"([{]|$)" { sum += $NF } END { print sum + 0 }'
}

# nameservers POD: those in its resolv.conf, one on each line.
nameservers() {
    k exec "$1" -- cat /etc/resolv.conf | awk '$1 == "nameserver" { print $2 }'
}

# address POD
address() {
    k get pod "$1" -o jsonpath='{.status.podIP}'
}

# tracked ADDRESS: the entries of connection tracking for DNS to it.
tracked() {
    local protocol
    for protocol in udp tcp; do
        on_node conntrack -L --proto "$protocol" --orig-dst "$1" --dport 53 2> /dev/null
    done
}

# start_for_test NAME COMMAND...: a process on the node; ended after the test.
start_for_test() {
    [[ " ${started[*]} " == *" $1 "* ]] || started+=("$1")
    start "$@"
}

# What a test left, in the order in which it is needed: those who ask, those who answer, what they set up.
clean() {
    local status=$? one
    set +e
    if ((status != 0)); then
        for one in "${started[@]}"; do
            echo "--- log of $one"
            tail -n 20 "$LOGS/$one.log"
        done
    fi
    declare -F after > /dev/null && after "$status"
    for one in "${namespaces[@]}"; do
        kubectl delete namespace "$one" --wait=false > /dev/null
    done
    for one in "${started[@]}"; do
        stop "$one" 5
        rm -f "$LOGS/$one.log"
    done
    [[ -z ${FOREIGN:-} ]] || exit "$status"
    on_node bash -c "
        nft delete table inet nodestub
        ip link delete nodestub
        ip link delete nodestub-ask
        for address in $LOCAL_ADDRESS $CLUSTER_DNS; do ip address delete \$address/32 dev lo; done" > /dev/null 2>&1
    exit "$status"
}

started=() namespaces=() namespace=test-$RANDOM$RANDOM
trap clean EXIT
trap 'exit 143' INT TERM
# shellcheck source=/dev/null
source "$1"
new_namespace "$namespace"
"test_$2"
