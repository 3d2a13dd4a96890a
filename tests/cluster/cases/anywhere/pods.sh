# shellcheck shell=bash
# Modes: nftables
# Needs: images
# What all else rests on: pods of this cluster resolve before anything of ours is there.

test_a_pod_resolves_services_through_the_cluster_dns() {
    asker pod
    expect_equal "nameservers" "$(nameservers pod)" "$CLUSTER_DNS"
    expect_equal "the API server's address" "$(getent_in pod kubernetes.default)" "$KUBERNETES_SERVICE"
    expect_equal "an answer over TCP" "$(dig_in pod +tcp +short "$KUBERNETES_NAME")" "$KUBERNETES_SERVICE"
    expect_equal "what answers at the local address" \
        "$(dig_in pod "@$LOCAL_ADDRESS" +tries=1 +time=2 +short "$KUBERNETES_NAME" 2> /dev/null | grep -v '^;')" ""
}
