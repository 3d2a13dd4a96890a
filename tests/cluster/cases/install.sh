# shellcheck shell=bash
# Modes without NODESTUB_FULL: nftables
# Nodestub installed by its manifests alone, as manifests/README.md says, on a cluster whose DNS has entries of its own:
# pods resolve through their node, whatever becomes of its resolver.

# shellcheck source=tests/cluster/install.sh
source "$HERE/install.sh"

test_every_kind_of_workload_asks_its_node_and_resolves_what_it_did_before() {
    local outside=$namespace before after app pod ip seen name asked=0
    prepare
    teach_the_cluster_dns
    workloads | k apply --filename - > /dev/null
    k create job --from=cronjob/cron cron-1 > /dev/null
    all_running
    before=$(resolved "$(pod_of deployment)" "$outside")
    grep -q '^old.corp.test 10.96.0.1 $' <<< "$before" || fail "the rewrite does not work without us: $before"
    grep -q '^db.stub.test 192.0.2.77 $' <<< "$before" || fail "the stub domain does not work without us: $before"
    grep -q '^legacy.corp.test 192.0.2.44 $' <<< "$before" || fail "the hosts do not work without us: $before"
    grep -q '^nowhere.corp.test $' <<< "$before" || fail "there is a name that should not be: $before"

    install
    new_namespace "$outside-in" nodestub.io/inject=enabled
    # A pod without the label is as before, and stays so over a restart.
    k delete pod bare > /dev/null
    workloads | k apply --filename - > /dev/null
    all_running
    expect_equal "dnsPolicy without the label" "$(k get pod bare -o jsonpath='{.spec.dnsPolicy}')" ClusterFirst
    expect_equal "nameservers without the label" "$(nameservers bare)" "$CLUSTER_DNS"

    namespace=$outside-in
    workloads > "$INSTALL/workloads.yaml"
    k apply --filename "$INSTALL/workloads.yaml" > /dev/null
    k create job --from=cronjob/cron cron-1 > /dev/null
    all_running
    seen=$(counter coredns_dns_requests_total)
    on_node conntrack -F 2> /dev/null
    for app in $KINDS; do
        pod=$(pod_of "$app")
        ip=$(address "$pod")
        expect_equal "the mark of $app" "$(k get pod "$pod" -o jsonpath='{.metadata.annotations.nodestub\.io/status}')" injected
        expect_equal "the first nameserver of $app" "$(nameservers "$pod" | head -n 1)" "$LOCAL_ADDRESS"
        after=$(resolved "$pod" "$outside")
        asked=$((asked + $(wc -l <<< "$after")))
        # The other namespace's Service has the same name: what is short leads to the pod's own.
        expect_equal "names in $app" "$(grep -v '^web ' <<< "$after")" "$(grep -v '^web ' <<< "$before")"
        grep -q "^web $(k get service web -o jsonpath='{.spec.clusterIP}') $" <<< "$after" || fail "the short name in $app: $after"
        expect_equal "an answer over TCP in $app" "$(dig_in "$pod" +tcp +short "$KUBERNETES_NAME")" "$KUBERNETES_SERVICE"
        expect_equal "tracked queries of $app to the cluster DNS" "$(tracked "$CLUSTER_DNS" | grep "src=$ip ")" ""
    done
    expect_equal "tracked queries to the local address" "$(tracked "$LOCAL_ADDRESS")" ""
    seen=$(($(counter coredns_dns_requests_total) - seen))
    ((seen >= asked)) || fail "the resolver's counter moved by $seen while $asked names were asked for"

    # What the kubelet wrote is what was foretold.
    for name in deployment:Deployment/deployment stateful:StatefulSet/stateful daemon:DaemonSet/daemon job:Job/job \
        cron:CronJob/cron bare:Pod/bare; do
        expect_equal "resolv.conf of ${name#*:}" "$(resolv_conf "$(pod_of "${name%%:*}")")" \
            "$(explained "$INSTALL/workloads.yaml" "${name#*:}")"
    done

    # Taken away: the webhook first, then the pods, then the nodes.
    kubectl delete mutatingwebhookconfiguration nodestub > /dev/null
    k delete job job cron-1 --timeout=60s > /dev/null
    k delete pod bare > /dev/null
    k rollout restart deployment deployment > /dev/null
    k rollout restart statefulset stateful > /dev/null
    k rollout restart daemonset daemon > /dev/null
    workloads | k apply --filename - > /dev/null
    k create job --from=cronjob/cron cron-1 > /dev/null
    for name in deployment/deployment statefulset/stateful daemonset/daemon; do
        k rollout status "$name" --timeout="${PATIENCE}s" > /dev/null
    done
    expect_equal "injected pods" "$(kubectl get pods -A -o json | jq -r '.items[]
        | select(.metadata.deletionTimestamp == null and .metadata.annotations["nodestub.io/status"] == "injected") | .metadata.name')" ""
    uninstall_nodes
    all_running
    for app in $KINDS; do
        pod=$(pod_of "$app")
        expect_equal "nameservers of $app afterwards" "$(nameservers "$pod")" "$CLUSTER_DNS"
        expect_equal "names in $app afterwards" "$(resolved "$pod" "$outside" | grep -v '^web ')" "$(grep -v '^web ' <<< "$before")"
    done
    expect_equal "objects that are left" "$(kubectl get \
        mutatingwebhookconfigurations,clusterroles,clusterrolebindings,namespaces,all,roles,rolebindings,serviceaccounts,configmaps,services,poddisruptionbudgets \
        -A -l app.kubernetes.io/part-of=nodestub -o name 2> /dev/null)" ""
    expect_equal "tables that are left" "$(on_node nft list tables | grep nodestub)" ""
    expect_equal "addresses that are left" "$(on_node ip -o address show | grep -F "$LOCAL_ADDRESS")" ""
    expect_equal "devices that are left" "$(on_node ip -o link show | grep nodestub)" ""
}

# How often the container of the node's resolver was started again.
restarts() {
    kubectl -n kube-system get pods -l app.kubernetes.io/name=nodestub-resolver -o json |
        jq '[.items[].status.containerStatuses[]?.restartCount] | add // 0'
}
has_restarted() { (($(restarts) > 0)); }
is_alone() { (($(kubectl -n kube-system get pods -l app.kubernetes.io/name=nodestub-resolver -o name | wc -l) == 1)); }

# How many names the pod has looked up so far; and whether it is as many.
looked_up() {
    k exec asking -- sh -c 'wc -l < /tmp/asked'
}
goes_on() { (($(looked_up) >= $1)); }

# while_it_asks WHAT COMMAND...: the pod looks names up before, during and after the command; what it lost is counted.
while_it_asks() {
    local what=$1 from to
    shift
    from=$(looked_up)
    wait_for "$PATIENCE" "the pod to ask" goes_on "$((from + 20))"
    "$@"
    wait_for "$PATIENCE" "the pod to go on" goes_on "$(($(looked_up) + 20))"
    to=$(looked_up)
    k exec asking -- sed -n "$((from + 1)),${to}p" /tmp/asked > "$INSTALL/asked"
    expect_equal "lookups without an answer, $what" "$(grep -vE '^[0-9]+ [0-9.]+ $' "$INSTALL/asked")" ""
    figure "$what: all of $((to - from)) lookups answered, $(grep -c " $ip $" "$INSTALL/asked") by the cluster DNS itself"
}

# tracked_of ADDRESS: the entries of connection tracking for its queries, by whichever way.
tracked_of() {
    { tracked "$LOCAL_ADDRESS" && tracked "$CLUSTER_DNS"; } | grep "src=$1 " || true
}

killed() {
    on_node pkill -KILL --full '^/nodestub-resolver'
    wait_for "$PATIENCE" "the kubelet to start it again" has_restarted
    kubectl -n kube-system rollout status daemonset nodestub-resolver --timeout=150s > /dev/null
}

upgraded() {
    kubectl -n kube-system set image daemonset/nodestub-resolver resolver=nodestub.test/resolver:2 > /dev/null
    kubectl -n kube-system rollout status daemonset nodestub-resolver --timeout=150s > /dev/null
    wait_for "$PATIENCE" "the old pod to end" is_alone
}

deleted() {
    kubectl -n kube-system delete daemonset nodestub-resolver --cascade=foreground --timeout=90s > /dev/null
    expect_equal "resolvers that run" "$(on_node pgrep --full '^/nodestub-resolver')" ""
}

test_injected_pods_resolve_while_their_nodes_resolver_is_killed_upgraded_and_deleted() {
    local ip
    prepare
    make_image nodestub.test/resolver:2 --entrypoint '["/nodestub-resolver"]' --user 65532:65532 --text /version:2 --program \
        "$OUR_PROGRAMS/nodestub-resolver:/nodestub-resolver:cap_net_admin,cap_net_bind_service=p"
    install
    new_namespace "$namespace-in" nodestub.io/inject=enabled
    namespace=$namespace-in
    wait_for "$PATIENCE" "an injected dry run" is_injecting
    # Names that nobody has asked for before; the address is that of whoever asked the cluster DNS for it.
    # shellcheck disable=SC2016 # expanded in the pod
    k run asking --image=nodestub.test/asker:1 --command -- sh -c 'i=0
        while i=$((i + 1)); do
            echo "$i $(getent ahostsv4 "$i.$0." | while read -r address type _; do [ "$type" = STREAM ] && echo -n "$address "; done)" >> /tmp/asked
            sleep 0.05
        done' "who.$CLUSTER_DOMAIN" > /dev/null
    k wait --for=condition=Ready pod/asking --timeout="${PATIENCE}s" > /dev/null
    expect_equal "its mark" "$(k get pod asking -o jsonpath='{.metadata.annotations.nodestub\.io/status}')" injected
    ip=$(address asking)

    while_it_asks "killed by SIGKILL" killed
    # By now its queries pass connection tracking by, and an upgrade is no moment without a listener.
    on_node conntrack -F 2> /dev/null
    while_it_asks "upgraded to another image" upgraded
    expect_equal "tracked queries of an injected pod" "$(tracked_of "$ip")" ""
    while_it_asks "its DaemonSet deleted" deleted
    # What was not there above would have been seen: now kube-proxy takes the queries to a pod of the cluster DNS.
    [[ -n $(tracked_of "$ip") ]] || fail "nothing is tracked while the kernel sends queries on"
}
