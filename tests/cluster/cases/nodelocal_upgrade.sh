# shellcheck shell=bash
# NodeLocal DNSCache's own manifest with our image, upgraded and deleted as its users do it, while a pod asks: in the form for
# kube-proxy's iptables mode, which takes kube-dns's address, and in the form for IPVS, which has the local address only.

# shellcheck source=tests/cluster/cases/nodelocal.sh
source "$HERE/cases/nodelocal.sh"
# shellcheck source=tests/cluster/load.sh
source "$HERE/load.sh"

# As the documentation of NodeLocal DNSCache says for IPVS, and privileged, as kubespray had it.
write_ipvs_manifest() {
    local module
    module=$(cd "$HERE/modules/kubernetes" && go list -mod=readonly -m -f '{{.Dir}}' k8s.io/kubernetes)
    sed -e "s/__PILLAR__LOCAL__DNS__/$LOCAL_ADDRESS/g; s/__PILLAR__DNS__DOMAIN__/$CLUSTER_DOMAIN/g" \
        -e "s/,__PILLAR__DNS__SERVER__//g; s/__PILLAR__CLUSTER__DNS__/$CLUSTER_DNS/g" \
        -e "s,image: .*/k8s-dns-node-cache:.*,image: $IMAGE," \
        -e '/^ *capabilities:$/{N;N;s/capabilities:.*/privileged: true/}' \
        "$module/cluster/addons/dns/nodelocaldns/nodelocaldns.yaml" > "$MANIFEST"
    [[ $(grep -c "image: $IMAGE\|privileged: true" "$MANIFEST") == 2 ]] || fail "the manifest is not as it was"
    ! grep -q "$CLUSTER_DNS" <(grep localip "$MANIFEST") || fail "kube-dns's address should not be bound"
}

# serves_over_an_upgrade_and_a_deletion ADDRESS: pods that ask there.
serves_over_an_upgrade_and_a_deletion() {
    local program=$OUR_PROGRAMS/nodestub-resolver upgrade upgraded deletion deleted drops lost before
    make_image "$IMAGE" --program "$program:/node-cache" --entrypoint '["/node-cache"]'
    make_image "${IMAGE%:*}:2" --program "$program:/node-cache" --entrypoint '["/node-cache"]' --text /etc/version:2
    kubectl apply --filename "$MANIFEST" > /dev/null
    kubectl --namespace kube-system rollout status daemonset/node-local-dns --timeout="${PATIENCE}s" > /dev/null
    wait_for 30 "the resolver's health, where the kubelet looks" on_node curl -fsS "http://$LOCAL_ADDRESS:8080/health"
    wait_for 30 "the resolver's counters" on_node curl -fsS http://127.0.0.1:9253/metrics
    drops=$(dropped_by_cluster_dns)
    before=$(counter coredns_dns_requests_total)
    start_load asker --server "$1" --zone "$WHO" --udp 2000 --tcp-new 50 --tcp-kept 10
    sleep 3
    (($(counter coredns_dns_requests_total) - before > 2000)) || fail "the resolver's counters do not move"
    upgrade=$(now_ms)
    kubectl --namespace kube-system set image daemonset/node-local-dns "node-cache=${IMAGE%:*}:2" > /dev/null
    kubectl --namespace kube-system rollout status daemonset/node-local-dns --timeout="${PATIENCE}s" > /dev/null
    wait_for 30 "the new resolver's counters" on_node curl -fsS http://127.0.0.1:9253/metrics
    upgraded=$(now_ms)
    sleep 3
    deletion=$(now_ms)
    kubectl delete --filename "$MANIFEST" --timeout="${PATIENCE}s" > /dev/null
    kubectl --namespace kube-system wait --for=delete pod -l k8s-app=node-local-dns --timeout="${PATIENCE}s" > /dev/null
    deleted=$(now_ms)
    sleep 2
    finish_load asker
    drops=$(($(dropped_by_cluster_dns) - drops))
    expect_right_answers asker
    lost=$(between asker 0 "$FOREVER" lost)
    figure "asking $1: lost $lost of $(between asker 0 "$FOREVER" sent), $(between asker "$upgrade" "$upgraded" lost) in the" \
        "upgrade and $(between asker "$deletion" "$deleted" lost) in the deletion; meanwhile the cluster DNS answered" \
        "$(between asker "$upgrade" "$upgraded" cluster) and $(between asker "$deletion" "$FOREVER" cluster), and its full receive queues dropped $drops"
    (($(between asker "$upgraded" "$deletion" resolver udp) > 2000)) || fail "the upgraded resolver does not answer"
    expect_equal "who answered after the deletion, the resolver" "$(between asker "$deleted" "$FOREVER" resolver udp)" 0
    (($(count asker udp lost) <= drops)) || fail "$(count asker udp lost) were lost by UDP"
    # A connection ends with its resolver, twice here, and with it what was asked on it that moment.
    (($(count asker tcp_new lost) <= 2 * 2)) || fail "$(count asker tcp_new lost) were lost on new connections"
    (($(count asker tcp_kept lost) <= 2 * 10)) || fail "more was lost on connections than ended"
}

test_nodelocals_manifest_in_its_ipvs_form_serves_over_an_upgrade_and_a_deletion() {
    write_ipvs_manifest
    serves_over_an_upgrade_and_a_deletion "$LOCAL_ADDRESS"
}

test_nodelocals_manifest_in_its_iptables_form_serves_over_an_upgrade_and_a_deletion() {
    write_manifest
    serves_over_an_upgrade_and_a_deletion "$CLUSTER_DNS"
}
