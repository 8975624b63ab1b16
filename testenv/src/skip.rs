//! What a test needs and a machine may lack.

use std::io::Write;

use anyhow::Result;

/// Whether the project's checks run, where nothing may be skipped.
pub(crate) fn is_all_required() -> bool {
    std::env::var_os("IDTOKEN_REQUIRE_REFEREES").is_some_and(|value| value == "1")
}

/// What was `found`. Where it was not, a line says that a test is skipped.
///
/// # Errors
/// That of `found`, in the project's checks (`IDTOKEN_REQUIRE_REFEREES=1`).
pub fn or_skip<T>(what: &str, found: Result<T>) -> Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if is_all_required() => Err(error.context(format!("{what} is required"))),
        Err(error) => {
            // Not eprintln!: libtest captures that, and nobody would know.
            writeln!(
                std::io::stderr(),
                "SKIPPED: there is no {what} (IDTOKEN_REQUIRE_REFEREES=1 makes this a failure): {error:#}"
            )?;
            Ok(None)
        }
    }
}
