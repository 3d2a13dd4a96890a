# shellcheck shell=bash
# For tests that ask a lot: load from pods, resolvers on the node, and the counts of both.
#
#   start_load POD OPTION...     a pod that runs nodestub-load (tests/lab/src/bin/nodestub-load says what it takes)
#   finish_load POD              stops it; its report is in $CLUSTER_DIR/POD.report, what became of the queries of each
#                                millisecond in $CLUSTER_DIR/POD.timeline
#   count POD KIND NAME          a number of the report: count asker udp lost
#   start_resolver NAME [FLAG..] a resolver on the node; serving once this returns
#   take_over NAME OLD           another one, which takes over from OLD, and OLD is stopped
#   kill_resolver NAME           SIGKILL; sets $asked and $dead, in milliseconds since 1970
#
# Sourced by files of cases/.
#
# shellcheck disable=SC2154 # $namespace is case.sh's

readonly LOAD_IMAGE=nodestub.test/load:1
# The cluster DNS gives each of its names the address of whoever asks.
readonly WHO=who.$CLUSTER_DOMAIN
# With NODESTUB_FULL the numbers that are promised; without, a tenth of them.
rounds=5 least_queries=100000 rate=5000
[[ -z ${NODESTUB_FULL:-} ]] || rounds=50 least_queries=1000000 rate=20000
# Queries a second by UDP.
readonly rounds least_queries RATE=${NODESTUB_RATE:-$rate}
# By TCP, connections a second for one query each, and connections that are kept.
readonly TCP_NEW=100 TCP_KEPT=20

make_load_image() {
    [[ -e $RUN/load-image ]] || {
        make_image "$LOAD_IMAGE" --program "$OUR_PROGRAMS/nodestub-load:/bin/nodestub-load" \
            --program "$BUSYBOX:/bin/busybox" --link busybox:/bin/sh --link busybox:/bin/cat --link busybox:/bin/touch \
            --link busybox:/bin/sleep --dir /tmp:1777
        touch "$RUN/load-image"
    }
}

start_load() {
    local pod=$1
    shift
    make_load_image
    k apply --filename - > /dev/null << END
apiVersion: v1
kind: Pod
metadata: {name: $pod}
spec:
  terminationGracePeriodSeconds: 0
  restartPolicy: Never
  dnsPolicy: None
  dnsConfig: {nameservers: [$LOCAL_ADDRESS]}
  containers:
    - name: load
      image: $LOAD_IMAGE
      command: [sh, -c, 'nodestub-load --stop /tmp/stop --timeline /tmp/timeline "\$@" > /tmp/report 2>&1; echo over >> /tmp/report; sleep 3600', load, $(printf '"%s", ' "$@")]
END
    k wait --for=condition=Ready "pod/$pod" --timeout="${PATIENCE}s" > /dev/null
}

finish_load() {
    k exec "$1" -- touch /tmp/stop
    # shellcheck disable=SC2317 # called by wait_for
    is_over() {
        k exec "$1" -- cat /tmp/report > "$CLUSTER_DIR/$1.report" && [[ $(tail -n 1 "$CLUSTER_DIR/$1.report") == over ]]
    }
    wait_for 60 "the load of $1 to end" is_over "$1"
    sed -i '$d' "$CLUSTER_DIR/$1.report"
    k exec "$1" -- cat /tmp/timeline > "$CLUSTER_DIR/$1.timeline"
    sed "s/^/figure: $1: /" "$CLUSTER_DIR/$1.report"
}

count() {
    awk -v kind="$2" -v name="$3" '$1 == kind && $2 != "cluster_dns_saw" {
        for (i = 2; i <= NF; i++) if (split($i, pair, "=") == 2 && pair[1] == name) { print pair[2]; found = 1 }
    } END { exit !found }' "$CLUSTER_DIR/$1.report"
}

# between POD FROM TO COLUMN: the sum of what became of queries that were sent in the milliseconds after FROM and before TO.
# COLUMN: sent, resolver, cluster, lost; of all kinds, or of those named by a fifth argument.
between() {
    awk -v from="$2" -v to="$3" -v column="$4" -v kind="${5:-}" '
        BEGIN { place["sent"] = 3; place["resolver"] = 4; place["cluster"] = 5; place["lost"] = 6 }
        $2 > from && $2 < to && (kind == "" || $1 == kind) { sum += $place[column] }
        END { print sum + 0 }' "$CLUSTER_DIR/$1.timeline"
}

# Later than any moment, in milliseconds.
readonly FOREVER=9999999999999

# pace POD: the queries a second that were really sent by UDP; a busy machine sends less than it is told.
pace() {
    awk '$1 == "asked" { seconds = $6 } $1 == "udp" && $2 ~ /^sent=/ { split($2, sent, "="); printf "%d\n", sent[2] / seconds }' \
        "$CLUSTER_DIR/$1.report"
}

now_ms() {
    date +%s%3N
}

# The pod's load must have nothing to complain of but what is lost.
expect_right_answers() {
    local kind
    for kind in $(awk '$2 != "cluster_dns_saw" && $1 != "asked" { print $1 }' "$CLUSTER_DIR/$1.report"); do
        expect_equal "$kind answers from a wrong address" "$(count "$1" "$kind" wrong_source)" 0
        expect_equal "$kind messages that answer nothing" "$(count "$1" "$kind" wrong_answer)" 0
    done
}

write_corefile() {
    cat > "$CLUSTER_DIR/resolver.Corefile" << END
.:53 {
    bind $LOCAL_ADDRESS
    errors
    cache 3600
    forward . __PILLAR__CLUSTER__DNS__
    prometheus 127.0.0.1:9253
    health $LOCAL_ADDRESS:8080
}
END
}

# spawn_resolver NAME [FLAG...]: does not wait until it serves.
spawn_resolver() {
    local name=$1
    shift
    [[ -e $CLUSTER_DIR/resolver.Corefile ]] || write_corefile
    : > "$LOGS/$name.log"
    start_for_test "$name" /usr/bin/env "KUBE_DNS_SERVICE_HOST=$CLUSTER_DNS" "$OUR_PROGRAMS/nodestub-resolver" \
        -localip "$LOCAL_ADDRESS" -conf "$CLUSTER_DIR/resolver.Corefile" -upstreamsvc kube-dns "$@"
}

start_resolver() {
    spawn_resolver "$@"
    wait_for 30 "$1 to serve" grep -q 'serving DNS' "$LOGS/$1.log"
}

take_over() {
    spawn_resolver "$1"
    wait_for 30 "$1 to take over" grep -q 'took over; the resolver before this one stands by' "$LOGS/$1.log"
    stop "$2" 30
}

# The process of a component, as the node sees it.
process_of() {
    local pid
    read -r pid _ < "$RUN/$1.pid"
    echo "$pid"
}

kill_resolver() {
    read -r asked dead < <(on_node "$OUR_PROGRAMS/nodestub-load" kill "$(process_of "$1")")
    rm -f "$RUN/$1.pid"
}

# upstream_count ZONE: queries of that zone that the cluster DNS was asked, all its pods together.
upstream_count() {
    local pod sum=0 one
    for pod in $(kubectl --namespace kube-system get pods -l k8s-app=kube-dns -o jsonpath='{.items[*].status.podIP}'); do
        one=$(on_node curl -fsS "http://$pod:9153/metrics" | awk -v zone="zone=\"$1.\"" '
            index($1, "coredns_dns_requests_total{") == 1 && index($0, zone) { sum += $NF } END { print sum + 0 }')
        sum=$((sum + one))
    done
    echo "$sum"
}

# A machine that is busy with other things makes bursts that are longer than receive queues. What they drop is counted by
# the kernel: packets that found the receive queue of a UDP socket full.
dropped_by_cluster_dns() {
    local pid sum=0
    for pid in $(on_node pgrep --full '^/coredns '); do
        sum=$((sum + $(receive_errors "/proc/$pid/net/snmp")))
    done
    echo "$sum"
}

# The same on the node itself, where the resolver is.
dropped_on_node() {
    receive_errors /proc/net/snmp
}

receive_errors() {
    on_node awk '$1 == "Udp:" && $2 ~ /^[0-9]/ { print $6 }' "$1"
}

# Each name once, so that the resolver knows them all.
warm_up() {
    local number
    for ((number = 0; number < 100; number++)); do echo "n$number.$WHO A"; done > "$CLUSTER_DIR/names"
    on_node dig "@$LOCAL_ADDRESS" +tries=3 -f "$CLUSTER_DIR/names" > /dev/null
}
