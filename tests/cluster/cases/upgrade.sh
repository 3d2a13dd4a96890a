# shellcheck shell=bash
# Modes: nftables
# The DaemonSet of manifests/ upgraded and deleted while a pod asks.

# shellcheck source=tests/cluster/cases/resolver.sh
source "$HERE/cases/resolver.sh"
# shellcheck source=tests/cluster/load.sh
source "$HERE/load.sh"

# Queries a second while images are unpacked and pods are started on the same two cores.
readonly UPGRADE_RATE=${NODESTUB_RATE:-5000}

test_an_image_upgrade_and_a_deletion_of_the_daemonset_under_load() {
    local upgrade upgraded deletion deleted lost drops node client kind
    install_resolver > /dev/null
    resolver_image next
    drops=$(dropped_by_cluster_dns) node=$(dropped_on_node)
    start_load asker --server "$LOCAL_ADDRESS" --zone "$WHO" --udp "$UPGRADE_RATE" --tcp-new "$TCP_NEW" --tcp-kept "$TCP_KEPT"
    sleep 2
    upgrade=$(now_ms)
    kubectl --namespace kube-system set image daemonset/nodestub-resolver "resolver=$IMAGE:next" > /dev/null
    kubectl --namespace kube-system rollout status daemonset/nodestub-resolver --timeout="${PATIENCE}s" > /dev/null
    # shellcheck disable=SC2317 # called by wait_for
    alone() { (($(resolver_pods | wc -l) == 1)); }
    wait_for "$PATIENCE" "the old pod to end" alone
    upgraded=$(now_ms)
    sleep 2
    deletion=$(now_ms)
    kubectl --namespace kube-system delete daemonset nodestub-resolver --timeout="${PATIENCE}s" > /dev/null
    kubectl --namespace kube-system wait --for=delete pod -l app.kubernetes.io/name=nodestub-resolver \
        --timeout="${PATIENCE}s" > /dev/null
    deleted=$(now_ms)
    sleep 2
    finish_load asker
    # Full queues of a starved machine: of who is asked and of who asks. Those of the resolver are shown, and are no excuse.
    drops=$(($(dropped_by_cluster_dns) - drops)) node=$(($(dropped_on_node) - node))
    client=$(k exec asker -- cat /proc/net/snmp | awk '$1 == "Udp:" && $2 ~ /^[0-9]/ { print $6 }')
    expect_right_answers asker
    lost=$(between asker 0 "$deletion" lost)
    figure "an image upgrade by maxSurge, under $(pace asker) q/s: $lost lost of $(between asker 0 "$deletion" sent)," \
        "$(between asker "$upgrade" "$upgraded" cluster) answered by the cluster DNS"
    figure "dropped by full receive queues: $drops at the cluster DNS, $node at the resolver, $client at the pod that asks"
    for kind in udp tcp_new tcp_kept; do
        figure "the DaemonSet deleted, $kind: $(between asker "$deletion" "$FOREVER" lost "$kind") lost of" \
            "$(between asker "$deletion" "$FOREVER" sent "$kind")"
    done
    expect_equal "lost over the upgrade" "$lost" 0
    expect_equal "answered by the cluster DNS during the upgrade, as if nobody listened" \
        "$(between asker "$upgrade" "$upgraded" cluster udp)" 0
    expect_equal "answered by the resolver after its end" "$(between asker "$deleted" "$FOREVER" resolver udp)" 0
    (($(count asker udp lost) <= drops + client)) || fail "queries were lost when the DaemonSet was deleted"
    # A connection ends with its resolver, and with it what was asked on it that moment.
    (($(count asker tcp_new lost) <= 2 && $(count asker tcp_kept lost) <= TCP_KEPT)) ||
        fail "more was lost on connections than ended"
}
