# shellcheck shell=bash
# Where `run --here` does nothing: this control plane is somebody else's cluster here, with what somebody else may have. Of ours
# there is nothing in it yet: webhook.sh, which leaves a namespace nodestub-system, comes later.

readonly OTHERS=$CLUSTER_DIR/others.kubeconfig

after() {
    kubectl -n kube-system delete configmap/nodestub-facts daemonset/node-local-dns --ignore-not-found > /dev/null 2>&1
    kubectl delete mutatingwebhookconfiguration nodestub --ignore-not-found > /dev/null
    rm -f "$OTHERS"
}

# run_here [CONTEXT]: with the kubeconfig $config; what it prints, and its status at the end.
run_here() {
    on_node env ${config:+"KUBECONFIG=$config"} "$HERE/run" --here "$@" 2>&1 || echo "status $?"
}

# refuses WORDS [CONTEXT]: it says so (a `*` between words: whatever), fails, and makes no namespace.
refuses() {
    local before said
    before=$(kubectl get namespaces -o name)
    said=$(run_here "${@:2}")
    # shellcheck disable=SC2053 # words may hold a pattern
    [[ $said == *$1* && $said == *"status 1" ]] || fail "it does not say ${1@Q}: $said"
    # Those of tests before may go meanwhile.
    expect_equal "what it made" "$(comm -13 <(sort <<< "$before") <(kubectl get namespaces -o name | sort))" ""
}

# others COMMAND...: changes the kubeconfig of somebody else.
others() {
    on_node "$(program kubectl)" --kubeconfig "$OTHERS" config "$@" > /dev/null
}

test_here_runs_only_where_it_is_told_and_can_see() {
    local config="" context
    context=$(kubectl config current-context)
    refuses "which context"
    refuses "KUBECONFIG is not set" "$context"
    config=$OTHERS
    cp "$CLUSTER_DIR/admin.kubeconfig" "$OTHERS"
    refuses "which context"
    refuses "has no context 'production'" production
    # Nobody listens there.
    others set-cluster "$(kubectl config view -o jsonpath='{.clusters[0].name}')" --server "https://$NODE_ADDRESS:1"
    refuses "it does not answer" "$context"
    # Somebody who may do nothing.
    cp "$CLUSTER_DIR/admin.kubeconfig" "$OTHERS"
    others set-context "$context" --user nobody
    others set-credentials nobody --token "$(k create token default)"
    refuses "it cannot be seen whether one is" "$context"
}

test_here_leaves_alone_a_cluster_that_has_a_nodestub_or_another_cache() {
    local config=$CLUSTER_DIR/admin.kubeconfig context
    context=$(kubectl config current-context)
    kubectl label namespace "$namespace" nodestub.io/inject=enabled > /dev/null
    refuses "a namespace has opted in, whose pods would be changed:*namespace/$namespace" "$context"
    kubectl label namespace "$namespace" nodestub.io/inject- node-local-dns-injection=enabled > /dev/null
    refuses "a namespace has opted in, whose pods would be changed:*namespace/$namespace" "$context"
    kubectl apply --filename - > /dev/null << 'YAML'
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: node-local-dns, namespace: kube-system}
spec:
  selector: {matchLabels: {k8s-app: node-local-dns}}
  template:
    metadata: {labels: {k8s-app: node-local-dns}}
    spec: {containers: [{name: node-cache, image: example.test/none}]}
YAML
    refuses "it has a cache at the local address on each node: daemonset.apps/node-local-dns" "$context"
    # Whichever part of a Nodestub is there.
    kubectl -n kube-system create configmap nodestub-facts > /dev/null
    refuses "a Nodestub is there, or it cannot be seen whether one is: configmap/nodestub-facts" "$context"
    kubectl -n kube-system delete configmap nodestub-facts > /dev/null
    kubectl apply --filename - > /dev/null << 'YAML'
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: nodestub}
YAML
    refuses "a Nodestub is there, or it cannot be seen whether one is: mutatingwebhookconfiguration" "$context"
    kubectl -n kube-system create configmap nodestub-facts > /dev/null
    refuses "/nodestub configmap/nodestub-facts" "$context"
}
