# shellcheck shell=bash
# The webhook's certificates rotate under load with `failurePolicy: Fail`, and no call is lost: `webhook/tests/rotation`
# on this control plane. One rotation each; ten with NODESTUB_FULL=1.

# rotation TEST: and the figures of its last lines.
rotation() {
    local output=$CLUSTER_DIR/rotation status=0 line
    on_node env "NODESTUB_KUBECONFIG=$CLUSTER_DIR/admin.kubeconfig" "$ROTATION_TESTS" --exact "$1" --nocapture > "$output" 2>&1 ||
        status=$?
    cat "$output"
    while IFS= read -r line; do
        figure "$line"
    done < <(grep -E ' CAs and .* leaves in |: mended after |, and back: ' "$output" || true)
    return "$status"
}

test_certificates_rotate_under_load() {
    rotation loses_no_call_to_ten_rotations
}

test_certificates_of_three_replicas_rotate_from_an_empty_namespace() {
    rotation loses_no_call_with_three_replicas_that_start_at_once_in_an_empty_namespace
}

test_certificates_rotate_though_the_leader_is_killed() {
    rotation loses_no_call_with_the_leader_killed_after_each_rotation
}

test_certificates_rotate_with_clocks_apart() {
    rotation loses_no_call_with_clocks_apart_by_a_quarter_of_the_leafs_life
}

test_certificates_survive_a_deleted_secret() {
    rotation loses_no_call_with_the_secret_deleted_in_the_middle
}

test_certificates_survive_garbage() {
    rotation loses_no_call_to_garbage_in_the_secret_and_mends_it
}

test_an_emptied_bundle_is_mended() {
    rotation mends_a_bundle_that_a_manifest_has_emptied_and_keeps_its_certificate
}

test_certificates_of_cert_manager_wait_for_trust() {
    rotation provided::serves_what_cert_manager_makes_once_the_api_server_trusts_it
}

test_certificates_that_are_provided_stay_the_last_good() {
    rotation provided::serves_what_somebody_provides_and_keeps_the_last_good_of_it
}

test_certificates_are_served_while_the_api_server_is_out_of_reach() {
    rotation serves_on_while_the_api_server_is_out_of_reach_and_rotates_when_it_is_back
}
