# shellcheck shell=bash
# Modes: nftables
# Real client libraries in pods that the webhook injected: names of Services, search names and outside names, before, during
# and after a resolver's death and a handover. The mode of kube-proxy has no part in it.

# shellcheck source=tests/cluster/cases/webhook.sh
source "$HERE/cases/webhook.sh"
# shellcheck source=tests/cluster/load.sh
source "$HERE/load.sh"

readonly CLIENTS=(glibc musl go c-ares node-lookup node-resolve4 java python)
# A full name of a Service, and one that needs the search list, and one that is outside.
readonly WANTED=("$KUBERNETES_NAME $KUBERNETES_SERVICE" "kubernetes.default $KUBERNETES_SERVICE" "www.example.com 192.0.2.10")

# The packages that the clients are made of: of this test only, so that others do without them.
install_client_tools() {
    local tool missing=()
    for tool in musl-gcc:musl-tools /usr/include/ares.h:libc-ares-dev node:nodejs /usr/bin/python3:python3-minimal \
        javac:openjdk-17-jdk-headless jlink:openjdk-17-jdk-headless; do
        [[ -e ${tool%%:*} ]] || command -v "${tool%%:*}" > /dev/null || missing+=("${tool##*:}")
    done
    ((${#missing[@]} == 0)) || {
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
    }
}

# client_image NAME OPTION...
client_image() {
    make_image "nodestub.test/client-$1:1" "${@:2}" --program "$BUSYBOX:/bin/busybox" --link busybox:/bin/sh \
        --link busybox:/bin/touch --link busybox:/bin/cat --link busybox:/bin/sleep --dir /tmp:1777
}

make_client_images() {
    local source=$HERE/clients made=$CLUSTER_DIR/clients file folder libz files=()
    mkdir -p "$made/tree"
    cc -O1 -Wall -Wextra -Werror -o "$made/glibc" "$source/lookup.c"
    musl-gcc -O1 -Wall -Wextra -Werror -static -o "$made/musl" "$source/lookup.c"
    cc -O1 -Wall -Wextra -Werror -o "$made/c-ares" "$source/cares.c" -lcares
    CGO_ENABLED=0 GOFLAGS=-buildvcs=false go build -trimpath -o "$made/go" "$source/lookup.go"
    for file in glibc musl c-ares go; do
        client_image "$file" --program "$made/$file:/client"
    done
    client_image node --program "$(realpath "$(command -v node)"):/node" --file "$source/lookup.js:/lookup.js"

    javac -d "$made/tree" "$source/Lookup.java"
    rm -rf "$made/tree/java"
    jlink --add-modules java.base --strip-debug --no-man-pages --no-header-files --output "$made/tree/java"
    libz=$(ldd "$made/tree/java/bin/java" | awk '$1 ~ /^libz/ { print $3 }')
    # What the runtime is linked against beside its own libraries.
    client_image java --tree "$made/tree" --program "$made/tree/java/lib/server/libjvm.so:/java/lib/server/libjvm.so" \
        ${libz:+--program "$libz:$libz"}

    # The modules that a lookup loads, and no others.
    while read -r file; do
        files+=(--file "$file:$file")
    done < <(cd / && /usr/bin/python3 -S -E -c '
import socket, sys
socket.getaddrinfo("localhost", 80)
for module in list(sys.modules.values()):
    if getattr(module, "__file__", None): print(module.__file__)' | sort -u)
    # Missed when it is not there, though nothing in it is needed.
    folder=$(/usr/bin/python3 -c 'import sys; print(next(path for path in sys.path if path.endswith("lib-dynload")))')
    client_image python --program "$(realpath /usr/bin/python3):/python" --dir "$folder" --file "$source/lookup.py:/lookup.py" "${files[@]}"
    rm -rf "$made"
}

# start_client NAME IMAGE COMMAND...: asks in a pod, until there is /tmp/stop; the lookups are its log.
start_client() {
    k apply --filename - > /dev/null << END
apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  terminationGracePeriodSeconds: 0
  restartPolicy: Never
  containers:
    - name: client
      image: nodestub.test/client-$2:1
      command: [$(printf '"%s", ' "${@:3}")]
END
}

# The whole names only: what asks for addresses without the search list.
start_clients() {
    local name all=() whole=() wanted
    for wanted in "${WANTED[@]}"; do
        all+=("${wanted% *}")
        [[ $wanted == kubernetes.default\ * ]] || whole+=("${wanted% *}")
    done
    for name in glibc musl c-ares go; do
        start_client "$name" "$name" /client /tmp/stop "${all[@]}"
    done
    start_client node-lookup node /node /lookup.js lookup /tmp/stop "${all[@]}"
    start_client node-resolve4 node /node /lookup.js resolve4 /tmp/stop "${whole[@]}"
    start_client java java /java/bin/java -cp / Lookup /tmp/stop "${all[@]}"
    start_client python python /python -S -E /lookup.py /tmp/stop "${all[@]}"
    k wait --for=condition=Ready pod --all --timeout="${PATIENCE}s" > /dev/null
}

# judge CLIENT: every lookup was right; sets $row, the longest time in each phase, in milliseconds.
judge() {
    local log=$CLUSTER_DIR/lookups wrong
    k logs "$1" > "$log"
    wrong=$(awk -v wanted="$(printf '%s\n' "${WANTED[@]}")" '
        BEGIN { count = split(wanted, lines, "\n"); for (i = 1; i <= count; i++) { split(lines[i], pair, " "); right[pair[1]] = pair[2] } }
        NF != 4 || right[$2] != $4' "$log")
    expect_equal "wrong lookups of $1" "$(head -n 3 <<< "$wrong")" ""
    # A lookup belongs to what happened while it was under way.
    row=$(awk -v killed="$killed" -v restarted="$restarted" -v began="$began" -v taken="$taken" -v client="$1" '
        {
            from = $1; to = $1 + $3 / 1000; phase = "after"
            if (to < killed) phase = "before"
            else if (from <= restarted) phase = "killed"
            else if (to >= began && from <= taken) phase = "handover"
            number[phase]++; total++
            if ($3 > longest[phase]) longest[phase] = $3
        }
        END {
            for (i = split("before killed handover after", phases, " "); i > 0; i--) if (number[phases[i]] == 0) exit 1
            printf "| %s | %d | %.1f | %.1f | %.1f | %.1f |", client, total, longest["before"] / 1000,
                longest["killed"] / 1000, longest["handover"] / 1000, longest["after"] / 1000
        }' "$log") || fail "$1 made no lookup in one of the phases"
}

test_client_libraries_resolve_before_during_and_after_a_death_and_a_handover() {
    local client killed restarted began taken row rows=() asked dead
    install_client_tools
    make_client_images
    start_resolver first
    new_namespace "$namespace-in" nodestub.io/inject=enabled
    start_webhook "$namespace-in"
    namespace=$namespace-in
    start_clients
    expect_equal "the first nameserver of a client" "$(nameservers glibc | head -n 1)" "$LOCAL_ADDRESS"
    sleep 5
    kill_resolver first
    killed=$asked
    sleep 5
    start_resolver second
    restarted=$(now_ms)
    sleep 2
    began=$(now_ms)
    take_over third second
    taken=$(now_ms)
    sleep 3
    for client in "${CLIENTS[@]}"; do
        k exec "$client" -- /bin/touch /tmp/stop
    done
    for client in "${CLIENTS[@]}"; do
        judge "$client"
        rows+=("$row")
    done
    printf 'figure: %s\n' "| client | lookups | longest before, ms | no resolver, ms | handover, ms | after, ms |" \
        "| --- | --- | --- | --- | --- | --- |" "${rows[@]}"
}
