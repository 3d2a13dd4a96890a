# shellcheck shell=bash
# Modes: nftables
# Handover on a real node, under load from a pod: nothing is lost, and the cache stays warm. The mode of kube-proxy has no
# part in it.

# shellcheck source=tests/cluster/load.sh
source "$HERE/load.sh"

start_full_load() {
    start_load "$1" --server "$LOCAL_ADDRESS" --zone "$WHO" --udp "$RATE" --tcp-new "$TCP_NEW" --tcp-kept "$TCP_KEPT"
}

expect_nothing_lost() {
    local kind
    expect_right_answers "$1"
    for kind in udp tcp_new tcp_kept; do
        expect_equal "lost by $kind" "$(count "$1" "$kind" lost)" 0
        # Not one by the cluster DNS either: somebody listens all the time.
        expect_equal "answered by the cluster DNS, by $kind" "$(between "$1" 0 "$FOREVER" cluster "$kind")" 0
    done
    expect_equal "connections that ended early" \
        "$(($(count "$1" tcp_kept ended_by_resolver) + $(count "$1" tcp_kept ended_by_nobody)))" 0
}

test_handovers_under_load_lose_nothing_and_keep_the_cache_warm() {
    local round before after sent node
    start_resolver resolver-0
    warm_up
    node=$(dropped_on_node)
    start_full_load asker
    # What the load itself asks first is not the handovers' doing.
    sleep 2
    before=$(upstream_count "$WHO")
    for ((round = 1; round <= rounds; round++)); do
        take_over "resolver-$round" "resolver-$((round - 1))"
        # So that it comes to as many queries as are promised.
        sleep "$(awk -v all="$least_queries" -v rate="$RATE" -v rounds="$rounds" 'BEGIN { print all / rate / rounds }')"
    done
    finish_load asker
    after=$(upstream_count "$WHO")
    sent=$(between asker 0 "$FOREVER" sent)
    figure "$rounds handovers under $(pace asker) q/s: $(between asker 0 "$FOREVER" lost) lost of $sent" \
        "($(($(dropped_on_node) - node)) dropped by full receive queues of the resolver);" \
        "the cluster DNS was asked $((after - before)) times"
    expect_nothing_lost asker
    expect_equal "queries of the cluster DNS" "$((after - before))" 0
    ((sent >= least_queries)) || fail "only $sent queries were sent; $least_queries are promised"
}

# shellcheck disable=SC2317 # called by wait_for
serves_again() {
    (($(grep -c 'this one serves again' "$LOGS/resolver.log") >= $1))
}

test_a_version_that_crashes_after_each_handover_costs_no_later_query() {
    local round asked dead held lost all
    : > "$CLUSTER_DIR/deaths"
    start_resolver resolver
    warm_up
    start_full_load asker
    for ((round = 1; round <= rounds; round++)); do
        spawn_resolver "newer-$round"
        wait_for 30 "newer-$round to take over" grep -q 'took over' "$LOGS/newer-$round.log"
        sleep 1
        kill_resolver "newer-$round"
        echo "$asked $dead" >> "$CLUSTER_DIR/deaths"
        wait_for 30 "the older one to serve again" serves_again "$round"
        sleep 0.3
    done
    finish_load asker
    # What a dead one held was sent shortly before it was dead.
    held=$(awk '
        FNR == NR { asked[NR] = $1; dead[NR] = $2; count = NR; next }
        $6 > 0 { for (at = 1; at <= count; at++) if ($2 >= asked[at] - 500 && $2 <= dead[at]) { held += $6; break } }
        END { print held + 0 }' "$CLUSTER_DIR/deaths" "$CLUSTER_DIR/asker.timeline")
    lost=$(between asker 0 "$FOREVER" lost) all=$(between asker 0 "$FOREVER" sent)
    figure "$rounds crashes a second after a handover, under $(pace asker) q/s: lost $(count asker udp lost) of" \
        "$(count asker udp sent) by UDP, $((lost - $(count asker udp lost))) of $((all - $(count asker udp sent))) by TCP"
    expect_right_answers asker
    # Connections end with the process that has them, and with them what was asked on them. The queue of a UDP socket is
    # read by the one that stood by: lost is what the dead one had taken out, at most a batch for each of its threads.
    expect_equal "lost that no dead process held" "$((lost - held))" 0
    (($(count asker udp lost) <= rounds * 16 * $(nproc))) || fail "the queues of the dead were lost"
    expect_equal "answered by the cluster DNS" "$(between asker 0 "$FOREVER" cluster)" 0
}
