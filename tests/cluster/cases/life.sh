# shellcheck shell=bash
# Modes: nftables
# What else befalls a node, while a pod asks: its processes are killed, a Corefile does not parse.

# shellcheck source=tests/cluster/load.sh
source "$HERE/load.sh"

# More than a pod ever asks, and less than keeps a node that is starting from starting.
start_light_load() {
    start_load "$1" --server "$LOCAL_ADDRESS" --zone "$WHO" --udp 2000 --tcp-new 50 --tcp-kept 10
}

test_pods_resolve_while_the_nodes_processes_are_killed_and_started_again() {
    local name asked dead killed held lost drops
    start_resolver resolver
    drops=$(dropped_by_cluster_dns)
    start_light_load asker
    sleep 2
    kill_resolver resolver
    for name in kubelet containerd kube-proxy; do
        on_node kill -KILL "$(process_of "$name")"
    done
    killed=$(now_ms)
    sleep 3
    # Starts what is not there.
    "$HERE/up" node --proxy-mode "$PROXY_MODE" 2> /dev/null
    start_resolver resolver
    sleep 2
    finish_load asker
    drops=$(($(dropped_by_cluster_dns) - drops))
    expect_right_answers asker
    held=$(between asker $((asked - 500)) $((dead + 1)) lost)
    lost=$(between asker 0 "$FOREVER" lost)
    figure "resolver, kubelet, containerd and kube-proxy killed, and started again: lost $lost of" \
        "$(between asker 0 "$FOREVER" sent), $held of them held by the dead resolver; the cluster DNS answered" \
        "$(between asker "$killed" "$FOREVER" cluster)"
    ((lost - held <= drops)) || fail "$((lost - held)) were lost that no dead process held"
    (($(between asker "$killed" "$FOREVER" cluster udp) > 0)) || fail "nothing was asked while nobody listened"
    expect_equal "who answers in the end, the cluster DNS" "$(awk '$1 == "udp"' "$CLUSTER_DIR/asker.timeline" | tail -n 100 | awk '{ sum += $5 } END { print sum + 0 }')" 0
}

test_a_corefile_that_does_not_parse_on_a_fresh_node_costs_no_answer() {
    local round drops began
    ! on_node nft list table inet nodestub > /dev/null 2>&1 || fail "the node is not fresh"
    # Before the first start there is no such address: the second nameserver answers, when the library has lost patience.
    k apply --filename - > /dev/null << END
apiVersion: v1
kind: Pod
metadata: {name: patient}
spec:
  terminationGracePeriodSeconds: 0
  dnsPolicy: None
  dnsConfig: {nameservers: [$LOCAL_ADDRESS, $CLUSTER_DNS]}
  containers: [{name: asker, image: "nodestub.test/asker:1", command: [sleep, "3600"]}]
END
    k wait --for=condition=Ready pod/patient --timeout="${PATIENCE}s" > /dev/null
    expect_equal "an address, before the resolver's first start" "$(getent_in patient "$KUBERNETES_NAME")" "$KUBERNETES_SERVICE"

    printf '.:53 {\n    bind %s\n    forwrad . %s\n}\n' "$LOCAL_ADDRESS" "$CLUSTER_DNS" > "$CLUSTER_DIR/resolver.Corefile"
    refuse() {
        ! on_node /usr/bin/env "KUBE_DNS_SERVICE_HOST=$CLUSTER_DNS" "$OUR_PROGRAMS/nodestub-resolver" \
            -localip "$LOCAL_ADDRESS" -conf "$CLUSTER_DIR/resolver.Corefile" > "$CLUSTER_DIR/said" 2>&1 ||
            fail "a Corefile that does not parse is served"
        grep -q 'did you mean `forward`' "$CLUSTER_DIR/said" || fail "it does not say what is wrong"
    }
    refuse
    drops=$(dropped_by_cluster_dns)
    start_light_load asker
    # As a kubelet does it.
    for ((round = 0; round < rounds; round++)); do
        sleep 0.5
        refuse
    done
    expect_equal "an address, without a resolver" "$(getent_in patient "$KUBERNETES_NAME")" "$KUBERNETES_SERVICE"
    write_corefile
    start_resolver good
    began=$(now_ms)
    sleep 2
    finish_load asker
    drops=$(($(dropped_by_cluster_dns) - drops))
    expect_right_answers asker
    figure "a Corefile that does not parse, $((rounds + 1)) starts, then one that does: lost $(between asker 0 "$FOREVER" lost)" \
        "of $(between asker 0 "$FOREVER" sent)"
    (($(between asker 0 "$FOREVER" lost) <= drops)) || fail "queries were lost"
    (($(between asker "$began" "$FOREVER" resolver udp) > 0)) || fail "the resolver answers nothing"
}
