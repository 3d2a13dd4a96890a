# shellcheck shell=bash
# Webhook and resolver together: a namespace opts in, its pods ask their node.

# The resolver on the node, at the local address, in front of the cluster DNS.
start_resolver() {
    cat > "$CLUSTER_DIR/resolver.Corefile" << END
.:53 {
    bind $LOCAL_ADDRESS
    errors
    cache 30
    forward . __PILLAR__CLUSTER__DNS__
    prometheus 127.0.0.1:9253
    health $LOCAL_ADDRESS:8080
}
END
    start_for_test resolver /usr/bin/env "KUBE_DNS_SERVICE_HOST=$CLUSTER_DNS" "$OUR_PROGRAMS/nodestub-resolver" \
        -localip "$LOCAL_ADDRESS" -conf "$CLUSTER_DIR/resolver.Corefile" -upstreamsvc kube-dns
    wait_for 30 "the resolver" on_node curl -fsS "http://$LOCAL_ADDRESS:8080/health"
}

# The webhook on the node, called by url, for the namespaces that carry the label.
start_webhook() {
    local folder=$CLUSTER_DIR/webhook
    "$OUR_PROGRAMS/nodestub-webhook" certificates --folder "$folder" --ip 127.0.0.1 > /dev/null
    start_for_test webhook "$OUR_PROGRAMS/nodestub-webhook" --certificates "$folder" --listen 127.0.0.1:8443 \
        --admin-listen 127.0.0.1:8081 --cluster-dns "$CLUSTER_DNS" --cluster-domain "$CLUSTER_DOMAIN" \
        --namespace "$1:nodestub.io/inject=enabled" --host-search none
    wait_for 30 "the webhook" on_node curl -fsS http://127.0.0.1:8081/readyz
    kubectl apply --filename - > /dev/null << END
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: nodestub}
webhooks:
  - name: pods.nodestub.io
    clientConfig: {url: "https://127.0.0.1:8443/mutate", caBundle: $(base64 -w0 "$folder/ca.crt")}
    rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods], scope: Namespaced}]
    failurePolicy: Ignore
    timeoutSeconds: 3
    reinvocationPolicy: IfNeeded
    matchPolicy: Equivalent
    sideEffects: None
    admissionReviewVersions: [v1]
    namespaceSelector:
      matchLabels: {nodestub.io/inject: enabled}
      matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [kube-system, nodestub-system]}]
    objectSelector: {matchExpressions: [{key: nodestub.io/inject, operator: NotIn, values: [disabled]}]}
END
    # The API server reads registrations with a delay.
    # shellcheck disable=SC2317 # called by wait_for
    called() {
        kubectl --namespace "$1" run probe --image=nodestub.test/asker:1 --dry-run=server -o json |
            jq -e '.spec.dnsPolicy == "None"'
    }
    wait_for "$PATIENCE" "the API server to call the webhook" called "$1"
}

after() {
    kubectl delete mutatingwebhookconfiguration nodestub --ignore-not-found > /dev/null
}

deployment() {
    cat << END
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: asker, image: "nodestub.test/asker:1", command: [sleep, "3600"]}]
END
}

test_pods_of_a_labelled_namespace_ask_their_node_and_are_not_tracked() {
    local pod before seen rounds=10 pods
    asker untouched
    start_resolver
    new_namespace "$namespace-in" nodestub.io/inject=enabled
    start_webhook "$namespace-in"
    deployment | kubectl --namespace "$namespace-in" apply --filename - > /dev/null
    kubectl --namespace "$namespace-in" rollout status deployment/web --timeout="${PATIENCE}s" > /dev/null

    # The pods of a namespace without the label are as they were.
    expect_equal "dnsPolicy" "$(k get pod untouched -o jsonpath='{.spec.dnsPolicy}')" ClusterFirst
    on_node conntrack -F 2> /dev/null
    expect_equal "the API server's address" "$(getent_in untouched kubernetes.default)" "$KUBERNETES_SERVICE"
    tracked "$CLUSTER_DNS" | grep "src=$(address untouched) " > /dev/null ||
        fail "a query of the untouched pod should be tracked, or the next lines prove nothing"

    namespace=$namespace-in
    before=$(counter coredns_dns_requests_total)
    on_node conntrack -F 2> /dev/null
    pods=$(k get pods -l app=web -o jsonpath='{.items[*].metadata.name}')
    expect_equal "the number of pods" "$(wc -w <<< "$pods")" 2
    for pod in $pods; do
        expect_equal "dnsPolicy" "$(k get pod "$pod" -o jsonpath='{.spec.dnsPolicy}')" None
        expect_equal "the mark" "$(k get pod "$pod" -o jsonpath='{.metadata.annotations.nodestub\.io/status}')" injected
        expect_equal "the first nameserver" "$(nameservers "$pod" | head -n 1)" "$LOCAL_ADDRESS"
        for ((round = 0; round < rounds; round++)); do
            expect_equal "the API server's address" "$(getent_in "$pod" kubernetes.default)" "$KUBERNETES_SERVICE"
        done
        expect_equal "an address outside" "$(getent_in "$pod" www.example.com)" 192.0.2.10
        expect_equal "an answer over TCP" "$(dig_in "$pod" +tcp +short "$KUBERNETES_NAME")" "$KUBERNETES_SERVICE"
    done
    seen=$(($(counter coredns_dns_requests_total) - before))
    ((seen >= 2 * rounds)) || fail "the resolver's counter moved by $seen while $((2 * rounds)) names were asked for"
    expect_equal "tracked queries to the local address" "$(tracked "$LOCAL_ADDRESS")" ""
}
