//! Who follows the pages: what a reader has before a page, and the few blocks that no reader here can run.

use super::page::Block;

/// The page whose blocks of `sh` are run by `tests/e2e/src/tutorial.rs`.
pub(super) const ON_THE_NODE: &str = "docs/tutorial.md";

/// Programs, or commands of programs, of which a stand-in is run; and why.
pub(super) const STAND_INS: [(&str, &str); 13] = [
    ("aws", "a cloud's"),
    ("az", "a cloud's"),
    ("cargo", "CI runs the project's tasks by themselves"),
    ("cosign", "a registry's"),
    ("crane", "a registry's"),
    ("docker", "a container engine's"),
    ("gcloud", "a cloud's"),
    ("gh", "a cloud's"),
    ("helm diff", "a plugin"),
    ("kind", "a container engine's"),
    ("kubectl logs", "no kubelet has logs"),
    ("terraform", "a cloud's"),
    ("vault", "a server's"),
];

/// Blocks that are followed and not run: how they begin, and why.
pub(super) const EXCEPTIONS: [(&str, &str, &str); 2] = [
    (
        "docs/installation.md",
        "kubectl idtoken explain NAME",
        "the words in capitals stand for names",
    ),
    (
        "docs/kubectl-idtoken.md",
        "kubectl idtoken try",
        "the services are on the Internet: ctl/tests/try_target.rs has services to call",
    ),
];

/// A reader of a page.
pub(super) struct Reader {
    /// Follows only the blocks under these headings; empty for all.
    pub(super) only: &'static [&'static str],
    /// Follows all but the blocks under these headings.
    pub(super) without: &'static [&'static str],
    /// What is done before.
    pub(super) before: &'static [&'static str],
}

/// Follows all blocks of a page after these commands.
pub(super) const fn after(before: &'static [&'static str]) -> Reader {
    Reader {
        only: &[],
        without: &[],
        before,
    }
}

/// Of every page that [`READERS`] does not name.
const WITH_NOTHING: [Reader; 1] = [after(&[])];

/// The operator's kinds and rights.
const INSTALLED: &str = "command kubectl apply --server-side -f config/install.yaml
command kubectl create namespace shop";
/// The request of the examples, served.
const SERVED: &str = "command kubectl apply -f examples/grant.yaml -f examples/idtokenrequest.yaml
command kubectl wait idtr/billing -n shop --for=condition=Ready --timeout=2m";
/// Values for a release.
const VALUES: &str = "echo 'image: {repository: registry.example.com/idtoken-operator}' >values.yaml";
/// A release with these values.
const RELEASED: &str = "command helm install idtoken-operator charts/idtoken-operator -n idtoken-system --create-namespace --values values.yaml";
/// The request of the demo is granted, and another is not.
const DENIED: &str = r#"command kubectl apply -f examples/demo/idtokenrequest.yaml
command kubectl idtoken grant billing -n shop | command kubectl apply -f -
sed -e 's/name: billing/name: denied/' -e 's/billing.example/other.example/' examples/demo/idtokenrequest.yaml | command kubectl apply -f -
command kubectl wait idtr/denied -n shop --timeout=2m --for=jsonpath='{.status.conditions[?(@.type=="Ready")].reason}'=NotGranted"#;
/// What a leader would write: the operator of these tests runs outside of the cluster, and elects none.
const LED: &str = r#"command kubectl apply -f - <<END
{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {name: idtoken-operator, namespace: idtoken-system},
 spec: {holderIdentity: operator_1, leaseDurationSeconds: 3600, renewTime: "$(date -u +%FT%T.000000Z)"}}
END"#;
/// What the Job of examples/try/try.yaml does, and its controller. Its grants are in a ConfigMap, which the operator of these tests does not read.
const JOB: &str = r#"(
  until command kubectl get job/example -n shop; do sleep 1; done
  command kubectl apply -f examples/grant.yaml
  command kubectl get configmap/example -n shop -o 'jsonpath={.data.idtokenrequest\.yaml}' | command kubectl apply --server-side -f -
  now=$(date -u +%FT%TZ)
  command kubectl patch job/example -n shop --subresource=status --type=merge -p '{"status": {"succeeded": 1,
    "startTime": "'"$now"'", "completionTime": "'"$now"'",
    "conditions": [{"type": "SuccessCriteriaMet", "status": "True"}, {"type": "Complete", "status": "True"}]}}'
) &"#;

/// The pages whose readers have something before, or follow different blocks.
const READERS: [(&str, &[Reader]); 14] = [
    ("charts/idtoken-operator/README.md", &[after(&[VALUES])]),
    (
        "deploy/argocd/README.md",
        &[after(&[
            "command kubectl create namespace argocd; command kubectl create configmap argocd-cm -n argocd; cd deploy/argocd",
        ])],
    ),
    (
        "docs/authorization.md",
        &[after(&[
            VALUES,
            "mkdir manifests grants; cp examples/idtokenrequest.yaml manifests; cp examples/grant.yaml grants
echo 'grants: [{name: billing, from: [{namespace: shop}], to: [{serviceAccounts: [caller@my-project.iam.gserviceaccount.com],
  audiences: [https://billing-x.run.app]}]}]' >>values.yaml",
        ])],
    ),
    (
        "docs/connecting-services.md",
        &[after(&[
            "command kubectl create namespace argocd; command kubectl create secret generic argocd-notifications-secret -n argocd",
        ])],
    ),
    (
        "docs/installation.md",
        &[
            Reader {
                without: &["Without Helm"],
                ..after(&[])
            },
            Reader {
                only: &["Installation", "Without Helm"],
                ..after(&["echo 'replicaCount: 2' >values.yaml"])
            },
        ],
    ),
    (
        "docs/kubectl-idtoken.md",
        &[after(&[
            INSTALLED,
            SERVED,
            LED,
            "mkdir manifests; cp examples/grant.yaml examples/idtokenrequest.yaml manifests",
        ])],
    ),
    (
        "docs/migrating.md",
        &[after(&[
            INSTALLED,
            "command kubectl apply -f examples/grant.yaml
sed -e '/^spec:/a\\  target: {name: billing-idtoken}' examples/idtokenrequest.yaml | command kubectl apply -f -
command kubectl wait idtr/billing -n shop --for=condition=Ready --timeout=2m
command kubectl get secret billing-idtoken -n shop -o json |
  jq '{apiVersion, kind, metadata: {name: \"billing-token\", namespace: \"shop\"}, data: {token: .data.token}}' | command kubectl apply -f -",
        ])],
    ),
    ("docs/operations.md", &[after(&[VALUES, RELEASED])]),
    ("docs/ready-but-401.md", &[after(&[INSTALLED, SERVED])]),
    ("docs/reasons.md", &[after(&[INSTALLED, DENIED])]),
    (
        "docs/releasing.md",
        &[after(&[
            "echo a >a; sha256sum a >SHA256SUMS
ssh-keygen -q -t ed25519 -N '' -f key; ssh-keygen -q -Y sign -f key -n idtoken-operator-release SHA256SUMS
echo \"releases@idtoken.dev $(cat key.pub)\" >allowed_signers",
        ])],
    ),
    (ON_THE_NODE, &[after(&[JOB])]),
    (
        "docs/upgrade-policy.md",
        &[after(&[VALUES, RELEASED, "ln -s charts/idtoken-operator OLDER-CHART"])],
    ),
    ("examples/README.md", &[after(&[INSTALLED])]),
];

/// All pages that [`READERS`] names.
pub(super) fn named() -> impl Iterator<Item = &'static str> {
    READERS.iter().map(|(page, _)| *page)
}

/// Who follows a page.
pub(super) fn readers(page: &str) -> &'static [Reader] {
    let of_page = READERS.iter().find(|(name, _)| *name == page);
    of_page.map_or(&WITH_NOTHING, |(_, readers)| readers)
}

impl Reader {
    /// The commands that are run before.
    pub(super) fn commands_before(&self) -> String {
        self.before.join("\n")
    }

    /// Whether this reader runs a block of the page.
    pub(super) fn runs(&self, page: &str, block: &Block) -> bool {
        let under = |heading: &&str| block.heading == *heading;
        (self.only.is_empty() || self.only.iter().any(under))
            && !self.without.iter().any(under)
            && !is_on_the_node(page, block)
            && exception(page, block).is_none()
    }
}

/// Whether the end-to-end tests run the block.
pub(super) fn is_on_the_node(page: &str, block: &Block) -> bool {
    page == ON_THE_NODE && block.language == "sh"
}

/// Why the block is not run.
pub(super) fn exception(page: &str, block: &Block) -> Option<&'static str> {
    let mut all = EXCEPTIONS.iter();
    let (_, _, why) = all.find(|(of, start, _)| *of == page && block.text.starts_with(start))?;
    Some(why)
}
