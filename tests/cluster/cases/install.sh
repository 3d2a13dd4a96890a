# shellcheck shell=bash
# Nodestub installed by its manifests alone, as manifests/README.md says, on a cluster whose DNS has entries of its own.

readonly INSTALL=$CLUSTER_DIR/install
readonly SYSTEM=nodestub-system
# Where stub domains of the cluster DNS lead.
readonly STUB_DNS=$NODE_ADDRESS:5399
# Names that pods can resolve: of Services, short and long; outside; and by the cluster DNS's own hosts, stub domain
# and rewrite.
names_of() {
    echo "kubernetes.default kubernetes.default.svc kubernetes.default.svc.$CLUSTER_DOMAIN web web.$1 web.$1.svc.$CLUSTER_DOMAIN"
    echo "www.example.com legacy.corp.test db.stub.test old.corp.test nowhere.corp.test"
}

# Images as manifests/README.md asks for them, and an overlay that names them.
prepare() {
    local webhook=$CLIENT_PROGRAMS/nodestub-webhook
    mkdir -p "$INSTALL/overlay"
    # With its Kubernetes client, built for tests: without what is only of use to a debugger.
    strip -o "$INSTALL/nodestub-webhook" "$webhook"
    make_image nodestub.test/resolver:1 --entrypoint '["/nodestub-resolver"]' --user 65532:65532 --program \
        "$OUR_PROGRAMS/nodestub-resolver:/nodestub-resolver:cap_net_admin,cap_net_bind_service=p"
    make_image nodestub.test/webhook:1 --entrypoint '["/nodestub-webhook"]' --user 65532:65532 \
        --program "$INSTALL/nodestub-webhook:/nodestub-webhook"
    cp -r "$HERE/../../manifests" "$INSTALL/"
    local part
    for part in base cleanup host-network taint; do
        mkdir -p "$INSTALL/$part"
        cat > "$INSTALL/$part/kustomization.yaml" << END
resources: [../manifests/$part]
images:
  - {name: nodestub-resolver, newName: nodestub.test/resolver, newTag: "1"}
  - {name: nodestub-webhook, newName: nodestub.test/webhook, newTag: "1"}
END
    done
    # There is one node, and two would want its ports.
    echo 'replicas: [{name: nodestub-webhook, count: 1}]' >> "$INSTALL/host-network/kustomization.yaml"
}

# install [host-network|taint]: the steps of manifests/README.md, "Install".
install() {
    kubectl apply -k "$INSTALL/${1:-base}" > /dev/null
    # The node's resolv.conf has no search domains.
    kubectl -n "$SYSTEM" create configmap nodestub-host-searches --from-literal searches=none > /dev/null
    kubectl -n "$SYSTEM" rollout status deployment nodestub-webhook --timeout=150s > /dev/null
    kubectl -n kube-system rollout status daemonset nodestub-resolver --timeout=150s > /dev/null
}

# certificates_mode MODE: whose affair certificate and caBundle are from now on.
certificates_mode() {
    kubectl -n "$SYSTEM" set env deployment/nodestub-webhook "NODESTUB_CERTIFICATES_MODE=$1" > /dev/null
    kubectl -n "$SYSTEM" rollout status deployment nodestub-webhook --timeout=150s > /dev/null
}

# trust CA: the API server believes the webhook by it.
trust() {
    kubectl patch mutatingwebhookconfiguration nodestub --type json -p '[
        {"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": "'"$1"'"},
        {"op": "add", "path": "/webhooks/1/clientConfig/caBundle", "value": "'"$1"'"}]' > /dev/null
}

# The steps of manifests/README.md, "Take it away", after the pods were made anew.
uninstall_nodes() {
    kubectl delete -k "$INSTALL/base" --ignore-not-found --timeout=90s > /dev/null
    kubectl apply -k "$INSTALL/cleanup" > /dev/null
    kubectl -n kube-system rollout status daemonset nodestub-cleanup --timeout=90s > /dev/null
    kubectl delete -k "$INSTALL/cleanup" --timeout=60s > /dev/null
}

after() {
    if (($1 != 0)); then
        kubectl get pods -A -o wide
        kubectl -n kube-system describe pods -l app.kubernetes.io/part-of=nodestub | sed -n '/^Events/,$p'
        kubectl -n kube-system logs -l app.kubernetes.io/part-of=nodestub --tail=15
        kubectl -n "$SYSTEM" describe pods | sed -n '/^Events/,$p'
        kubectl -n "$SYSTEM" logs -l app.kubernetes.io/part-of=nodestub --tail=15
    fi
    kubectl taint node "$NODE_NAME" nodestub.io/not-ready- > /dev/null 2>&1
    # With what overlays add.
    kubectl delete -k "$INSTALL/taint" --ignore-not-found --timeout=90s > /dev/null
    kubectl delete -k "$INSTALL/cleanup" --ignore-not-found --timeout=60s > /dev/null
    if [[ -e $INSTALL/taught ]]; then
        kubectl apply --server-side --force-conflicts --filename "$HERE/cluster-dns.yaml" > /dev/null
        kubectl -n kube-system rollout restart deployment coredns > /dev/null
        kubectl -n kube-system rollout status deployment coredns --timeout=90s > /dev/null
    fi
    rm -rf "$INSTALL"
}

# A cluster DNS with hosts, a stub domain and a rewrite of its own, as people have them.
teach_the_cluster_dns() {
    local corefile
    touch "$INSTALL/taught"
    cat > "$CLUSTER_DIR/stub.Corefile" << END
stub.test:5399 {
    bind $NODE_ADDRESS
    hosts {
        192.0.2.77 db.stub.test
    }
}
END
    start_for_test stub-dns "$(program coredns)" -conf "$CLUSTER_DIR/stub.Corefile"
    corefile=$(kubectl -n kube-system get configmap coredns -o jsonpath='{.data.Corefile}')
    corefile=${corefile/    ready/    ready
    rewrite name exact old.corp.test kubernetes.default.svc.$CLUSTER_DOMAIN answer auto
    hosts {
        192.0.2.44 legacy.corp.test
        fallthrough
    \}}
    corefile+="
stub.test:53 {
    errors
    cache 30
    forward . $STUB_DNS
}"
    kubectl -n kube-system create configmap coredns --from-literal "Corefile=$corefile" --dry-run=client -o json |
        kubectl apply --server-side --force-conflicts --filename - > /dev/null
    kubectl -n kube-system rollout restart deployment coredns > /dev/null
    kubectl -n kube-system rollout status deployment coredns --timeout=90s > /dev/null
}

# workloads: one of each kind, and a Service. The CronJob's first run is started by hand.
workloads() {
    local container='{name: asker, image: "nodestub.test/asker:1", command: [sleep, "3600"]}'
    local pod="{terminationGracePeriodSeconds: 0, containers: [$container]}"
    local job="{restartPolicy: Never, terminationGracePeriodSeconds: 0, containers: [$container]}"
    cat << END
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: deployment}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: deployment}
spec:
  selector: {matchLabels: {app: deployment}}
  template:
    metadata: {labels: {app: deployment}}
    spec: $pod
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: stateful}
spec:
  serviceName: web
  selector: {matchLabels: {app: stateful}}
  template:
    metadata: {labels: {app: stateful}}
    spec: $pod
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: daemon}
spec:
  selector: {matchLabels: {app: daemon}}
  template:
    metadata: {labels: {app: daemon}}
    spec: $pod
---
apiVersion: batch/v1
kind: Job
metadata: {name: job}
spec:
  template:
    metadata: {labels: {app: job}}
    spec: $job
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: cron}
spec:
  schedule: "0 0 1 1 *"
  jobTemplate:
    spec:
      template:
        metadata: {labels: {app: cron}}
        spec: $job
---
apiVersion: v1
kind: Pod
metadata: {name: bare, labels: {app: bare}}
spec:
  terminationGracePeriodSeconds: 0
  dnsConfig: {searches: [corp.test], options: [{name: timeout, value: "2"}]}
  containers: [{name: asker, image: "nodestub.test/asker:1", command: [sleep, "3600"]}]
END
}
readonly KINDS="deployment stateful daemon job cron bare"

# pod_of APP: the pod of a workload that is there and not on its way out.
pod_of() {
    k get pods -l "app=$1" -o json |
        jq -r '[.items[] | select(.metadata.deletionTimestamp == null) | .metadata.name][0] // empty'
}

# is_running APP
is_running() {
    local name
    name=$(pod_of "$1")
    [[ -n $name ]] && k wait --for=condition=Ready "pod/$name" --timeout=1s
}

all_running() {
    local app
    for app in $KINDS; do
        wait_for "$PATIENCE" "a pod of $app" is_running "$app"
    done
}

# resolved POD: each name with its addresses, or "-" where it has none.
resolved() {
    # shellcheck disable=SC2016,SC2046 # expanded in the pod; a list of words
    k exec "$1" -- sh -c 'for name in "$@"; do
        echo "$name $(getent ahostsv4 "$name" | while read -r address rest; do echo "$address"; done | sort -u | tr "\n" " ")"
    done' _ $(names_of "$2")
}

# resolv_conf POD: without blanks at ends, and with its options in an order of ours: the kubelet's is random.
resolv_conf() {
    k exec "$1" -- cat /etc/resolv.conf | in_order
}

in_order() {
    sed 's/ *$//' | while read -r word rest; do
        [[ $word != options ]] || rest=$(tr ' ' '\n' <<< "$rest" | sort | paste -sd ' ')
        echo "$word $rest"
    done
}

# explained MANIFEST KIND/NAME: the resolv.conf that `kubectl nodestub explain` foretells.
explained() {
    on_node env "KUBECONFIG=$CLUSTER_DIR/admin.kubeconfig" "$CLIENT_PROGRAMS/kubectl-nodestub" explain --cluster \
        -n "$namespace" -f "$1" | awk -v title="$2 in namespace" '
            index($0, title) == 1 { mine = 1; next }
            /^[^ ]/ { mine = 0 }
            mine && /^  [^ ]/ { inside = ($1 == "/etc/resolv.conf:"); next }
            mine && inside && NF { sub(/^ +/, ""); print }' | in_order
}

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

# decisions: of all replicas of the webhook, since they were started.
decisions() {
    local ip
    for ip in $(kubectl -n "$SYSTEM" get pods -l app.kubernetes.io/name=nodestub-webhook -o jsonpath='{.items[*].status.podIP}'); do
        on_node curl -fsS "http://$ip:8081/metrics"
    done | awk '$1 == "nodestub_webhook_decision_duration_seconds_count" { sum += $2 } END { print sum + 0 }'
}

# of_the_api_server METRIC LABEL...: what the API server itself has counted of our webhook, with all of the labels.
of_the_api_server() {
    kubectl get --raw /metrics | awk -v metric="$1" -v labels="${*:2}" '
        index($1, metric "{") == 1 {
            many = split(labels, label, " ")
            for (i = 1; i <= many; i++) if (!index($1, label[i])) next
            sum += $NF
        }
        END { print sum + 0 }'
}

# What a dry run might have changed, with versions.
everything() {
    kubectl get configmaps,secrets,serviceaccounts,namespaces,services,daemonsets,mutatingwebhookconfigurations -A \
        -o jsonpath='{range .items[*]}{.kind} {.metadata.name} {.metadata.resourceVersion}{"\n"}{end}'
    k get pods -o name
}

# audited POD: decision and revision in the API server's audit log.
audited() {
    jq -r --arg namespace "$namespace" --arg name "$1" 'select(.objectRef.namespace == $namespace and .objectRef.name == $name)
        | .annotations | "\(.["inject.nodestub.io/decision"]) \(.["inject.nodestub.io/revision"])"' "$LOGS/audit.log"
}

# publish_unready true|false: whether the API server is led to replicas that say they are not ready.
publish_unready() {
    kubectl -n "$SYSTEM" patch service nodestub-webhook -p '{"spec": {"publishNotReadyAddresses": '"$1"'}}' > /dev/null
}

# left_as_it_is POD REASON: the API server says in its log why it went on without the webhook.
left_as_it_is() {
    local lines
    lines=$(wc -l < "$LOGS/kube-apiserver.log")
    asker "$1"
    expect_equal "dnsPolicy of $1" "$(policy_of "$1")" ClusterFirst
    tail -n "+$((lines + 1))" "$LOGS/kube-apiserver.log" | grep -F 'failing open inject.nodestub.io' | grep -qF -- "$2" ||
        fail "the API server does not say ${2@Q}: $(tail -n "+$((lines + 1))" "$LOGS/kube-apiserver.log" | grep -F nodestub | tail -n 3)"
}

# policy_of POD
policy_of() {
    k get pod "$1" -o jsonpath='{.spec.dnsPolicy}'
}

# A dry run that is injected: the API server and the webhook have heard of what was changed.
is_injecting() {
    k run probe --image=nodestub.test/asker:1 --dry-run=server -o json | jq -e '.spec.dnsPolicy == "None"'
}

# webhooks SIGNAL: to every process of the webhook.
webhooks() {
    on_node pkill "-$1" --full '^/nodestub-webhook'
}

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
