//! The subset of CEL that most attribute mappings and conditions use: reading a claim, and comparing it.

use anyhow::{anyhow, bail, ensure};
use serde_json::{Map, Value};

/// `assertion.a.b` or `assertion['a']["b"]`: reads a claim.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Accessor(Vec<String>);

impl Accessor {
    /// Parses an accessor.
    ///
    /// # Errors
    /// When the text is any other expression.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let (accessor, rest) = Self::prefix(text.trim())?;
        ensure!(
            rest.is_empty(),
            "`{text}` is not supported: only assertion.CLAIM and assertion['CLAIM'] are"
        );
        Ok(accessor)
    }

    /// Parses an accessor at the start of `text`. Returns it with the rest, which begins with a method call if there is one.
    fn prefix(text: &str) -> anyhow::Result<(Self, &str)> {
        let unknown = || anyhow!("`{text}` is not supported: it must start with assertion.CLAIM");
        let mut rest = text.strip_prefix("assertion").ok_or_else(unknown)?;
        let mut path = Vec::new();
        loop {
            if let Some(inner) = rest.strip_prefix('[') {
                let (key, tail) = literal(inner)?;
                path.push(key);
                rest = tail.strip_prefix(']').ok_or_else(unknown)?;
            } else if let Some(inner) = rest.strip_prefix('.') {
                let end = inner
                    .find(|c: char| !c.is_alphanumeric() && c != '_')
                    .unwrap_or(inner.len());
                let (name, tail) = inner.split_at(end);
                if tail.starts_with('(') {
                    break;
                }
                ensure!(!name.is_empty(), "`{text}` lacks a claim's name after the dot");
                path.push(name.to_owned());
                rest = tail;
            } else {
                break;
            }
        }
        ensure!(!path.is_empty(), unknown());
        Ok((Self(path), rest))
    }

    /// The claim; none if the token lacks it.
    pub(crate) fn read<'c>(&self, claims: &'c Map<String, Value>) -> Option<&'c Value> {
        let (first, rest) = self.0.split_first()?;
        rest.iter()
            .try_fold(claims.get(first)?, |value, key| value.get(key))
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Comparison {
    Equals(String),
    StartsWith(String),
}

/// `assertion.X == "…"` and `assertion.X.startsWith("…")`, joined by `&&`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Condition(Vec<(Accessor, Comparison)>);

impl Condition {
    /// Parses a condition.
    ///
    /// # Errors
    /// When the condition is outside of this subset.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let mut terms = Vec::new();
        let mut rest = text.trim();
        loop {
            let (accessor, tail) = Accessor::prefix(rest)?;
            let (comparison, tail) = if let Some(tail) = tail.trim_start().strip_prefix("==") {
                let (value, tail) = literal(tail.trim_start())?;
                (Comparison::Equals(value), tail)
            } else if let Some(tail) = tail.strip_prefix(".startsWith(") {
                let (value, tail) = literal(tail.trim_start())?;
                let tail = tail
                    .trim_start()
                    .strip_prefix(')')
                    .ok_or_else(|| anyhow!("`{text}` lacks a `)`"))?;
                (Comparison::StartsWith(value), tail)
            } else {
                bail!("`{text}` is not supported: compare with == \"…\" or .startsWith(\"…\")");
            };
            terms.push((accessor, comparison));
            match tail.trim() {
                "" => return Ok(Self(terms)),
                tail => {
                    rest = tail
                        .strip_prefix("&&")
                        .ok_or_else(|| anyhow!("`{text}` is not supported: join comparisons with &&"))?
                        .trim();
                }
            }
        }
    }

    /// Whether the claims satisfy all comparisons. A claim that is missing or not a string satisfies none.
    pub(crate) fn matches(&self, claims: &Map<String, Value>) -> bool {
        self.0.iter().all(|(accessor, comparison)| {
            let Some(value) = accessor.read(claims).and_then(Value::as_str) else {
                return false;
            };
            match comparison {
                Comparison::Equals(expected) => value == expected,
                Comparison::StartsWith(expected) => value.starts_with(expected),
            }
        })
    }
}

/// Parses a quoted string without escapes at the start of `text`. Returns it with the rest.
fn literal(text: &str) -> anyhow::Result<(String, &str)> {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''));
    let (Some(quote), Some(inner)) = (quote, text.get(1..)) else {
        bail!("`{text}` must start with a quoted string");
    };
    let (value, rest) = inner
        .split_once(quote)
        .ok_or_else(|| anyhow!("`{text}` lacks the closing quote"))?;
    ensure!(!value.contains('\\'), "`{value}`: escapes are not supported");
    Ok((value.to_owned(), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims() -> Map<String, Value> {
        serde_json::from_str(
            r#"{"sub":"system:serviceaccount:shop:billing","kubernetes.io":{"namespace":"shop"},"n":1}"#,
        )
        .unwrap()
    }

    #[test]
    fn accessors_read_nested_claims() {
        for text in [
            "assertion['kubernetes.io'].namespace",
            "assertion[\"kubernetes.io\"]['namespace']",
        ] {
            assert_eq!(Accessor::parse(text).unwrap().read(&claims()).unwrap(), "shop");
        }
        assert_eq!(
            Accessor::parse("assertion.missing").unwrap().read(&claims()),
            None
        );
        for text in [
            "google.subject",
            "assertion",
            "assertion.",
            "assertion.sub.split(':')[1]",
            "assertion.a + 'b'",
        ] {
            assert!(Accessor::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn conditions_compare() {
        for (text, holds) in [
            ("assertion.sub == \"system:serviceaccount:shop:billing\"", true),
            ("assertion.sub=='other'", false),
            ("assertion.sub.startsWith(\"system:serviceaccount:shop:\")", true),
            ("assertion.sub.startsWith('system:node')", false),
            (
                "assertion['kubernetes.io'].namespace == 'shop' && assertion.sub.startsWith('system:')",
                true,
            ),
            (
                "assertion['kubernetes.io'].namespace == 'x' && assertion.sub.startsWith('system:')",
                false,
            ),
            ("assertion.n == '1'", false),
        ] {
            assert_eq!(
                Condition::parse(text).unwrap().matches(&claims()),
                holds,
                "{text}"
            );
        }
        for text in [
            "true",
            "assertion.sub",
            "assertion.sub == 1",
            "assertion.sub == 'a' || assertion.sub == 'b'",
        ] {
            assert!(Condition::parse(text).is_err(), "{text}");
        }
    }
}
