# shellcheck shell=bash
# Connection tracking and the kernel's fail-open on a real node, under load: what a resolver's death costs, in numbers.

# shellcheck source=tests/cluster/load.sh
source "$HERE/load.sh"

# All of both protocols: entries that are there, and events.
tracking_under_load() {
    local pod=$1 protocol entries events
    shift
    on_node conntrack -F 2> /dev/null
    for protocol in udp tcp; do
        rm -f "$LOGS/events-$protocol.log"
        start_for_test "events-$protocol" "$(command -v conntrack)" \
            -E --buffer-size 8388608 --proto "$protocol" --orig-dst "$LOCAL_ADDRESS" --dport 53
    done
    start_load "$pod" --server "$LOCAL_ADDRESS" --zone "$WHO" "$@" --tcp-new "$TCP_NEW" --tcp-kept "$TCP_KEPT"
    sleep 4
    for protocol in udp tcp; do
        # While it asks.
        entries=$(on_node conntrack -L --proto "$protocol" --orig-dst "$LOCAL_ADDRESS" --dport 53 2> /dev/null | wc -l)
        stop "events-$protocol"
        events=$(grep -c '^ *\[' "$LOGS/events-$protocol.log" || true)
        figure "$pod: $protocol entries=$entries events=$events"
        found[$protocol]="$entries $events"
    done
    finish_load "$pod"
    expect_right_answers "$pod"
}

test_no_dns_is_tracked_under_load_that_is_tracked_without_the_rules() {
    local -A found
    local protocol kind entries events
    start_resolver without -setupiptables=false
    tracking_under_load without-rules --udp 1000
    for protocol in udp tcp; do
        read -r entries events <<< "${found[$protocol]}"
        ((entries > 0 && events > 0)) || fail "$protocol is not tracked without the rules, so the rest proves nothing"
    done
    stop without
    start_resolver with
    tracking_under_load with-rules --udp "$RATE"
    for protocol in udp tcp; do
        expect_equal "entries and events of $protocol" "${found[$protocol]}" "0 0"
    done
    for kind in udp tcp_new tcp_kept; do
        expect_equal "lost by $kind" "$(count with-rules "$kind" lost)" 0
    done
}

# Out of the deaths (killed, dead, next start, serving: milliseconds) and the timeline of the asker, prints
#   what was lost that a dead one held: sent shortly before it was dead; and the most of it by one death
#   what was sent while nobody listened
#   what was answered by who should not: a resolver while nobody listened, the cluster DNS by UDP while a resolver served
#   what a resolver answered by UDP from its return until the next death
sum_up_deaths() {
    awk '
        FNR == NR { asked[NR] = $1; dead[NR] = $2; restart[NR] = $3; served[NR] = $4; count = NR; next }
        # Each kind of query is in the order of time.
        $1 != kind { kind = $1; at = 1 }
        {
            while (at < count && $2 > served[at]) at++
            if ($2 >= asked[at] - 500 && $2 <= dead[at]) { held += $6; each[at] += $6 }
            if ($2 > dead[at] && $2 < restart[at]) { sent += $3; strangers += $4 }
            if (at > 1 && $2 > served[at - 1] && $2 < asked[at] && kind == "udp") { returned += $4; strangers += $5 }
        }
        END {
            for (at in each) if (each[at] > most) most = each[at]
            print held + 0, most + 0, sent + 0, strangers + 0, returned + 0
        }' "$CLUSTER_DIR/deaths" "$CLUSTER_DIR/asker.timeline"
}

test_a_resolver_killed_under_load_costs_no_later_query() {
    local round asked dead restart held most sent strangers returned all lost cluster node misses=0
    : > "$CLUSTER_DIR/deaths"
    start_resolver resolver
    cluster=$(dropped_by_cluster_dns) node=$(dropped_on_node)
    start_load asker --server "$LOCAL_ADDRESS" --zone "$WHO" --udp "$RATE" --tcp-new "$TCP_NEW" --tcp-kept "$TCP_KEPT"
    sleep 2
    for ((round = 0; round < rounds; round++)); do
        misses=$((misses + $(counter nodestub_misses_dropped_total)))
        kill_resolver resolver
        sleep 0.5
        restart=$(now_ms)
        start_resolver resolver
        echo "$asked $dead $restart $(now_ms)" >> "$CLUSTER_DIR/deaths"
        sleep 0.7
    done
    finish_load asker
    cluster=$(($(dropped_by_cluster_dns) - cluster)) node=$(($(dropped_on_node) - node))
    misses=$((misses + $(counter nodestub_misses_dropped_total)))
    expect_right_answers asker

    read -r held most sent strangers returned < <(sum_up_deaths)
    all=$(between asker 0 "$FOREVER" sent) lost=$(between asker 0 "$FOREVER" lost)
    figure "$rounds kills under $(pace asker) q/s by UDP, $TCP_NEW new connections/s and $TCP_KEPT that are kept:"
    figure "lost $lost of $all: $held that the dead ones held, at most $most by one death; $((lost - held)) others," \
        "dropped by full queues: $cluster of the cluster DNS, $node of the resolver, $misses of its misses"
    figure "sent while nobody listened: $sent; after a return: $returned answered by the resolver; by who should not: $strangers"
    figure "connections to the cluster DNS that ended when the resolver came back: $(count asker tcp_kept ended_by_cluster)"
    ((lost - held <= cluster + node + misses)) || fail "$((lost - held)) were lost that no dead process held, nor a full queue"
    expect_equal "answers by who should not" "$strangers" 0
    ((sent > 0 && returned > 0)) || fail "nothing was sent while nobody listened, or nothing answered after the return"
    expect_equal "connections to the cluster DNS that did not live on" "$(count asker tcp_kept ended_by_cluster)" 0
    expect_equal "connections that first one and then the other answered on" "$(count asker tcp_kept changed_hands)" 0
}
