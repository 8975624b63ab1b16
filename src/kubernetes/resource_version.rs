//! The order of resourceVersions.

/// Whether resourceVersion `a` is older than `b`. They are decimal numbers of any length since Kubernetes 1.35, and were in practice before
/// (<https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions>).
pub fn is_older(a: &str, b: &str) -> bool {
    (a.len(), a) < (b.len(), b)
}

#[cfg(test)]
mod tests {
    use super::is_older;

    #[test]
    fn resource_versions_are_compared_as_numbers() {
        for (a, b, expected) in [
            ("1", "2", true),
            ("2", "1", false),
            ("7", "7", false),
            ("9", "10", true),
            ("10", "9", false),
            ("99999999999999999999999", "100000000000000000000000", true),
            ("", "1", true),
            ("1", "", false),
        ] {
            assert_eq!(is_older(a, b), expected, "{a} {b}");
        }
    }
}
