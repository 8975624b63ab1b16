//! How a behaviour of Google's is known.

use serde::Deserialize;

use crate::hosts::DOCUMENTATION;

/// A source, and what kind it is of.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Source {
    /// A method of a discovery document, such as `sts.token`.
    Definition(String),
    /// A page of Google's, or a standard.
    Documentation(String),
    /// The code, a fixture or a test of another client: a file in its repository.
    Client(String),
    /// What another client got from Google, as its users quote it.
    Report(String),
    /// None: it is believed to be so.
    None,
}

impl Source {
    /// The kind, in a word.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Definition(_) => "definition",
            Self::Documentation(_) => "documentation",
            Self::Client(_) => "another client's code",
            Self::Report(_) => "another client's report",
            Self::None => "none",
        }
    }

    /// The kind, as a link in Markdown if there is a page.
    #[must_use]
    pub fn link(&self) -> String {
        match self {
            Self::Definition(method) => format!("{} (`{method}`)", self.kind()),
            Self::Documentation(url) | Self::Client(url) | Self::Report(url) => {
                format!("[{}]({url})", self.kind())
            }
            Self::None => "none".to_owned(),
        }
    }
}

impl TryFrom<String> for Source {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let github = text.strip_prefix("https://github.com/");
        let has = |part: &str| github.is_some_and(|path| path.contains(part));
        if text == "none" {
            return Ok(Self::None);
        }
        if let Some(method) = text.strip_prefix("definition ") {
            return Ok(Self::Definition(method.to_owned()));
        }
        if DOCUMENTATION.iter().any(|host| text.starts_with(host)) {
            return Ok(Self::Documentation(text));
        }
        match (has("/blob/"), has("/issues/") || has("/pull/")) {
            (true, _) => Ok(Self::Client(text)),
            (_, true) => Ok(Self::Report(text)),
            _ => Err(format!("{text} is no source")),
        }
    }
}
