# shellcheck shell=bash
# Modes: nftables
# Needs: images
# Needs: install
# Nodestub installed by its manifests on whatever cluster this is, seen from its pods alone: they ask their node, resolve what
# they did before, go on over a restart and a deletion, and nothing is left.

readonly INSTALL=$CLUSTER_DIR/anywhere
readonly SYSTEM=nodestub-system
# Nodes may have to fetch images first.
readonly PULL=300s
# Queries that one round of the load asks, one after the other.
readonly BATCH=20

# Overlays that name the images; on our own node they are made first.
prepare() {
    local part
    mkdir -p "$INSTALL"
    if [[ -z ${FOREIGN:-} ]]; then
        strip -o "$INSTALL/nodestub-webhook" "$CLIENT_PROGRAMS/nodestub-webhook"
        make_image "$IMAGES/resolver:1" --entrypoint '["/nodestub-resolver"]' --user 65532:65532 --program \
            "$OUR_PROGRAMS/nodestub-resolver:/nodestub-resolver:cap_net_admin,cap_net_bind_service=p"
        make_image "$IMAGES/webhook:1" --entrypoint '["/nodestub-webhook"]' --user 65532:65532 \
            --program "$INSTALL/nodestub-webhook:/nodestub-webhook"
    fi
    cp -r "$HERE/../../manifests" "$INSTALL/"
    for part in base cleanup; do
        mkdir -p "$INSTALL/$part"
        cat > "$INSTALL/$part/kustomization.yaml" << END
resources: [../manifests/$part]
images:
  - {name: nodestub-resolver, newName: $IMAGES/resolver, newTag: "1"}
  - {name: nodestub-webhook, newName: $IMAGES/webhook, newTag: "1"}
END
    done
}

# The steps of manifests/README.md, "Take it away"; once more does no harm.
take_away() {
    local one
    kubectl delete mutatingwebhookconfiguration nodestub --ignore-not-found > /dev/null
    # Our own are the only pods with the address.
    for one in "${namespaces[@]}"; do
        kubectl delete namespace "$one" --ignore-not-found --timeout=120s > /dev/null
    done
    kubectl delete -k "$INSTALL/base" --ignore-not-found --timeout=120s > /dev/null
    kubectl apply -k "$INSTALL/cleanup" > /dev/null
    # It waits while a container is still ending, and is tried again later and later.
    kubectl -n kube-system rollout status daemonset nodestub-cleanup --timeout="$PULL" > /dev/null
    kubectl delete -k "$INSTALL/cleanup" --timeout=120s > /dev/null
}

# What is left of Nodestub's objects.
left() {
    kubectl get mutatingwebhookconfigurations,clusterroles,clusterrolebindings,namespaces,all,roles,rolebindings,serviceaccounts,configmaps,poddisruptionbudgets \
        -A -l app.kubernetes.io/part-of=nodestub -o name 2> /dev/null
}

after() {
    [[ -e $INSTALL ]] || return 0
    if (($1 != 0)); then
        kubectl -n kube-system get pods -l app.kubernetes.io/part-of=nodestub -o wide
        kubectl -n kube-system logs -l app.kubernetes.io/part-of=nodestub --tail=15
        kubectl -n "$SYSTEM" get pods
        kubectl -n "$SYSTEM" logs -l app.kubernetes.io/part-of=nodestub --tail=15
    fi
    if [[ -e $INSTALL/installed ]]; then
        take_away
        [[ -z $(left) ]] || echo "not all was taken away: follow manifests/README.md, \"Take it away\": $(left)"
    fi
    rm -rf "$INSTALL"
}

# Names of Services, short and long, and one that is not.
resolved() {
    local name
    for name in kubernetes.default "kubernetes.default.svc" "$KUBERNETES_NAME" "no-such-name.$CLUSTER_DOMAIN"; do
        echo "$name $(getent_in "$1" "$name" | paste -sd ' ')"
    done
}

# page POD: the metrics of the resolver on the pod's node, through the API server.
page() {
    local node resolver
    node=$(k get pod "$1" -o jsonpath='{.spec.nodeName}')
    resolver=$(kubectl -n kube-system get pods -l app.kubernetes.io/name=nodestub-resolver --field-selector "spec.nodeName=$node" \
        -o jsonpath='{.items[0].metadata.name}')
    kubectl get --raw "/api/v1/namespaces/kube-system/pods/$resolver:9253/proxy/metrics"
}

# sum_of METRIC: of a page on standard input, over all labels.
sum_of() {
    awk -v name="$1" '$1 ~ "^"name"([{]|$)" { sum += $NF } END { print sum + 0 }'
}

is_injecting() {
    k run probe --image="$IMAGES/asker:1" --dry-run=server -o json | jq -e '.spec.dnsPolicy == "None"'
}

# start_asking POD: asks the local address in the pod, batch after batch, until stop_asking; of each batch a line tells when
# it began and how many were answered. Asked like a pod's resolver does it: a second time after two seconds.
start_asking() {
    # shellcheck disable=SC2016 # expanded in the pod
    k exec "$1" -- sh -c '
        for number in $(seq "$2"); do echo "$1 A"; done > /tmp/names
        (while [ ! -e /tmp/stop ]; do
            began=$(date +%s)
            echo "$began $(dig "@$0" +tries=2 +time=2 +noall +comments -f /tmp/names | grep -c "status: NOERROR")"
        done > /tmp/asked; touch /tmp/over) > /dev/null 2>&1 < /dev/null &' "$LOCAL_ADDRESS" "$KUBERNETES_NAME" "$BATCH"
}

# stop_asking POD: the lines go to $INSTALL/asked.
stop_asking() {
    k exec "$1" -- touch /tmp/stop
    wait_for 60 "the load to end" k exec "$1" -- test -e /tmp/over
    k exec "$1" -- cat /tmp/asked > "$INSTALL/asked"
}

# asked FROM TO WHAT: of batches begun in these seconds, how many were sent or lost.
asked() {
    awk -v from="$1" -v to="$2" -v batch="$BATCH" -v what="$3" '$1 >= from && $1 <= to { sent += batch; lost += batch - $2 }
        END { print (what == "sent" ? sent : lost) + 0 }' "$INSTALL/asked"
}

pod_time() {
    k exec "$1" -- date +%s
}

test_an_installed_nodestub_answers_over_a_restart_and_a_deletion_and_goes_without_a_trace() {
    local before seen began restarted deleted over proven outside=$namespace
    prepare
    asker plain
    before=$(resolved plain)
    grep -q "^kubernetes.default $KUBERNETES_SERVICE\$" <<< "$before" || fail "it does not resolve without us: $before"

    touch "$INSTALL/installed"
    kubectl apply -k "$INSTALL/base" > /dev/null
    kubectl -n "$SYSTEM" rollout status deployment nodestub-webhook --timeout="$PULL" > /dev/null
    kubectl -n kube-system rollout status daemonset nodestub-resolver --timeout="$PULL" > /dev/null
    new_namespace "$outside-in" nodestub.io/inject=enabled
    namespace=$outside-in
    wait_for "$PATIENCE" "an injected dry run" is_injecting
    asker pod
    expect_equal "nameservers" "$(nameservers pod | paste -sd ' ')" "$LOCAL_ADDRESS $CLUSTER_DNS"
    seen=$(page pod | sum_of coredns_dns_requests_total)
    expect_equal "what an injected pod resolves" "$(resolved pod)" "$before"
    (($(page pod | sum_of coredns_dns_requests_total) - seen >= 4)) || fail "the pod's node was not asked"
    expect_equal "an answer over TCP" "$(dig_in pod "@$LOCAL_ADDRESS" +tcp +short "$KUBERNETES_NAME")" "$KUBERNETES_SERVICE"
    is_proven() { [[ $(page pod | sum_of nodestub_fail_open_proven) != 0 ]]; }
    proven=yes
    wait_for 60 "fail-open to be seen to work" is_proven || proven=no

    start_asking pod
    sleep 2
    began=$(pod_time pod)
    kubectl -n kube-system rollout restart daemonset nodestub-resolver > /dev/null
    kubectl -n kube-system rollout status daemonset nodestub-resolver --timeout="$PULL" > /dev/null
    restarted=$(pod_time pod)
    kubectl -n kube-system delete daemonset nodestub-resolver --cascade=foreground --timeout=120s > /dev/null
    deleted=$(pod_time pod)
    expect_equal "the API server's address without a resolver" "$(getent_in pod kubernetes.default)" "$KUBERNETES_SERVICE"
    sleep 3
    stop_asking pod
    over=$(tail -n 1 "$INSTALL/asked" | cut -d ' ' -f 1)
    figure "lost over a restart of all resolvers: $(asked 0 "$restarted" lost) of $(asked 0 "$restarted" sent) in $((restarted - began)) s;" \
        "from their deletion on: $(asked "$restarted" "$over" lost) of $(asked "$restarted" "$over" sent)"
    expect_equal "lost over the restart" "$(asked 0 "$((restarted - 1))" lost)" 0
    if [[ $proven == yes ]]; then
        ((over > deleted)) || fail "nothing was asked after the deletion"
        expect_equal "lost over the deletion, where fail-open was seen to work" "$(asked "$restarted" "$over" lost)" 0
    else
        figure "fail-open was not seen to work on this node: without a resolver, pods ask their second nameserver"
    fi

    take_away
    rm "$INSTALL/installed"
    # A DaemonSet that is deleted leaves its pods a moment to end.
    nothing_is_left() { [[ -z $(left) ]]; }
    wait_for "$PATIENCE" "everything to be gone" nothing_is_left || fail "there is left: $(left)"
    new_namespace "$outside-after"
    namespace=$outside-after
    asker after
    expect_equal "nameservers afterwards" "$(nameservers after)" "$CLUSTER_DNS"
    expect_equal "names afterwards" "$(resolved after)" "$before"
    # Refused by nobody, or answered by nobody: the address leads nowhere.
    [[ -z $(dig_in after "@$LOCAL_ADDRESS" +tries=1 +time=2 +short "$KUBERNETES_NAME" 2> /dev/null | grep -v '^;') ]] ||
        fail "somebody answers at the address that was taken away"
}
