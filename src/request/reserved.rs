//! Pure: names, labels and annotations by which other software recognizes its own Secrets or takes orders from a Secret. A template that sets
//! them would give such orders with the operator's rights, so they are rejected. `docs/security.md` has the list.
//!
//! Types need no list: the few that a template may choose mean nothing to other software.

/// Prefixes of names, and who trusts them.
const NAMES: [(&str, &str); 1] = [("sh.helm.release.", "Helm")];

/// Keys of labels, the value where only that one is trusted, and who trusts them.
const LABELS: [(&str, Option<&str>, &str); 6] = [
    ("owner", Some("helm"), "Helm"),
    ("argocd.argoproj.io/secret-type", None, "Argo CD"),
    ("istio/multiCluster", None, "Istio"),
    ("grafana_dashboard", None, "Grafana's sidecar"),
    ("grafana_datasource", None, "Grafana's sidecar"),
    ("management.cattle.io/project-scoped-secret", None, "Rancher"),
];

/// Domains of labels and annotations, with their subdomains, and who trusts them.
const DOMAINS: [(&str, &str); 5] = [
    ("sealedsecrets.bitnami.com", "Sealed Secrets"),
    ("cert-manager.io", "cert-manager"),
    ("external-secrets.io", "External Secrets"),
    ("secrets.hashicorp.com", "Vault Secrets Operator"),
    ("cluster.x-k8s.io", "Cluster API"),
];

/// Who trusts a Secret of this name.
pub(crate) fn name_trusted_by(name: &str) -> Option<&'static str> {
    let found = NAMES.iter().find(|(prefix, _)| name.starts_with(prefix));
    found.map(|(_, software)| *software)
}

/// Who trusts a Secret with this label.
pub(crate) fn label_trusted_by(key: &str, value: &str) -> Option<&'static str> {
    let found = LABELS
        .iter()
        .find(|(label, wanted, _)| *label == key && wanted.is_none_or(|wanted| wanted == value));
    found
        .map(|(.., software)| *software)
        .or_else(|| domain_trusted_by(key))
}

/// Who trusts a Secret with an annotation, or a label, of this key's domain.
pub(crate) fn domain_trusted_by(key: &str) -> Option<&'static str> {
    let (prefix, _) = key.split_once('/')?;
    let found = DOMAINS.iter().find(|(domain, _)| is_below(prefix, domain));
    found.map(|(_, software)| *software)
}

/// Whether `prefix` is `domain` or a subdomain of it.
pub(crate) fn is_below(prefix: &str, domain: &str) -> bool {
    prefix
        .strip_suffix(domain)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_trust_is_found_and_what_is_near_it_is_not() {
        for (name, expected) in [
            ("sh.helm.release.v1.app.v1", Some("Helm")),
            ("sh.helm", None),
            ("my.sh.helm.release.v1.app.v1", None),
        ] {
            assert_eq!(name_trusted_by(name), expected, "{name}");
        }
        for (key, value, expected) in [
            ("owner", "helm", Some("Helm")),
            ("owner", "team-a", None),
            ("owners", "helm", None),
            ("argocd.argoproj.io/secret-type", "cluster", Some("Argo CD")),
            ("argocd.argoproj.io/instance", "app", None),
            (
                "sealedsecrets.bitnami.com/sealed-secrets-key",
                "active",
                Some("Sealed Secrets"),
            ),
            ("acme.cert-manager.io/x", "", Some("cert-manager")),
            ("not-cert-manager.io/x", "", None),
            ("cert-manager.io", "", None),
        ] {
            assert_eq!(label_trusted_by(key, value), expected, "{key}");
        }
        assert_eq!(
            domain_trusted_by("cert-manager.io/allow-direct-injection"),
            Some("cert-manager")
        );
        assert_eq!(
            domain_trusted_by("argocd.argoproj.io/compare-options"),
            None,
            "about the Secret alone"
        );
    }

    #[test]
    fn the_list_is_documented() {
        let page = include_str!("../../docs/security.md");
        let (_, list) = page
            .split_once("### What other software trusts")
            .expect("the section");
        let names = NAMES
            .iter()
            .map(|(prefix, software)| (format!("`{prefix}*`"), software));
        let labels = LABELS.iter().map(|(key, value, software)| match value {
            Some(value) => (format!("`{key}: {value}`"), software),
            None => (format!("`{key}`"), software),
        });
        let domains = DOMAINS
            .iter()
            .map(|(domain, software)| (format!("`{domain}/`"), software));
        for (entry, software) in names.chain(labels).chain(domains) {
            let row = list.lines().find(|line| line.contains(&entry));
            assert!(
                row.is_some_and(|row| row.contains(software)),
                "{entry} of {software}"
            );
        }
    }
}
