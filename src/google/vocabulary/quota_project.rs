//! The project whose quota the calls of the operator's own identity count for: <https://cloud.google.com/docs/quotas/quota-project>.

use reqwest::header::HeaderValue;

/// The longest name, in bytes: a domain and the ID of a project in it.
const MAX_BYTES: usize = 128;

/// A project by ID or number. A tenant's calls never have one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct QuotaProject(HeaderValue);

impl QuotaProject {
    /// Parses an ID such as `my-project` or `example.com:my-project`, or a number.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b':');
        let is_name = !name.is_empty() && name.len() <= MAX_BYTES && name.bytes().all(allowed);
        HeaderValue::from_str(name).ok().filter(|_| is_name).map(Self)
    }

    /// The value of the header `x-goog-user-project`.
    pub(crate) fn header(&self) -> HeaderValue {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_projects() {
        for good in ["my-project", "example.com:my-project", "123456789012"] {
            let parsed = QuotaProject::parse(good);
            assert!(parsed.is_some_and(|project| project.header() == good), "{good}");
        }
        for bad in ["", "a b", "a\r\nx: y", "é", "a/b", &"x".repeat(129)] {
            assert_eq!(QuotaProject::parse(bad), None, "{bad}");
        }
    }
}
