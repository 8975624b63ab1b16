//! Quotes outside strings for the commands that error messages suggest.
//!
//! Imports nothing, and runs nothing.

use std::borrow::Cow;

/// Quotes one word for a POSIX shell: whatever it holds, the shell sees one inert argument.
///
/// Words of harmless characters stay as they are, so that the usual command reads well. Inside single quotes a shell
/// interprets nothing (POSIX.1-2024, Shell Command Language, 2.2.2); a single quote itself is written `'\''`.
#[must_use]
pub fn quote(word: &str) -> Cow<'_, str> {
    let harmless = |c: char| {
        c.is_ascii_alphanumeric() || matches!(c, '@' | '%' | '_' | '+' | '=' | ':' | ',' | '.' | '/' | '-')
    };
    if !word.is_empty() && word.chars().all(harmless) {
        Cow::Borrowed(word)
    } else {
        Cow::Owned(format!("'{}'", word.replace('\'', r"'\''")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_what_a_shell_would_read() {
        assert_eq!(
            quote("caller@p.iam.gserviceaccount.com"),
            "caller@p.iam.gserviceaccount.com"
        );
        assert_eq!(quote(""), "''");
        assert_eq!(quote("$(reboot)"), "'$(reboot)'");
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(quote("a b;c`d`"), "'a b;c`d`'");
    }

    #[test]
    fn a_shell_reads_back_what_was_quoted() {
        for word in [
            "",
            "'",
            "''",
            "a'b\"c$(id)`id`\\",
            "-n; rm -rf x",
            "*",
            "~",
            "!x",
            "a\tb",
            "ü§",
            "#",
        ] {
            let command = format!("printf %s {}", quote(word));
            let output = std::process::Command::new("sh")
                .args(["-c", &command])
                .output()
                .expect("sh runs");
            assert_eq!(String::from_utf8_lossy(&output.stdout), word, "{command}");
        }
    }
}
