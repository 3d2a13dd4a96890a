# shellcheck shell=bash
# Modes: nftables
# The webhook of an installed Nodestub: whatever becomes of it, in every place where it may run, and by the README. The mode
# of kube-proxy has no part in it.

# shellcheck source=tests/cluster/install.sh
source "$HERE/install.sh"

test_no_webhook_that_is_dead_slow_or_wrong_stops_a_pod() {
    local calls counted spared before
    prepare
    install
    new_namespace "$namespace-in" nodestub.io/inject=enabled
    namespace=$namespace-in
    wait_for "$PATIENCE" "an injected dry run" is_injecting

    # A dry run changes nothing.
    before=$(everything)
    is_injecting > /dev/null
    expect_equal "what there is after a dry run" "$(everything)" "$before"

    # Selectors and conditions spare what need not come.
    calls=$(decisions)
    counted=$(of_the_api_server apiserver_admission_webhook_request_total .nodestub.io)
    spared=$(of_the_api_server apiserver_admission_match_condition_exclusions_total .nodestub.io)
    k run out --image=nodestub.test/asker:1 --labels nodestub.io/inject=disabled --dry-run=server > /dev/null
    k run out --image=nodestub.test/asker:1 --annotations nodestub.io/inject=disabled --dry-run=server > /dev/null
    k run out --image=nodestub.test/asker:1 --overrides '{"spec": {"dnsPolicy": "Default"}}' --dry-run=server > /dev/null
    k run out --image=nodestub.test/asker:1 --overrides '{"spec": {"hostNetwork": true}}' --dry-run=server > /dev/null
    k run out --image=nodestub.test/asker:1 --overrides '{"spec": {"nodeSelector": {"kubernetes.io/os": "windows"}}}' --dry-run=server > /dev/null
    kubectl -n default run out --image=nodestub.test/asker:1 --dry-run=server > /dev/null
    expect_equal "calls for pods that need none" "$(($(decisions) - calls))" 0
    expect_equal "the same, as the API server counts them" \
        "$(($(of_the_api_server apiserver_admission_webhook_request_total .nodestub.io) - counted))" 0
    # Of the six, two are spared by the selectors.
    expect_equal "calls that conditions spared" \
        "$(($(of_the_api_server apiserver_admission_match_condition_exclusions_total .nodestub.io) - spared))" 4
    is_injecting > /dev/null
    counted=$(($(of_the_api_server apiserver_admission_webhook_request_total .nodestub.io) - counted))
    ((counted >= 1)) || fail "the API server counts no call where there is one"
    # Once, and once more because the first changed it, at most.
    calls=$(($(decisions) - calls))
    ((calls >= 1)) || fail "a call that must come did not come"

    asker good
    expect_equal "dnsPolicy" "$(policy_of good)" None
    # In the words of the API server's own audit log.
    expect_equal "the audit annotations" "$(audited good)" \
        "injected $(k get pod good -o jsonpath='{.metadata.annotations.nodestub\.io/revision}')"

    webhooks STOP
    left_as_it_is slow "context deadline exceeded"
    webhooks CONT
    wait_for "$PATIENCE" "an injected dry run" is_injecting

    # The webhook would mend it at once: so it is told that somebody else fills it in.
    certificates_mode provided
    wait_for "$PATIENCE" "an injected dry run" is_injecting
    # A replica that is not trusted says that it is not ready, and is asked no more; here it must be asked.
    publish_unready true
    "$OUR_PROGRAMS/nodestub-webhook" certificates --folder "$INSTALL/others" > /dev/null
    trust "$(base64 -w0 "$INSTALL/others/ca.crt")"
    is_not_injecting() { ! is_injecting; }
    wait_for "$PATIENCE" "the API server to hear of another CA" is_not_injecting
    left_as_it_is distrusted "x509: certificate signed by unknown authority"
    publish_unready false
    certificates_mode self
    wait_for "$PATIENCE" "an injected dry run" is_injecting

    kubectl -n "$SYSTEM" scale deployment nodestub-webhook --replicas 0 > /dev/null
    # Those that have ended by themselves meanwhile are as dead.
    webhooks KILL || true
    asker dead
    expect_equal "dnsPolicy while the webhook is dead" "$(policy_of dead)" ClusterFirst
    kubectl -n "$SYSTEM" scale deployment nodestub-webhook --replicas 2 > /dev/null
    wait_for "$PATIENCE" "an injected dry run" is_injecting

    local pod
    for pod in good slow distrusted dead; do
        expect_equal "the API server's address in $pod" "$(getent_in "$pod" kubernetes.default)" "$KUBERNETES_SERVICE"
    done
}

test_the_readme_leads_from_nothing_to_an_injected_pod() {
    local desk=$INSTALL/desk
    prepare
    mkdir -p "$desk/target/release" "$desk/bin"
    ln -s "$OUR_PROGRAMS/nodestub-resolver" "$INSTALL/nodestub-webhook" "$desk/target/release/"
    mkdir "$desk/tests"
    ln -s "$(realpath "$HERE")" "$desk/tests/cluster"
    ln -s "$(realpath "$HERE/../../manifests")" "$desk/manifests"
    make_image docker.io/library/busybox:1.37 --program "$BUSYBOX:/bin/busybox" --link busybox:/bin/sh \
        --link busybox:/bin/cat --link busybox:/bin/sleep --link busybox:/bin/nslookup
    # The cluster is there; what `kind` would have its nodes import, ours does.
    cat > "$desk/bin/kind" << END
#!/bin/sh -e
case "\$1 \$2" in
    "create cluster") ;;
    "load image-archive") exec ctr --address $CONTAINERD_SOCKET --namespace k8s.io images import --digests=false \
        --snapshotter $(snapshotter) "\$3" ;;
    *) exit 1 ;;
esac
END
    printf '#!/bin/sh\nexec %q --kubeconfig %q "$@"\n' "$(program kubectl)" "$CLUSTER_DIR/admin.kubeconfig" > "$desk/bin/kubectl"
    chmod +x "$desk/bin/"*
    namespaces+=(shop)
    on_node env --chdir="$desk" PATH="$desk/bin:$PATH" "$(realpath "$HERE/../readme")" --cluster "$(realpath "$HERE/../../README.md")"
}

test_the_webhook_serves_from_the_nodes_network_where_pods_cannot_be_reached() {
    prepare
    install host-network
    expect_equal "the address of the webhook" \
        "$(kubectl -n "$SYSTEM" get pods -l app.kubernetes.io/name=nodestub-webhook -o jsonpath='{.items[*].status.podIP}')" "$NODE_ADDRESS"
    new_namespace "$namespace-in" nodestub.io/inject=enabled
    namespace=$namespace-in
    wait_for "$PATIENCE" "an injected dry run" is_injecting
    asker pod
    expect_equal "dnsPolicy" "$(policy_of pod)" None
    expect_equal "the API server's address" "$(getent_in pod kubernetes.default)" "$KUBERNETES_SERVICE"
}

# servers_of FALLBACK: the nameservers that a pod which asks for it would get.
servers_of() {
    k run probe --image=nodestub.test/asker:1 --annotations "nodestub.io/fallback=$1" --dry-run=server -o json |
        jq -r '.spec.dnsConfig.nameservers | join(" ")'
}

test_pods_do_without_a_second_nameserver_while_every_node_reports_that_it_fails_open() {
    local pod
    prepare
    install
    new_namespace "$namespace-in" nodestub.io/inject=enabled
    namespace=$namespace-in
    wait_for "$PATIENCE" "an injected dry run" is_injecting
    does_without() { [[ $(servers_of auto) == "$LOCAL_ADDRESS" ]]; }
    wait_for "$PATIENCE" "the webhook to hear of fail-open" does_without
    expect_equal "nameservers without a fallback" "$(servers_of none)" "$LOCAL_ADDRESS"
    expect_equal "nameservers of those who do not ask" "$(servers_of cluster)" "$LOCAL_ADDRESS $CLUSTER_DNS"

    # They are right to: while no resolver is there at all, the pod resolves.
    k run alone --image=nodestub.test/asker:1 --annotations nodestub.io/fallback=auto --command -- sleep 3600 > /dev/null
    k wait --for=condition=Ready pod/alone --timeout="${PATIENCE}s" > /dev/null
    expect_equal "nameservers" "$(nameservers alone)" "$LOCAL_ADDRESS"
    kubectl -n kube-system delete daemonset nodestub-resolver --cascade=foreground --timeout=60s > /dev/null
    expect_equal "resolvers that run" "$(on_node pgrep --full '^/nodestub-resolver')" ""
    expect_equal "the API server's address without a resolver" "$(getent_in alone kubernetes.default)" "$KUBERNETES_SERVICE"
    expect_equal "an address outside without a resolver" "$(getent_in alone www.example.com)" 192.0.2.10

    # Nobody reports any more: pods are left as they are, for no node has a ready resolver.
    is_left_alone() { [[ $(k run probe --image=nodestub.test/asker:1 --dry-run=server -o json | jq -r .spec.dnsPolicy) == ClusterFirst ]]; }
    wait_for "$PATIENCE" "the webhook to miss the resolvers" is_left_alone
}

test_a_node_is_open_for_pods_once_its_resolver_is_ready() {
    local taint=nodestub.io/not-ready
    prepare
    # As a kubelet registers a new node.
    kubectl taint node "$NODE_NAME" "$taint=:NoSchedule" > /dev/null
    install taint
    is_lifted() { [[ -z $(kubectl get node "$NODE_NAME" -o json | jq -r '.spec.taints[]? | select(.key == "'"$taint"'")') ]]; }
    wait_for "$PATIENCE" "the taint to be taken off" is_lifted
    asker pod
    expect_equal "the API server's address" "$(getent_in pod kubernetes.default)" "$KUBERNETES_SERVICE"
}
