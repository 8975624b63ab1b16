//! The public hosts that this crate connects to itself. Go, pip and apt-get have hosts of their own, by their settings.

/// The index of the archives with etcd, kube-apiserver and kubectl that Kubernetes publishes for tests.
pub(crate) const ENVTEST_INDEX: &str =
    "https://raw.githubusercontent.com/kubernetes-sigs/controller-tools/HEAD/envtest-releases.yaml";
/// What the URL of each of these archives begins with.
pub(crate) const ENVTEST_ARCHIVES: &str =
    "https://github.com/kubernetes-sigs/controller-tools/releases/download/";
/// Where GitHub has the files of releases: the only places to which it may redirect.
pub(crate) const ENVTEST_FILES: [&str; 2] = [
    "https://release-assets.githubusercontent.com/",
    "https://objects.githubusercontent.com/",
];
