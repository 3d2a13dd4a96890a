# shellcheck shell=bash
# Modes: nftables
# What the API server makes of our manifests and policies, by dry run: its version may know other rules than ours.

# dry_run PART: every object of manifests/PART, in a namespace that is there; no Namespace of ours has to be made.
dry_run() {
    kubectl create -k "$HERE/../../manifests/$1" --dry-run=client -o json |
        jq --arg namespace "$namespace" 'if .kind == "List" then .items[] else . end | select(.kind != "Namespace")
            | if .metadata.namespace then .metadata.namespace = $namespace else . end' |
        kubectl apply --dry-run=server -o name --filename -
}

test_the_api_server_takes_every_manifest() {
    local taken part
    for part in base host-network taint cleanup; do
        taken=$(dry_run "$part") || fail "manifests/$part is refused"
        grep -q '^daemonset.apps/' <<< "$taken" || fail "manifests/$part has no DaemonSet: $taken"
    done
    expect_equal "what a dry run has made" "$(k get daemonsets,deployments,serviceaccounts -o name | grep nodestub)" ""
}
