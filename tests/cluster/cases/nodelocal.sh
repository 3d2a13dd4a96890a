# shellcheck shell=bash
# NodeLocal DNSCache's own manifest, as the pinned Kubernetes ships it, with our resolver for its image.

readonly IMAGE=nodestub.test/node-cache:1
readonly MANIFEST=$CLUSTER_DIR/nodelocal.yaml

# Writes the manifest with its placeholders filled as its installer fills them, and the image changed; nothing else.
write_manifest() {
    local module
    module=$(cd "$HERE/modules/kubernetes" && go list -mod=readonly -m -f '{{.Dir}}' k8s.io/kubernetes)
    sed -e "s/__PILLAR__DNS__DOMAIN__/$CLUSTER_DOMAIN/g" \
        -e "s/__PILLAR__DNS__SERVER__/$CLUSTER_DNS/g" \
        -e "s/__PILLAR__LOCAL__DNS__/$LOCAL_ADDRESS/g" \
        -e "s,image: .*/k8s-dns-node-cache:.*,image: $IMAGE," \
        "$module/cluster/addons/dns/nodelocaldns/nodelocaldns.yaml" > "$MANIFEST"
    grep -q "image: $IMAGE" "$MANIFEST" || fail "the image was not changed"
}

# What the manifest is for.
helps_pods_that_were_never_touched() {
    local before rounds=20 seen
    make_image "$IMAGE" --program "$OUR_PROGRAMS/nodestub-resolver:/node-cache" --entrypoint '["/node-cache"]'
    asker untouched
    expect_equal "the pod's nameserver" "$(nameservers untouched)" "$CLUSTER_DNS"
    dig_in untouched +short "$KUBERNETES_NAME" > /dev/null
    [[ -n $(tracked "$CLUSTER_DNS") ]] || fail "without a node cache, queries should be tracked"

    kubectl apply --filename "$MANIFEST" > /dev/null
    kubectl --namespace kube-system rollout status daemonset/node-local-dns --timeout="${PATIENCE}s"
    # There is no readiness probe: that it is rolled out says that it was started.
    wait_for 30 "the resolver's counters" on_node curl -fsS http://127.0.0.1:9253/metrics

    before=$(counter coredns_dns_requests_total)
    on_node conntrack -F 2> /dev/null
    for ((round = 0; round < rounds; round++)); do
        expect_equal "the API server's address" "$(getent_in untouched kubernetes.default)" "$KUBERNETES_SERVICE"
    done
    expect_equal "an answer over TCP" "$(dig_in untouched +tcp +short "$KUBERNETES_NAME")" "$KUBERNETES_SERVICE"
    expect_equal "an address outside" "$(getent_in untouched www.example.com)" 192.0.2.10
    expect_equal "tracked queries of the pod" "$(tracked "$CLUSTER_DNS" | grep "src=$(address untouched) ")" ""
    seen=$(($(counter coredns_dns_requests_total) - before))
    ((seen >= rounds)) || fail "the resolver's counter moved by $seen while $rounds names were asked for"
    (($(counter coredns_cache_hits_total) > 0)) || fail "nothing was answered from the cache"

    # Taken away again, pods resolve as before.
    kubectl delete --filename "$MANIFEST" --timeout="${PATIENCE}s" > /dev/null
    expect_equal "the API server's address" "$(getent_in untouched kubernetes.default)" "$KUBERNETES_SERVICE"
}

after() {
    [[ -e $MANIFEST ]] || return 0
    if (($1 != 0)); then
        kubectl --namespace kube-system describe pods -l k8s-app=node-local-dns | sed -n '/^Events/,$p'
        kubectl --namespace kube-system logs -l k8s-app=node-local-dns --tail=20
    fi
    kubectl delete --filename "$MANIFEST" --ignore-not-found --timeout=60s > /dev/null
    rm "$MANIFEST"
}

test_nodelocals_manifest_with_the_template_named_where_it_is_mounted_helps_pods_that_were_never_touched() {
    write_manifest
    sed -i 's,"-conf"\, "/etc/Corefile","-conf"\, "/etc/coredns/Corefile.base",' "$MANIFEST"
    grep -q Corefile.base\", "$MANIFEST" || fail "the arguments were not changed"
    helps_pods_that_were_never_touched
}

test_nodelocals_manifest_with_nothing_but_the_image_changed_helps_pods_that_were_never_touched() {
    write_manifest
    helps_pods_that_were_never_touched
}
