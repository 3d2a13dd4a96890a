# shellcheck shell=bash
# What the tests of an installed Nodestub share: `cases/install.sh` and `cases/install_webhook.sh` source it.

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
    tail -n "+$((lines + 1))" "$LOGS/kube-apiserver.log" | grep -F 'failing open inject.nodestub.io' | grep -F -- "$2" > /dev/null ||
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
