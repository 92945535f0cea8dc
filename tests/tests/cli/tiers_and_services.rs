//! What the commands say of ClusterNetworkPolicies and Services.

use expect_test::{Expect, expect};

use super::{SHOP, check};

/// The addresses of the shop, and a Service whose two backends are its database and the web pod of dev.
const WEB: &str = "\
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {nodeName: n1, containers: [{name: main, ports: [{name: sql, containerPort: 5432}]}]}
status: {podIPs: [{ip: 10.0.0.1}]}
---
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: n2}
status: {podIPs: [{ip: 10.0.0.2}]}
---
kind: Pod
metadata: {name: web, namespace: dev, labels: {app: web}}
spec: {nodeName: n2}
status: {podIPs: [{ip: 10.0.1.1}]}
---
kind: Service
metadata: {name: db, namespace: shop}
spec: {type: NodePort, clusterIPs: [10.96.0.1], ports: [{port: 80, nodePort: 30080}]}
---
kind: EndpointSlice
metadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
endpoints: [{addresses: [10.0.0.1], nodeName: n1}]
ports: [{name: '', port: 5432}]
---
kind: Service
metadata: {name: both, namespace: shop}
spec: {clusterIPs: [10.96.0.2], ports: [{port: 80}]}
---
kind: EndpointSlice
metadata: {name: both-1, namespace: shop, labels: {kubernetes.io/service-name: both}}
addressType: IPv4
endpoints: [{addresses: [10.0.0.1], nodeName: n1}, {addresses: [10.0.1.1], nodeName: n2}]
ports: [{name: '', port: 5432}]
---
kind: Node
metadata: {name: n1}
status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}
---
kind: Node
metadata: {name: n2}
status: {addresses: [{type: InternalIP, address: 192.168.0.2}]}
";

/// Lets the pods of the shop reach its database on the number that its Service has.
const WRONG_PORT: &str = "\
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Egress]
  egress:
  - {to: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: 80}]}
  - {to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: dev}}}]}
";

/// Keeps dev out of the shop, and everybody from what no NetworkPolicy isolates.
const TIERS: &str = "\
apiVersion: policy.networking.k8s.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: fence}
spec:
  tier: Admin
  priority: 10
  subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: shop}}}
  ingress:
  - name: monitoring
    action: Accept
    from: [{namespaces: {matchLabels: {kubernetes.io/metadata.name: dev}}}]
    protocols: [{tcp: {destinationPort: {number: 9090}}}]
  - {name: no dev, action: Deny, from: [{namespaces: {matchLabels: {kubernetes.io/metadata.name: dev}}}]}
---
apiVersion: policy.networking.k8s.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: floor}
spec: {tier: Baseline, priority: 0, subject: {namespaces: {}}, egress: [{action: Deny, to: [{pods: {podSelector: {matchLabels: {app: web}}}}]}]}
";

#[track_caller]
fn can(policy: &str, from: &str, to: &str, port: &str, more: &[&str], expected: Expect) {
    let asked = ["can", "-f", ".", "--from", from, "--to", to, "--port", port];
    check(&[("web.yaml", WEB), ("policy.yaml", policy)], &[&asked[..], more].concat(), "", expected);
}

#[test]
fn one_backend_is_told_like_an_end() {
    can(
        WRONG_PORT,
        "shop/web",
        "svc:shop/db",
        "80/tcp",
        &[],
        expect![[r#"
        Deny  shop/web -> svc:shop/db  80/TCP over IPv4
          service shop/db at 10.96.0.1, backend shop/db 10.0.0.1:5432; policies see the backend's port 5432/TCP, not the Service's
          egress of shop/web denies: no rule accepts it; nearest is shop/web egress[0].ports: the rule accepts 80/TCP
            isolated by shop/web
          ingress of shop/db accepts: no policy isolates it
        exit 1
    "#]],
    );
    can(
        WRONG_PORT,
        "dev/web",
        "svc:shop/db",
        "80/tcp",
        &[],
        expect![[r#"
        Accept  dev/web -> svc:shop/db  80/TCP over IPv4
          service shop/db at 10.96.0.1, backend shop/db 10.0.0.1:5432
          egress of dev/web accepts: no policy isolates it
          ingress of shop/db accepts: no policy isolates it
        exit 0
    "#]],
    );
}

#[test]
fn several_backends_are_a_table() {
    can(
        WRONG_PORT,
        "shop/web",
        "svc:shop/both",
        "80/tcp",
        &[],
        expect![[r#"
        Deny  shop/web -> svc:shop/both  80/TCP over IPv4
          MixedBackends: 1 of the 2 backends of service shop/both accept, and any may be chosen
            backend                 egress to it   its ingress
            shop/db 10.0.0.1:5432   denies         accepts
            dev/web 10.0.1.1:5432   accepts        accepts
          shop/db 10.0.0.1:5432; policies see the backend's port 5432/TCP, not the Service's
            egress of shop/web denies: no rule accepts it; nearest is shop/web egress[0].ports: the rule accepts 80/TCP
              isolated by shop/web
            ingress of shop/db accepts: no policy isolates it
        exit 1
    "#]],
    );
    can(
        WRONG_PORT,
        "node:n1",
        "ip:10.96.0.2",
        "80/tcp",
        &[],
        expect![[r#"
        Accept  node:n1 -> ip:10.96.0.2  80/TCP over IPv4
          each of the 2 backends of service shop/both accepts
            backend                 egress to it   its ingress
            shop/db 10.0.0.1:5432   -              accepts
            dev/web 10.0.1.1:5432   -              accepts
          shop/db 10.0.0.1:5432
            ingress of shop/db accepts: no policy isolates it
        exit 0
    "#]],
    );
    can(
        WRONG_PORT,
        "shop/web",
        "svc:shop/both",
        "80/tcp",
        &["-o", "json"],
        expect![[r#"
        {"from":"shop/web","to":"svc:shop/both","protocol":"TCP","port":80,"family":"IPv4","verdict":"Deny","certain":true,"reason":"MixedBackends: 1 of the 2 backends of service shop/both accept, and any may be chosen; shop/db 10.0.0.1:5432: egress of shop/web: no rule accepts it; nearest is shop/web egress[0].ports: the rule accepts 80/TCP; policies see the backend's port 5432/TCP, not the Service's","steps":[],"service":"shop/both","mixed_backends":true,"backends":[{"address":"10.0.0.1","port":5432,"pod":"shop/db","verdict":"Deny","steps":[{"direction":"egress","subject":"shop/web","verdict":"Deny","isolated_by":["shop/web"],"nearest_miss":{"policy":"shop/web","text":"egress[0].ports: the rule accepts 80/TCP"}},{"direction":"ingress","subject":"shop/db","verdict":"Accept","isolated_by":[]}]},{"address":"10.0.1.1","port":5432,"pod":"dev/web","verdict":"Accept","steps":[{"direction":"egress","subject":"shop/web","verdict":"Accept","isolated_by":["shop/web"],"accepted_by":{"policy":"shop/web","rule":1,"peer":0}},{"direction":"ingress","subject":"dev/web","verdict":"Accept","isolated_by":[]}]}]}
        exit 1
    "#]],
    );
}

#[test]
fn a_service_without_such_a_port_says_so() {
    can(
        WRONG_PORT,
        "shop/web",
        "svc:shop/both",
        "81/tcp",
        &[],
        expect![[r#"
        Deny  shop/web -> svc:shop/both  81/TCP over IPv4
          service shop/both at 10.96.0.2 has no port 81/TCP, so nothing answers; only rules without peers match it
          egress of shop/web denies: no rule accepts it; nearest is shop/web egress[1].to[0]: service shop/both is no pod, selectors match pods alone
            isolated by shop/web
        exit 1
    "#]],
    );
    can(
        WRONG_PORT,
        "shop/web",
        "svc:shop/both",
        "icmp",
        &[],
        expect![[r#"
        Deny  shop/web -> svc:shop/both  ICMP over IPv4
          service shop/both at 10.96.0.2 is only reached on its ports; only rules without peers match it
          egress of shop/web denies: no rule accepts it; nearest is shop/web egress[1].to[0]: service shop/both is no pod, selectors match pods alone
            isolated by shop/web
        exit 1
    "#]],
    );
}

#[test]
fn a_service_that_leads_nowhere_says_so() {
    let service = "kind: Service\nmetadata: {name: none, namespace: shop}\n\
                   spec: {clusterIPs: [10.96.0.3], ports: [{port: 80}]}\n";
    let policy = format!("{WRONG_PORT}---\n{service}");
    can(
        &policy,
        "shop/web",
        "svc:shop/none",
        "80/tcp",
        &[],
        expect![[r#"
            Deny  shop/web -> svc:shop/none  80/TCP over IPv4
              service shop/none at 10.96.0.3 has no backend for 80/TCP that this client would be sent to, so nothing answers; only rules without peers match it
              egress of shop/web denies: no rule accepts it; nearest is shop/web egress[0].to[0]: service shop/none is no pod, selectors match pods alone
                isolated by shop/web
            exit 1
            --- stderr
            ./policy.yaml:10: warning: Service shop/none: no EndpointSlice of it is given and it selects no pods: it counts as having no backends
        "#]],
    );
    can(
        &policy,
        "node:n1",
        "svc:shop/none",
        "80/tcp",
        &[],
        expect![[r#"
            Accept  node:n1 -> svc:shop/none  80/TCP over IPv4
              service shop/none at 10.96.0.3 has no backend for 80/TCP that this client would be sent to, so nothing answers
              policy applies to neither end
            exit 0
            --- stderr
            ./policy.yaml:10: warning: Service shop/none: no EndpointSlice of it is given and it selects no pods: it counts as having no backends
        "#]],
    );
}

#[test]
fn what_kube_proxy_may_do_is_told_with_both_ways() {
    let policy = "kind: NetworkPolicy\nmetadata: {name: db, namespace: shop}\n\
                  spec: {ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24}}]}]}\n";
    can(
        policy,
        "ip:203.0.113.7",
        "node:n2",
        "30080/tcp",
        &[],
        expect![[r#"
            Deny  ip:203.0.113.7 -> node:n2  30080/TCP over IPv4
              service shop/db at 192.168.0.2, backend shop/db 10.0.0.1:5432
              ingress of shop/db accepts: accepted by shop/db ingress[0].from[0]
                isolated by shop/db
              ingress of shop/db, if kube-proxy hides the client behind 192.168.0.2 of node n2, denies: no rule accepts it; nearest is shop/db ingress[0].from[0]: 192.168.0.2 is outside 203.0.113.0/24
                isolated by shop/db
            exit 1
        "#]],
    );
}

#[test]
fn a_rule_of_a_tier_is_told_with_its_policy_and_what_could_be_done() {
    can(
        TIERS,
        "dev/web",
        "shop/db",
        "5432/tcp",
        &[],
        expect![[r#"
        Deny  dev/web -> shop/db  5432/TCP over IPv4
          egress of dev/web accepts: no rule of a ClusterNetworkPolicy matches, and no NetworkPolicy isolates it
          ingress of shop/db denies: denied by Admin policy fence, priority 10, ingress[1].from[0] ("no dev"); no change in a NetworkPolicy can allow it
        exit 1
    "#]],
    );
    can(
        TIERS,
        "dev/web",
        "shop/db",
        "9090/tcp",
        &[],
        expect![[r#"
            Accept  dev/web -> shop/db  9090/TCP over IPv4
              egress of dev/web accepts: no rule of a ClusterNetworkPolicy matches, and no NetworkPolicy isolates it
              ingress of shop/db accepts: accepted by Admin policy fence, priority 10, ingress[0].from[0] ("monitoring"); no NetworkPolicy can deny it
            exit 0
        "#]],
    );
    can(
        TIERS,
        "shop/db",
        "dev/web",
        "80/tcp",
        &["-o", "json"],
        expect![[r#"
        {"from":"shop/db","to":"dev/web","protocol":"TCP","port":80,"family":"IPv4","verdict":"Deny","certain":true,"reason":"egress of shop/db: denied by Baseline policy floor, priority 0, egress[0].to[0]; a NetworkPolicy for the pod's egress would decide instead","steps":[{"direction":"egress","subject":"shop/db","verdict":"Deny","isolated_by":[],"denied_by":{"tier":"Baseline","policy":"floor","priority":0,"rule":0,"peer":0}},{"direction":"ingress","subject":"dev/web","verdict":"Accept","isolated_by":[]}]}
        exit 1
    "#]],
    );
}

#[test]
fn a_batch_has_the_backends_beside_the_answer() {
    let questions = [
        r#"{"from":"shop/web","to":"svc:shop/both","protocol":"TCP","port":80}"#,
        r#"{"from":"dev/web","to":"svc:shop/both","protocol":"TCP","port":80}"#,
        r#"{"from":"shop/web","to":"svc:shop/both","protocol":"UDP","port":80}"#,
        r#"{"from":"svc:shop/both","to":"shop/web","protocol":"TCP","port":80}"#,
        r#"{"from":"shop/web","to":"svc:shop/both","protocol":"TCP","port":80,"family":"IPv6"}"#,
    ];
    let files = [("web.yaml", WEB), ("policy.yaml", WRONG_PORT)];
    check(
        &files,
        &["can", "-f", ".", "--batch"],
        &questions.join("\n"),
        expect![[r#"
        {"verdict":"Deny","reason":"MixedBackends: 1 of the 2 backends of service shop/both accept, and any may be chosen; shop/db 10.0.0.1:5432: egress of shop/web: no rule accepts it; nearest is shop/web egress[0].ports: the rule accepts 80/TCP; policies see the backend's port 5432/TCP, not the Service's","service":"shop/both","mixed_backends":true,"backends":[{"address":"10.0.0.1","port":5432,"pod":"shop/db","verdict":"Deny","reason":"egress of shop/web: no rule accepts it; nearest is shop/web egress[0].ports: the rule accepts 80/TCP"},{"address":"10.0.1.1","port":5432,"pod":"dev/web","verdict":"Accept","reason":"egress of shop/web: accepted by shop/web egress[1].to[0]; ingress of dev/web: no policy isolates it"}]}
        {"verdict":"Accept","reason":"each of the 2 backends of service shop/both accepts; shop/db 10.0.0.1:5432: egress of dev/web: no policy isolates it; ingress of shop/db: no policy isolates it","service":"shop/both","mixed_backends":false,"backends":[{"address":"10.0.0.1","port":5432,"pod":"shop/db","verdict":"Accept","reason":"egress of dev/web: no policy isolates it; ingress of shop/db: no policy isolates it"},{"address":"10.0.1.1","port":5432,"pod":"dev/web","verdict":"Accept","reason":"egress of dev/web: no policy isolates it; ingress of dev/web: no policy isolates it"}]}
        {"verdict":"Deny","reason":"service shop/both has no port 80/UDP, so nothing answers; only rules without peers match it; egress of shop/web: no rule accepts it; nearest is shop/web egress[1].to[0]: service shop/both is no pod, selectors match pods alone","service":"shop/both","mixed_backends":false,"backends":[]}
        {"error":"svc:shop/both can only be a destination: ask from its pods"}
        {"error":"shop/web has no IPv6 address"}
        exit 0
    "#]],
    );
}

#[test]
fn a_matrix_has_services_where_they_are_asked_for() {
    let files = [("web.yaml", WEB), ("policy.yaml", WRONG_PORT)];
    check(
        &files,
        &["matrix", "-f", ".", "--port", "80/tcp", "--services", "-n", "shop"],
        "",
        expect![[r#"
        to \ from       dev/web   shop/db   shop/web
        shop/db         .         .         .
        shop/web        .         .         .
        svc:shop/both   .         .         M
        svc:shop/db     .         .         X

        80/TCP: . accepted 10, X denied 1
        M 1 denied, though some backends accept (MixedBackends; npolicy can says which)
        exit 0
    "#]],
    );
    let asked = ["matrix", "-f", ".", "--port", "80/tcp", "--to", "svc:shop/both", "--to", "node:n1", "-o", "json"];
    check(
        &files,
        &asked,
        "",
        expect![[r#"
        {"from":"dev/web","to":"svc:shop/both","protocol":"TCP","port":80,"verdict":"Accept"}
        {"from":"shop/db","to":"svc:shop/both","protocol":"TCP","port":80,"verdict":"Accept"}
        {"from":"shop/web","to":"svc:shop/both","protocol":"TCP","port":80,"verdict":"Deny","mixed_backends":true}
        {"from":"dev/web","to":"node:n1","protocol":"TCP","port":80,"verdict":"Accept"}
        {"from":"shop/db","to":"node:n1","protocol":"TCP","port":80,"verdict":"Accept"}
        {"from":"shop/web","to":"node:n1","protocol":"TCP","port":80,"verdict":"Deny"}
        exit 0
    "#]],
    );
    check(
        &[("shop.yaml", SHOP)],
        &["matrix", "-f", ".", "--port", "1/udp", "--services", "-n", "dev"],
        "",
        expect![[r#"
            to \ from   dev/web   shop/db   shop/web
            dev/web     .         .         .

            1/UDP: . accepted 3, X denied 0
            exit 0
            --- stderr
            note: no Service has 1/UDP
        "#]],
    );
}
