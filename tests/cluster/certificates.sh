# shellcheck shell=bash
# The cluster's certificates, by openssl, in $PKI: three authorities, and what each component shows to the others.
# What is there already is kept.

make_certificates() {
    local names="DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc"
    names+=",DNS:kubernetes.default.svc.$CLUSTER_DOMAIN,IP:127.0.0.1,IP:$NODE_ADDRESS,IP:$KUBERNETES_SERVICE"

    authority ca kubernetes
    authority etcd-ca etcd-ca
    authority front-proxy-ca front-proxy-ca

    certificate etcd etcd-ca /CN=etcd serverAuth,clientAuth "DNS:localhost,IP:127.0.0.1"
    certificate apiserver-etcd-client etcd-ca /CN=kube-apiserver clientAuth
    certificate apiserver ca /CN=kube-apiserver serverAuth "$names"
    certificate apiserver-kubelet-client ca /O=system:masters/CN=kube-apiserver-kubelet-client clientAuth
    certificate front-proxy-client front-proxy-ca /CN=front-proxy-client clientAuth
    certificate admin ca /O=system:masters/CN=kubernetes-admin clientAuth
    certificate controller-manager ca /CN=system:kube-controller-manager clientAuth
    certificate scheduler ca /CN=system:kube-scheduler clientAuth
    certificate kube-proxy ca /CN=system:kube-proxy clientAuth
    certificate kubelet ca "/O=system:nodes/CN=system:node:$NODE_NAME" clientAuth
    certificate kubelet-serving ca "/O=system:nodes/CN=system:node:$NODE_NAME" serverAuth \
        "DNS:$NODE_NAME,IP:$NODE_ADDRESS,IP:127.0.0.1"

    # Signs service accounts' tokens.
    if [[ ! -s $PKI/sa.pub ]]; then
        openssl genrsa -out "$PKI/sa.key" 2048 2> /dev/null
        openssl rsa -in "$PKI/sa.key" -pubout -out "$PKI/sa.pub" 2> /dev/null
    fi
}

# authority FILE NAME
authority() {
    [[ ! -s $PKI/$1.crt ]] || return 0
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$PKI/$1.key" -subj "/CN=$2" \
        -days 3650 -addext "keyUsage=critical,keyCertSign,cRLSign,digitalSignature" -out "$PKI/$1.crt" 2> /dev/null
}

# certificate FILE AUTHORITY SUBJECT USES [NAMES]
certificate() {
    [[ ! -s $PKI/$1.crt ]] || return 0
    {
        echo "basicConstraints=critical,CA:FALSE"
        echo "keyUsage=critical,digitalSignature,keyEncipherment"
        echo "extendedKeyUsage=$4"
        [[ -z ${5:-} ]] || echo "subjectAltName=$5"
    } > "$PKI/$1.ext"
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$PKI/$1.key" -subj "$3" 2> /dev/null |
        openssl x509 -req -CA "$PKI/$2.crt" -CAkey "$PKI/$2.key" -set_serial "0x$(openssl rand -hex 12)" \
            -days 3650 -extfile "$PKI/$1.ext" -out "$PKI/$1.crt" 2> /dev/null
    rm "$PKI/$1.ext"
}
