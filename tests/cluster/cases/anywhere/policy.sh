# shellcheck shell=bash
# Modes: nftables
# Needs: programs
# Needs: policy
# The policy that stands for the webhook, on an API server that evaluates it: opted in, opted out, and not asked.

readonly POLICY=$CLUSTER_DIR/policy.yaml

after() {
    [[ ! -e $POLICY ]] || kubectl delete --filename "$POLICY" --ignore-not-found > /dev/null
    rm -f "$POLICY"
}

# dry_run [OPTION...]: a pod, as the API server would store it.
dry_run() {
    k run probe --image=example.test/none --dry-run=server -o json "$@"
}

is_injecting() {
    dry_run | jq -e '.spec.dnsPolicy == "None"'
}

test_a_policy_changes_pods_that_opted_in_and_no_others() {
    local outside=$namespace stored
    "$OUR_PROGRAMS/nodestub-webhook" policy --cluster-dns "$CLUSTER_DNS" --cluster-domain "$CLUSTER_DOMAIN" --host-search none > "$POLICY"
    kubectl apply --filename "$POLICY" > /dev/null
    new_namespace "$outside-in" nodestub.io/inject=enabled
    namespace=$outside-in
    wait_for "$PATIENCE" "an injected dry run" is_injecting
    stored=$(dry_run)
    expect_equal "nameservers" "$(jq -r '.spec.dnsConfig.nameservers | join(" ")' <<< "$stored")" "$LOCAL_ADDRESS $CLUSTER_DNS"
    expect_equal "search domains" "$(jq -r '.spec.dnsConfig.searches | join(" ")' <<< "$stored")" \
        "$namespace.svc.$CLUSTER_DOMAIN svc.$CLUSTER_DOMAIN $CLUSTER_DOMAIN"
    expect_equal "a pod that opted out" "$(dry_run --labels nodestub.io/inject=disabled | jq -r .spec.dnsPolicy)" ClusterFirst
    expect_equal "a pod of the host's network" "$(dry_run --overrides '{"spec": {"hostNetwork": true}}' | jq -r .spec.dnsPolicy)" ClusterFirst
    namespace=$outside
    expect_equal "a pod of another namespace" "$(dry_run | jq -r .spec.dnsPolicy)" ClusterFirst
}
