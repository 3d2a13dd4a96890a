# shellcheck shell=bash
# The webhook on a real API server, without a node: the tests of webhook/tests/api_server, in namespaces where the API
# server reaches them at 127.0.0.1.

# on_the_api_server NAME: one of them.
on_the_api_server() {
    on_node env "NODESTUB_KUBECONFIG=$CLUSTER_DIR/admin.kubeconfig" "$API_SERVER_TESTS" --ignored --exact --nocapture "$1"
}

test_every_vector_is_stored_as_written() {
    on_the_api_server decides_every_vector_on_an_api_server_as_written
}

test_every_pod_that_is_accepted_is_accepted_injected() {
    on_the_api_server keeps_acceptable_every_pod_that_the_api_server_accepts
}

test_the_shipped_registration_never_stops_a_pod() {
    on_the_api_server never_stops_a_pod_from_being_created
}

test_facts_are_found_and_followed() {
    on_the_api_server finds_facts_in_the_cluster_follows_them_and_tells_resolvers
    # What it told them is of no cluster that the next tests know.
    kubectl --namespace kube-system delete configmap nodestub-facts --ignore-not-found > /dev/null
}

test_a_policy_decides_as_the_webhook_does_or_is_refused_by_name() {
    on_the_api_server policy::decides_by_policy_as_the_webhook_does_or_refuses_by_name
}
