# shellcheck shell=bash
# The cluster itself: what the other tests stand on.

test_kube_proxy_runs_in_the_mode_that_was_asked_for() {
    expect_equal "kube-proxy's mode" "$(on_node curl -fsS http://127.0.0.1:10249/proxyMode)" "$PROXY_MODE"
    expect_equal "the node's condition" \
        "$(kubectl get node "$NODE_NAME" -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}')" True
}

test_a_pod_resolves_services_and_the_world_through_the_cluster_dns() {
    asker pod
    # By glibc, with the search domains that the kubelet wrote.
    expect_equal "the API server's address" "$(getent_in pod kubernetes.default)" "$KUBERNETES_SERVICE"
    expect_equal "an address outside" "$(getent_in pod www.example.com)" 192.0.2.10
    expect_equal "an answer over TCP" "$(dig_in pod +tcp +short "$KUBERNETES_NAME")" "$KUBERNETES_SERVICE"
    [[ -n $(tracked "$CLUSTER_DNS") ]] || fail "no query to $CLUSTER_DNS was tracked, so tests that find none prove nothing"
}

test_an_image_carries_capabilities_and_the_libraries_of_its_programs() {
    local pid
    # CoreDNS listens on port 53 without being root and with no_new_privs: the capability is the file's.
    pid=$(on_node pgrep --oldest --full '^/coredns ')
    expect_equal "the user of CoreDNS" "$(on_node stat -c %u "/proc/$pid")" 65532
    expect_equal "capabilities of its file" \
        "$(on_node getcap "/proc/$pid/root/coredns" | sed 's/.* //')" cap_net_bind_service=ep
    # Linked against a dozen libraries.
    asker pod
    k exec pod -- dig -v > /dev/null
}
