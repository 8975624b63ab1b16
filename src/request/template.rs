//! Pure: `$(variable)` substitution. Not a template engine: there are four variables and no language, so that a template cannot loop, grow
//! without bound, or put a token into an error.

use std::collections::BTreeMap;

use thiserror::Error;
use zeroize::Zeroizing;

/// Maximum bytes of one expanded value. A Secret holds at most 1 MiB
/// (<https://kubernetes.io/docs/concepts/configuration/secret/#restriction-data-size>).
const MAX_VALUE: usize = 64 * 1024;
/// Maximum bytes of all expanded values of a Secret.
pub const MAX_TOTAL: usize = 512 * 1024;

/// Why a template is rejected. Never holds a substituted value.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TemplateError {
    /// A variable that does not exist.
    #[error(
        "$({name}) at byte {at} is not a variable; known are $(token), $(audience), $(email) and $(expirationTime), and $$( is a literal $("
    )]
    Unknown {
        /// The first 40 characters of the name, escaped.
        name: String,
        /// Offset of the `$`, in bytes.
        at: usize,
    },
    /// `$(` without `)`.
    #[error("$( at byte {at} is not closed; write $$( for a literal $(")]
    Unclosed {
        /// Offset of the `$`, in bytes.
        at: usize,
    },
    /// The expanded value would be too large.
    #[error("the expanded value would have {size} bytes, more than {MAX_VALUE}")]
    TooLarge {
        /// Bytes of the expanded value.
        size: usize,
    },
    /// `$(email)` in a request whose token carries no e-mail.
    #[error("$(email) is not known: the token carries no email claim")]
    NoEmail,
}

/// A variable of a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variable {
    /// The bare JWT.
    Token,
    /// The token's audience.
    Audience,
    /// The token's `email` claim.
    Email,
    /// The token's `exp` in RFC 3339.
    ExpirationTime,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Variable(Variable),
}

/// A parsed value of `spec.target.template.data`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Piece>);

/// The values of the variables.
#[derive(Debug)]
pub struct Values<'a> {
    /// The bare JWT.
    pub token: &'a crate::token::IdToken,
    /// The audience.
    pub audience: &'a str,
    /// The e-mail, if the token carries one.
    pub email: Option<&'a str>,
    /// The expiry in RFC 3339.
    pub expiration_time: &'a str,
}

impl Template {
    /// Parses `text`.
    ///
    /// # Errors
    /// A variable is unknown or not closed.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(dollar) = rest.find('$') {
            let at = text.len() - rest.len() + dollar;
            literal.push_str(&rest[..dollar]);
            rest = &rest[dollar..];
            if let Some(after) = rest.strip_prefix("$$(") {
                literal.push_str("$(");
                rest = after;
            } else if let Some(after) = rest.strip_prefix("$(") {
                let (name, after) = after.split_once(')').ok_or(TemplateError::Unclosed { at })?;
                let variable = match name {
                    "token" => Variable::Token,
                    "audience" => Variable::Audience,
                    "email" => Variable::Email,
                    "expirationTime" => Variable::ExpirationTime,
                    other => {
                        let name = other.chars().take(40).flat_map(char::escape_default).collect();
                        return Err(TemplateError::Unknown { name, at });
                    }
                };
                if !literal.is_empty() {
                    pieces.push(Piece::Literal(std::mem::take(&mut literal)));
                }
                pieces.push(Piece::Variable(variable));
                rest = after;
            } else {
                literal.push('$');
                rest = &rest[1..];
            }
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal));
        }
        Ok(Self(pieces))
    }

    /// Whether the template uses `variable`.
    pub fn uses(&self, variable: Variable) -> bool {
        self.0
            .iter()
            .any(|piece| matches!(piece, Piece::Variable(v) if *v == variable))
    }

    /// Substitutes the values. The size is checked before anything is allocated.
    ///
    /// # Errors
    /// The result would be too large, or the template uses the e-mail of a token without one.
    pub fn expand(&self, values: &Values<'_>) -> Result<Zeroizing<Vec<u8>>, TemplateError> {
        let mut parts = Vec::with_capacity(self.0.len());
        for piece in &self.0 {
            parts.push(match piece {
                Piece::Literal(text) => text.as_str(),
                Piece::Variable(Variable::Token) => values.token.expose(),
                Piece::Variable(Variable::Audience) => values.audience,
                Piece::Variable(Variable::Email) => values.email.ok_or(TemplateError::NoEmail)?,
                Piece::Variable(Variable::ExpirationTime) => values.expiration_time,
            });
        }
        let size = parts.iter().map(|part| part.len()).sum();
        if size > MAX_VALUE {
            return Err(TemplateError::TooLarge { size });
        }
        let mut value = Zeroizing::new(Vec::with_capacity(size));
        for part in parts {
            value.extend_from_slice(part.as_bytes());
        }
        Ok(value)
    }

    /// The template's input of the rendering hash. Two templates have the same canonical text exactly if they
    /// always expand to the same value.
    pub(crate) fn canonical(&self) -> String {
        let piece = |piece: &Piece| match piece {
            Piece::Literal(text) => text.replace("$(", "$$("),
            Piece::Variable(Variable::Token) => "$(token)".into(),
            Piece::Variable(Variable::Audience) => "$(audience)".into(),
            Piece::Variable(Variable::Email) => "$(email)".into(),
            Piece::Variable(Variable::ExpirationTime) => "$(expirationTime)".into(),
        };
        self.0.iter().map(piece).collect()
    }
}

/// Templates by the Secret's key.
pub type Templates = BTreeMap<String, Template>;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pieces(text: &str) -> Vec<Piece> {
        Template::parse(text).unwrap().0
    }

    #[test]
    fn variables_and_literals() {
        assert_eq!(
            pieces("Authorization: Bearer $(token)"),
            [
                Piece::Literal("Authorization: Bearer ".into()),
                Piece::Variable(Variable::Token)
            ]
        );
        assert_eq!(
            pieces("$$(token) costs $5 $"),
            [Piece::Literal("$(token) costs $5 $".into())]
        );
        assert_eq!(pieces(""), []);
    }

    #[test]
    fn unknown_and_unclosed_are_named_with_their_place() {
        assert_eq!(
            Template::parse("a $(tokne)"),
            Err(TemplateError::Unknown {
                name: "tokne".into(),
                at: 2
            })
        );
        assert_eq!(
            Template::parse("ab$(token"),
            Err(TemplateError::Unclosed { at: 2 })
        );
    }

    proptest! {
        #[test]
        fn parse_never_panics(text in "\\PC*") {
            let _ = Template::parse(&text);
        }

        #[test]
        fn text_without_dollar_is_itself(text in "[^$]{1,50}") {
            prop_assert_eq!(pieces(&text), vec![Piece::Literal(text)]);
        }
    }
}
