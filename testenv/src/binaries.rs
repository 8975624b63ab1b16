//! The programs of Kubernetes, etcd and Helm, at the versions that are built.

use crate::go_module::{GoModule, GoTool};

/// The Kubernetes version that is built. What is downloaded instead is the newest published patch of the same minor version.
pub const KUBERNETES_VERSION: &str = "v1.37.2";

/// etcd and the programs of Kubernetes, at the versions in `go.mod`. A build builds only the requested ones.
pub const KUBERNETES: GoModule = GoModule {
    name: "kubernetes",
    go_mod: include_str!("../tools/kubernetes/go.mod"),
    go_sum: include_str!("../tools/kubernetes/go.sum"),
    files: &[],
    tags: "",
    // The version in `kubectl version` and at the API server's /version. Without it clients see v0.0.0.
    ldflags: "-s -w \
        -X k8s.io/component-base/version.gitVersion=v1.37.2 \
        -X k8s.io/component-base/version.gitMajor=1 \
        -X k8s.io/component-base/version.gitMinor=37 \
        -X k8s.io/component-base/version.gitTreeState=clean \
        -X k8s.io/client-go/pkg/version.gitVersion=v1.37.2 \
        -X k8s.io/client-go/pkg/version.gitMajor=1 \
        -X k8s.io/client-go/pkg/version.gitMinor=37",
    optimized: true,
    tools: &[
        GoTool {
            name: "etcd",
            package: "go.etcd.io/etcd/server/v3",
        },
        GoTool {
            name: "kube-apiserver",
            package: "k8s.io/kubernetes/cmd/kube-apiserver",
        },
        GoTool {
            name: "kubectl",
            package: "k8s.io/kubernetes/cmd/kubectl",
        },
        GoTool {
            name: "kube-controller-manager",
            package: "k8s.io/kubernetes/cmd/kube-controller-manager",
        },
        GoTool {
            name: "kube-scheduler",
            package: "k8s.io/kubernetes/cmd/kube-scheduler",
        },
        GoTool {
            name: "kubelet",
            package: "k8s.io/kubernetes/cmd/kubelet",
        },
        GoTool {
            name: "kube-proxy",
            package: "k8s.io/kubernetes/cmd/kube-proxy",
        },
    ],
};

/// The Helm version that is built.
pub const HELM_VERSION: &str = "v3.22.0";

/// Helm.
pub const HELM: GoModule = GoModule {
    name: "helm",
    go_mod: include_str!("../tools/helm/go.mod"),
    go_sum: include_str!("../tools/helm/go.sum"),
    files: &[],
    // Without a version of Kubernetes, Helm checks a chart's kubeVersion and .Capabilities against v1.20.
    ldflags: "-s -w \
        -X helm.sh/helm/v3/internal/version.version=v3.22.0 \
        -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=1 \
        -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=37 \
        -X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMajor=1 \
        -X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor=37",
    tags: "",
    optimized: false,
    tools: &[GoTool {
        name: "helm",
        package: "helm.sh/helm/v3/cmd/helm",
    }],
};

/// The version of Helm 4 that is built.
pub const HELM_4_VERSION: &str = "v4.3.1";

/// Helm 4.
pub const HELM_4: GoModule = GoModule {
    name: "helm4",
    go_mod: include_str!("../tools/helm4/go.mod"),
    go_sum: include_str!("../tools/helm4/go.sum"),
    files: &[],
    ldflags: "-s -w -X helm.sh/helm/v4/internal/version.version=v4.3.1",
    tags: "",
    optimized: false,
    tools: &[GoTool {
        name: "helm",
        package: "helm.sh/helm/v4/cmd/helm",
    }],
};

/// kubeconform v0.8.0, which validates manifests by the schemas of Kubernetes.
pub const KUBECONFORM: GoModule = GoModule {
    name: "kubeconform",
    go_mod: include_str!("../tools/kubeconform/go.mod"),
    go_sum: include_str!("../tools/kubeconform/go.sum"),
    files: &[],
    ldflags: "-s -w -X main.version=v0.8.0",
    tags: "",
    optimized: false,
    tools: &[GoTool {
        name: "kubeconform",
        package: "github.com/yannh/kubeconform/cmd/kubeconform",
    }],
};

/// actionlint v1.7.12, which validates GitHub's workflows.
pub const ACTIONLINT: GoModule = GoModule {
    name: "actionlint",
    go_mod: include_str!("../tools/actionlint/go.mod"),
    go_sum: include_str!("../tools/actionlint/go.sum"),
    files: &[],
    ldflags: "-s -w",
    tags: "",
    optimized: false,
    tools: &[GoTool {
        name: "actionlint",
        package: "github.com/rhysd/actionlint/cmd/actionlint",
    }],
};

/// krew v0.5.0, which installs plugins of kubectl.
pub const KREW: GoModule = GoModule {
    name: "krew",
    go_mod: include_str!("../tools/krew/go.mod"),
    go_sum: include_str!("../tools/krew/go.sum"),
    files: &[],
    ldflags: "-s -w",
    tags: "",
    optimized: false,
    tools: &[GoTool {
        name: "krew",
        package: "sigs.k8s.io/krew/cmd/krew",
    }],
};

/// The programs of a [`crate::ControlPlane`].
pub(crate) const REQUIRED: [&str; 3] = ["etcd", "kube-apiserver", "kubectl"];

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_modules_have_the_versions_that_are_said() {
        assert!(
            HELM_4
                .go_mod
                .contains(&format!("helm.sh/helm/v4 {HELM_4_VERSION} "))
        );
        assert!(
            HELM_4
                .ldflags
                .ends_with(&format!("version.version={HELM_4_VERSION}"))
        );
        assert!(
            KUBECONFORM
                .go_mod
                .contains("github.com/yannh/kubeconform v0.8.0 ")
        );
        assert!(KREW.go_mod.contains("sigs.k8s.io/krew v0.5.0 "));
        assert!(ACTIONLINT.go_mod.contains("github.com/rhysd/actionlint v1.7.12 "));
        assert!(HELM.go_mod.contains(&format!("helm.sh/helm/v3 {HELM_VERSION} ")));
        assert!(HELM.ldflags.contains(&format!("version.version={HELM_VERSION} ")));
    }

    #[test]
    fn the_go_module_has_the_version_and_the_tools() {
        assert!(
            KUBERNETES
                .go_mod
                .contains(&format!("k8s.io/kubernetes {KUBERNETES_VERSION} "))
        );
        assert!(KUBERNETES.ldflags.contains(&format!(
            "component-base/version.gitVersion={KUBERNETES_VERSION} "
        )));
        for tool in KUBERNETES.tools {
            assert!(
                KUBERNETES.go_mod.contains(&format!("\t{}\n", tool.package)),
                "{}",
                tool.package
            );
        }
    }
}
