# shellcheck shell=bash
# The resolver as manifests/ has it: nothing is changed but what the webhook would have found out.

readonly IMAGE=docker.io/library/nodestub-resolver
readonly BASE=$HERE/../../manifests/base

# resolver_image TAG
resolver_image() {
    make_image "$IMAGE:$1" --entrypoint '["/nodestub-resolver"]' \
        --program "$OUR_PROGRAMS/nodestub-resolver:/nodestub-resolver:cap_net_admin,cap_net_bind_service=p"
}

# Everything of the base that is the resolver's, with the facts that the webhook would write.
install_resolver() {
    resolver_image 0.1.0
    kubectl --namespace kube-system create configmap nodestub-facts \
        --from-literal="cluster-domain=$CLUSTER_DOMAIN" --from-literal="cluster-dns-preferred=$CLUSTER_DNS" > /dev/null
    kubectl label --namespace kube-system configmap nodestub-facts app.kubernetes.io/name=nodestub-resolver > /dev/null
    kubectl apply --kustomize "$BASE" --selector app.kubernetes.io/name=nodestub-resolver 2> /dev/null
    kubectl --namespace kube-system rollout status daemonset/nodestub-resolver --timeout="${PATIENCE}s"
}

# The pods of the DaemonSet, the oldest first.
resolver_pods() {
    kubectl --namespace kube-system get pods -l app.kubernetes.io/name=nodestub-resolver \
        --sort-by=.metadata.creationTimestamp -o jsonpath='{range .items[*]}{.metadata.name}{"\n"}{end}'
}

# probe POD QUESTION: what the kubelet asks.
probe() {
    kubectl --namespace kube-system exec "$1" -- /nodestub-resolver probe "$2" 2>&1
}

# A pod as the webhook makes it.
injected() {
    k apply --filename - > /dev/null << END
apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  terminationGracePeriodSeconds: 0
  dnsPolicy: None
  dnsConfig:
    nameservers: [$LOCAL_ADDRESS]
    searches: [$namespace.svc.$CLUSTER_DOMAIN, svc.$CLUSTER_DOMAIN, $CLUSTER_DOMAIN]
    options: [{name: ndots, value: "5"}]
  containers: [{name: asker, image: "nodestub.test/asker:1", command: [sleep, "3600"]}]
END
    k wait --for=condition=Ready "pod/$1" --timeout="${PATIENCE}s" > /dev/null
}

after() {
    if (($1 != 0)); then
        kubectl --namespace kube-system get pods -l app.kubernetes.io/name=nodestub-resolver -o wide
        kubectl --namespace kube-system describe pods -l app.kubernetes.io/name=nodestub-resolver | sed -n '/^Events/,$p'
        kubectl --namespace kube-system logs -l app.kubernetes.io/name=nodestub-resolver --tail=30
    fi
    kubectl delete --kustomize "$BASE" --selector app.kubernetes.io/name=nodestub-resolver --ignore-not-found \
        --timeout=60s > /dev/null
    kubectl --namespace kube-system wait --for=delete pod -l app.kubernetes.io/name=nodestub-resolver --timeout=60s > /dev/null
}

test_the_resolver_becomes_ready_as_a_user_with_two_capabilities_and_pods_resolve() {
    local pod pid task name
    install_resolver
    pod=$(resolver_pods)
    injected pod
    expect_equal "the API server's address" "$(getent_in pod kubernetes.default)" "$KUBERNETES_SERVICE"
    expect_equal "an address outside" "$(getent_in pod www.example.com)" 192.0.2.10
    expect_equal "an answer over TCP" "$(dig_in pod +tcp +short "$KUBERNETES_NAME")" "$KUBERNETES_SERVICE"

    for question in startup live ready; do
        expect_equal "the answer to the probe $question" "$(probe "$pod" "$question")" "yes: serving"
    done
    pid=$(on_node pgrep --oldest --full '^/nodestub-resolver -conf')
    expect_equal "its user" "$(on_node stat -c %u "/proc/$pid")" 65532
    for task in $(on_node ls "/proc/$pid/task"); do
        name=$(on_node cat "/proc/$pid/task/$task/comm")
        expect_equal "capabilities of thread $name" \
            "$(on_node awk '$1 ~ /^Cap(Eff|Prm):$/ { print $2 }' "/proc/$pid/task/$task/status" | sort -u)" \
            "$([[ $name == node || $name == ports ]] && echo 0000000000001400 || echo 0000000000000000)"
    done

    # What it set up is put right with no more than that.
    on_node nft delete table inet nodestub
    wait_for 30 "the rules to be there again" on_node nft list table inet nodestub
}

test_an_image_upgrade_hands_over_while_both_pods_are_ready() {
    local old new questions=0
    install_resolver
    injected pod
    old=$(resolver_pods)
    resolver_image next
    kubectl --namespace kube-system set image daemonset/nodestub-resolver "resolver=$IMAGE:next" > /dev/null
    new=""
    stands_by() {
        new=$(resolver_pods | sed -n 2p)
        [[ -n $new && $(probe "$old" ready) == "yes: standing by"* && $(probe "$new" ready) == "yes: serving" ]]
    }
    wait_for "$PATIENCE" "the old pod to stand by for the new one" stands_by
    new=$(resolver_pods | sed -n 2p)
    for pod in "$old" "$new"; do
        kubectl --namespace kube-system wait --for=condition=Ready "pod/$pod" --timeout="${PATIENCE}s" > /dev/null
    done
    until kubectl --namespace kube-system rollout status daemonset/nodestub-resolver --timeout=1s > /dev/null 2>&1; do
        ((questions++ < PATIENCE)) || fail "the rollout does not come to its end"
        expect_equal "the API server's address" "$(dig_in pod +tries=1 +short "$KUBERNETES_NAME")" "$KUBERNETES_SERVICE"
    done
    alone() {
        [[ $(resolver_pods) == "$new" ]]
    }
    wait_for "$PATIENCE" "the old pod to end" alone
    expect_equal "handovers that the new one took" \
        "$(on_node curl -fsS http://127.0.0.1:9253/metrics | awk '/^nodestub_handover_total.*taken/ { print $2 }')" 1
    expect_equal "containers that were started again" \
        "$(kubectl --namespace kube-system get pod "$new" -o jsonpath='{.status.containerStatuses[0].restartCount}')" 0
    expect_equal "the API server's address" "$(getent_in pod kubernetes.default)" "$KUBERNETES_SERVICE"
}
