# shellcheck shell=bash
# What the resolver finds out about its node: whether fail-open works there, and whose pods would miss it.

readonly COREFILE=$CLUSTER_DIR/failopen.Corefile
readonly MANIFEST=$CLUSTER_DIR/resolver.yaml
readonly CLEANUP_IMAGE=nodestub.test/cleanup:1

# Starts the resolver on the node, as it runs where there is no DaemonSet.
start_resolver() {
    cat > "$COREFILE" << END
. {
    bind $LOCAL_ADDRESS
    forward . $CLUSTER_DNS
    prometheus 127.0.0.1:9253
    ready 127.0.0.1:8181
}
END
    start_for_test resolver "$OUR_PROGRAMS/nodestub-resolver" -conf "$COREFILE" -localip "$LOCAL_ADDRESS" \
        --fallback "$CLUSTER_DNS" --cluster-domain "$CLUSTER_DOMAIN"
    wait_for 30 "the resolver" on_node curl -fsS http://127.0.0.1:8181/ready
}

# fail_open_is STATE: as the metric has it.
fail_open_is() {
    on_node curl -fsS http://127.0.0.1:9253/metrics |
        grep -q "^nodestub_fail_open{address=\"$LOCAL_ADDRESS\",to=\"$CLUSTER_DNS\",state=\"$1\"} 1$"
}

# A pod that has the local address as its first nameserver, as the webhook would make it.
user() {
    k apply --filename - > /dev/null << END
apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  terminationGracePeriodSeconds: 0
  dnsPolicy: None
  dnsConfig: {nameservers: [$LOCAL_ADDRESS, $CLUSTER_DNS]}
  containers: [{name: asker, image: "nodestub.test/asker:1", command: [sleep, "3600"]}]
END
    k wait --for=condition=Ready "pod/$1" --timeout="${PATIENCE}s" > /dev/null
}

test_the_metric_says_that_fail_open_works_and_that_it_does_not_without_kube_proxys_rules() {
    asker pod
    start_resolver
    wait_for 60 "fail-open to be seen to work" fail_open_is works
    expect_equal "proven" "$(counter nodestub_fail_open_proven)" 1
    # And it does: nobody listens, and the pod is answered.
    stop resolver
    expect_equal "an answer without a listener" "$(dig_in pod "@$LOCAL_ADDRESS" +short "$KUBERNETES_NAME")" "$KUBERNETES_SERVICE"

    start_resolver
    wait_for 60 "fail-open to be seen to work" fail_open_is works
    stop kube-proxy
    on_node "$(program kube-proxy)" --cleanup > /dev/null 2>&1
    # What is translated already goes on by its entry.
    on_node conntrack -F 2> /dev/null
    # It looks again at once when something of its own is taken away.
    on_node nft delete table inet nodestub
    wait_for 60 "fail-open to be seen not to work" fail_open_is broken
    on_node curl -sS http://127.0.0.1:8181/ready | grep "kube-proxy's rules are missing" > /dev/null ||
        fail "the text of /ready does not say why"
    expect_equal "proven" "$(counter nodestub_fail_open_proven)" 0
    "$HERE/up" node --proxy-mode "$PROXY_MODE" > /dev/null
    wait_for 120 "fail-open to be seen to work again" fail_open_is works
}

# Whatever happened, others need it.
after() {
    running kube-proxy || "$HERE/up" node --proxy-mode "$PROXY_MODE" > /dev/null
    rm -f "$COREFILE"
    [[ -e $MANIFEST ]] || return 0
    (($1 == 0)) || kubectl --namespace kube-system logs daemonset/nodestub-resolver --tail=30
    kubectl delete --filename "$MANIFEST" --ignore-not-found --timeout=60s > /dev/null
    kubectl --namespace kube-system delete --ignore-not-found serviceaccount/nodestub-resolver \
        configmap/nodestub-resolver > /dev/null
    rm "$MANIFEST"
}

# no_container_of NAMESPACE POD: by the annotations of those that run.
no_container_of() {
    ! on_node bash -c 'cat /run/containerd/io.containerd.runtime.v2.task/k8s.io/*/config.json' 2> /dev/null |
        grep -q "sandbox-name\":\"$2\",\"io.kubernetes.cri.sandbox-namespace\":\"$1\""
}

# cleanup_pod NAME PHASE [host]: runs `cleanup` in a pod on the host's network, and prints what it says.
cleanup_pod() {
    local mounts="" volumes="" arguments='"cleanup"'
    if [[ ${3:-} == host ]]; then
        mounts='[{name: host, mountPath: /host, readOnly: true}]'
        volumes='[{name: host, hostPath: {path: /}}]'
        arguments+=', "--host-root", "/host"'
    fi
    k apply --filename - > /dev/null << END
apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  hostNetwork: true
  dnsPolicy: Default
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
    - name: cleanup
      image: $CLEANUP_IMAGE
      args: [$arguments]
      securityContext:
        runAsUser: 0
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        seccompProfile: {type: RuntimeDefault}
        capabilities: {drop: [ALL], add: [NET_ADMIN, NET_BIND_SERVICE]}
      volumeMounts: ${mounts:-[]}
  volumes: ${volumes:-[]}
END
    k wait --for=jsonpath='{.status.phase}'="$2" "pod/$1" --timeout="${PATIENCE}s" > /dev/null ||
        fail "$1 did not end as $2: $(k logs "$1")"
    k logs "$1"
}

test_cleanup_refuses_while_a_pod_has_the_address_names_it_and_cleans_when_it_is_gone() {
    local said
    make_image "$CLEANUP_IMAGE" --program "$OUR_PROGRAMS/nodestub-resolver:/nodestub-resolver" \
        --entrypoint '["/nodestub-resolver"]'
    start_resolver
    user web
    asker other
    # Stopped, it leaves address and rules.
    stop resolver
    said=$(cleanup_pod blind Failed)
    [[ $said == *--host-root* && $said == *hostPath* ]] || fail "what to mount is not said: $said"
    said=$(cleanup_pod refused Failed host)
    [[ $said == *"1 pod of this node has $LOCAL_ADDRESS as nameserver: $namespace/web"* ]] || fail "it says: $said"
    said=$(on_node "$OUR_PROGRAMS/nodestub-resolver" cleanup 2>&1) && fail "it was not refused on the node itself"
    [[ $said == *"$namespace/web"* ]] || fail "on the node itself it says: $said"
    expect_equal "an answer to the pod all the while" \
        "$(dig_in web "@$LOCAL_ADDRESS" +short "$KUBERNETES_NAME")" "$KUBERNETES_SERVICE"

    k delete pod web --wait=true > /dev/null
    # Without a grace period the API server does not wait for the node.
    wait_for "$PATIENCE" "the pod's containers to end" no_container_of "$namespace" web
    said=$(cleanup_pod done Succeeded host)
    [[ $said == *removed*nodestub-ask*"table inet nodestub"* ]] || fail "it says: $said"
    ! on_node nft list table inet nodestub > /dev/null 2>&1 || fail "the rules are there"
    ! on_node ip link show nodestub-ask > /dev/null 2>&1 || fail "the pair of devices is there"
}

# The manifest's resolver: two capabilities and no more, RuntimeDefault's system calls, a /proc/sys that is read only.
test_the_manifests_resolver_serves_when_the_facts_come_and_sees_that_fail_open_works() {
    local manifests=$HERE/../../manifests/base image=nodestub.test/resolver:1
    make_image "$image" --entrypoint '["/nodestub-resolver"]' \
        --program "$OUR_PROGRAMS/nodestub-resolver:/nodestub-resolver:cap_net_admin,cap_net_bind_service=p"
    asker pod
    kubectl --namespace kube-system create serviceaccount nodestub-resolver > /dev/null
    kubectl --namespace kube-system create configmap nodestub-resolver --from-file "$manifests/Corefile" > /dev/null
    sed "s,image: nodestub-resolver:.*,image: $image," "$manifests/resolver.yaml" > "$MANIFEST"
    grep -q "image: $image" "$MANIFEST" || fail "the image was not changed"
    kubectl apply --filename "$MANIFEST" > /dev/null
    wait_for "$PATIENCE" "the resolver to say that it waits for the facts" resolver_says "not serving yet"
    on_node nft list table inet nodestub > /dev/null || fail "the rules are not the first act"

    kubectl --namespace kube-system patch configmap nodestub-facts --type merge --patch \
        "{\"data\": {\"cluster-dns\": \"$CLUSTER_DNS\", \"cluster-domain\": \"$CLUSTER_DOMAIN\"}}" > /dev/null
    # A kubelet looks at what it has mounted every minute or two.
    kubectl --namespace kube-system rollout status daemonset/nodestub-resolver --timeout=180s > /dev/null
    wait_for 60 "fail-open to be seen to work" fail_open_is works
    expect_equal "an answer" "$(dig_in pod "@$LOCAL_ADDRESS" +short "$KUBERNETES_NAME")" "$KUBERNETES_SERVICE"
}

resolver_says() {
    kubectl --namespace kube-system logs daemonset/nodestub-resolver 2> /dev/null | grep "$1" > /dev/null
}
