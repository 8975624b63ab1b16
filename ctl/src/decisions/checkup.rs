//! Pure: what the checks of `doctor` have in common.

use serde::Serialize;

use crate::output::redacted;

/// What was read of a cluster, or why it could not be seen.
pub(crate) type Seen<T> = Result<T, String>;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) enum Level {
    Ok,
    /// You may not see it, or it did not answer.
    Unseen,
    Warning,
    Failure,
}

impl Level {
    /// As the table shows it.
    pub(crate) fn mark(self) -> &'static str {
        match self {
            Self::Ok => "✓",
            Self::Unseen => "?",
            Self::Warning => "!",
            Self::Failure => "✗",
        }
    }
}

/// A check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    /// What was checked.
    pub(crate) area: &'static str,
    pub(crate) level: Level,
    pub(crate) message: String,
    /// What to do about it; empty if there is nothing to do.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) fix: String,
}

impl Check {
    /// All is well.
    pub(crate) fn ok(area: &'static str, message: impl AsRef<str>) -> Self {
        Self::new(area, Level::Ok, message, "")
    }

    /// It works, but needs attention.
    pub(crate) fn warning(area: &'static str, message: impl AsRef<str>, fix: impl AsRef<str>) -> Self {
        Self::new(area, Level::Warning, message, fix)
    }

    /// It does not work.
    pub(crate) fn failure(area: &'static str, message: impl AsRef<str>, fix: impl AsRef<str>) -> Self {
        Self::new(area, Level::Failure, message, fix)
    }

    /// It could not be checked.
    pub(crate) fn unseen(area: &'static str, why: impl AsRef<str>) -> Self {
        let message = format!("not seen: {}", why.as_ref());
        Self::new(area, Level::Unseen, message, "")
    }

    /// The message and the fix may have texts of others.
    fn new(area: &'static str, level: Level, message: impl AsRef<str>, fix: impl AsRef<str>) -> Self {
        Self {
            area,
            level,
            message: redacted(message.as_ref()),
            fix: redacted(fix.as_ref()),
        }
    }
}

/// The first few names, and how many more there are.
pub(crate) fn some(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let mut text = names[..names.len().min(SHOWN)].join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}
