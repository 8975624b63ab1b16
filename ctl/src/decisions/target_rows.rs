//! Pure: the rows of docs/targets.md, which are the only copy of what an answer means and what to do about it.

const PAGE: &str = include_str!("../../../docs/targets.md");

/// A row that an answer can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Row {
    CloudRunAudience,
    CloudRunInvoker,
    CloudRunIngress,
    CloudRunApplication,
    CloudRunPerimeter,
    CloudRunUnavailable,
    FunctionAudience,
    FunctionInvoker,
    IapNoToken,
    IapAudience,
    IapNotGoogles,
    IapEmail,
    IapRole,
    IapAllowList,
    GatewayNoToken,
    GatewayIssuer,
    GatewayAudience,
    GatewayExpired,
    GatewaySignature,
    GatewayKey,
    GatewayPath,
    BalancerBackend,
    OwnRefusal,
    OwnRedirect,
    GoogleApi,
}

/// A row as the page has it, as plain text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PageRow {
    /// Heading of the section.
    pub(crate) section: String,
    pub(crate) answer: String,
    pub(crate) cause: String,
    pub(crate) fix: String,
}

impl PageRow {
    /// Where the section is.
    pub(crate) fn link(&self) -> String {
        let kept = |c: char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
        let anchor: String = self.section.to_lowercase().chars().filter(|c| kept(*c)).collect();
        format!("docs/targets.md#{}", anchor.replace(' ', "-"))
    }
}

impl Row {
    /// All of them.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 25] = [
        Self::CloudRunAudience,
        Self::CloudRunInvoker,
        Self::CloudRunIngress,
        Self::CloudRunApplication,
        Self::CloudRunPerimeter,
        Self::CloudRunUnavailable,
        Self::FunctionAudience,
        Self::FunctionInvoker,
        Self::IapNoToken,
        Self::IapAudience,
        Self::IapNotGoogles,
        Self::IapEmail,
        Self::IapRole,
        Self::IapAllowList,
        Self::GatewayNoToken,
        Self::GatewayIssuer,
        Self::GatewayAudience,
        Self::GatewayExpired,
        Self::GatewaySignature,
        Self::GatewayKey,
        Self::GatewayPath,
        Self::BalancerBackend,
        Self::OwnRefusal,
        Self::OwnRedirect,
        Self::GoogleApi,
    ];

    /// The heading of its section, and a text that only its first cell has.
    fn place(self) -> (&'static str, &'static str) {
        const RUN: &str = "Cloud Run";
        const FUNCTION: &str = "Functions at their cloudfunctions URL";
        const IAP: &str = "IAP with an OAuth client of your own";
        const GATEWAY: &str = "API Gateway and Cloud Endpoints";
        const OWN: &str = "A service of your own";
        match self {
            Self::CloudRunAudience => (RUN, "permission to the requested URL"),
            Self::CloudRunInvoker => (RUN, "permission to get URL"),
            Self::CloudRunIngress => (RUN, "404"),
            Self::CloudRunApplication => (RUN, "401 with a body of the application's"),
            Self::CloudRunPerimeter => (RUN, "VPC Service Controls"),
            Self::CloudRunUnavailable => (RUN, "no available instance"),
            Self::FunctionAudience => (FUNCTION, "401"),
            Self::FunctionInvoker => (FUNCTION, "403"),
            Self::IapNoToken => (IAP, "302"),
            Self::IapAudience => (IAP, "JWT audience doesn't match"),
            Self::IapNotGoogles => (IAP, "Unable to parse JWT"),
            Self::IapEmail => (IAP, "'email' claim"),
            Self::IapRole => (IAP, "403"),
            Self::IapAllowList => ("IAP with Google's own client", "Invalid JWT audience"),
            Self::GatewayNoToken => (GATEWAY, "Jwt is missing"),
            Self::GatewayIssuer => (GATEWAY, "Jwt issuer is not configured"),
            Self::GatewayAudience => (GATEWAY, "Audiences in Jwt are not allowed"),
            Self::GatewayExpired => (GATEWAY, "Jwt is expired"),
            Self::GatewaySignature => (GATEWAY, "Jwt verification fails"),
            Self::GatewayKey => (GATEWAY, "unregistered callers"),
            Self::GatewayPath => (GATEWAY, "The current request is not defined"),
            Self::BalancerBackend => ("Load balancers", "no healthy upstream"),
            Self::OwnRefusal => (OWN, "401 or 403"),
            Self::OwnRedirect => (OWN, "3xx"),
            Self::GoogleApi => ("Google's APIs", "Expected OAuth 2 access token"),
        }
    }

    /// The row of the page.
    pub(crate) fn on_page(self) -> Option<PageRow> {
        let (section, text) = self.place();
        let mut rows = page_rows(PAGE).into_iter();
        rows.find(|row| row.section == section && row.answer.contains(text))
    }
}

/// The rows of all tables of answers.
fn page_rows(page: &str) -> Vec<PageRow> {
    let mut rows = Vec::new();
    let mut section = "";
    let mut in_table = false;
    for line in page.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            section = heading;
        }
        let cells: Vec<&str> = match line.strip_prefix("| ").and_then(|line| line.strip_suffix(" |")) {
            Some(cells) => cells.split(" | ").collect(),
            None => {
                in_table &= line.starts_with("|-");
                continue;
            }
        };
        match cells.as_slice() {
            [head, "Cause", "Fix"] if head.starts_with("Answer") => in_table = true,
            [answer, cause, fix] if in_table => rows.push(PageRow {
                section: section.to_owned(),
                answer: plain(answer),
                cause: plain(cause),
                fix: plain(fix),
            }),
            _ => in_table = false,
        }
    }
    rows
}

/// Markdown as plain text: links are their texts, and a source is left out.
fn plain(markdown: &str) -> String {
    let mut text = String::new();
    let mut rest = markdown;
    while let Some((before, after)) = rest.split_once('[') {
        let Some((label, tail)) = after.split_once("](") else {
            break;
        };
        let Some((_, tail)) = tail.split_once(')') else {
            break;
        };
        text.push_str(before);
        match text
            .strip_suffix(" (")
            .filter(|_| matches!(label, "seen" | "documented"))
        {
            Some(kept) => {
                let kept = kept.len();
                text.truncate(kept);
                rest = tail.strip_prefix(')').unwrap_or(tail);
            }
            None => {
                text.push_str(label);
                rest = tail;
            }
        }
    }
    text.push_str(rest);
    text.replace(['`', '*'], "")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Sections whose targets take the token as a credential of a login or of a library, and not in a header.
    const NOT_CALLED: [&str; 3] = ["AWS", "Azure", "Vault"];

    #[test]
    fn the_page_and_the_program_have_the_same_rows() {
        let page = page_rows(PAGE);
        let mut known = BTreeSet::new();
        for row in Row::ALL {
            let (section, text) = row.place();
            let fitting: Vec<usize> = (0..page.len())
                .filter(|index| page[*index].section == section && page[*index].answer.contains(text))
                .collect();
            assert_eq!(fitting.len(), 1, "{row:?}: {text:?} in section {section:?}");
            assert!(known.insert(fitting[0]), "{row:?} is another row too");
            assert_eq!(row.on_page().unwrap(), page[fitting[0]]);
        }
        let unknown: Vec<&PageRow> = (0..page.len())
            .filter(|index| !known.contains(index))
            .map(|index| &page[index])
            .filter(|row| !NOT_CALLED.contains(&row.section.as_str()))
            .collect();
        assert!(unknown.is_empty(), "no answer leads to {unknown:#?}");
    }

    #[test]
    fn a_row_is_plain_text_and_its_link_exists() {
        assert_eq!(
            plain("401, `x` ([seen](https://a.example)). See [the log](b.md#c), **all** of it"),
            "401, x. See the log, all of it"
        );
        assert_eq!(plain("an [unfinished"), "an [unfinished");
        for row in Row::ALL {
            let row = row.on_page().unwrap();
            let all = format!("{}{}{}", row.answer, row.cause, row.fix);
            assert!(!all.contains("](") && !all.contains('`'), "{row:?}");
            // The page itself links to most of its sections, by the anchors that a browser uses.
            let anchor = row.link().replace("docs/targets.md", "");
            assert!(PAGE.contains(&format!("({anchor})")), "{anchor}");
        }
    }
}
