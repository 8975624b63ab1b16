//! Placeholders for what only an owner decides: names, addresses and contacts.

use anyhow::{Result, bail};

/// One thing to decide.
struct Decision {
    /// As docs/releasing.md calls it.
    what: &'static str,
    /// The file that it stands in.
    path: &'static str,
    /// What the file holds until it is decided.
    placeholder: &'static str,
}

/// docs/releasing.md explains each.
const DECISIONS: [Decision; 7] = [
    Decision {
        what: "Domain of the API group",
        path: "src/api/mod.rs",
        placeholder: "\"idtoken.dev\"",
    },
    Decision {
        what: "Address of the repository",
        path: "charts/idtoken-operator/Chart.yaml",
        placeholder: "home: https://example.com/",
    },
    Decision {
        what: "Registry",
        path: "charts/idtoken-operator/values.yaml",
        placeholder: "repository: \"\"\n",
    },
    Decision {
        what: "Contact of the maintainers",
        path: "charts/idtoken-operator/Chart.yaml",
        placeholder: "email: maintainers@example.com",
    },
    Decision {
        what: "Who reviews changes",
        path: "CODEOWNERS",
        placeholder: "maintainers@example.com",
    },
    Decision {
        what: "Address for reports of vulnerabilities",
        path: "SECURITY.md",
        placeholder: "security@example.com",
    },
    Decision {
        what: "Identity that signs",
        path: "docs/releasing.md",
        placeholder: "IDENTITY=https://example.com/",
    },
];

/// Refuses a release while something is not decided; of what is only tried, returns a warning. `read` gives a file of the workspace.
///
/// # Errors
/// With what is not decided, and where it stands.
pub(crate) fn check(tried: bool, read: impl Fn(&str) -> Result<String>) -> Result<Option<String>> {
    let open = open(read)?;
    if open.is_empty() {
        return Ok(None);
    }
    let message = format!(
        "an owner has not decided these yet (docs/releasing.md):\n  {}",
        open.join("\n  ")
    );
    if !tried {
        bail!(message);
    }
    Ok(Some(message))
}

/// What is not decided, each with its file.
fn open(read: impl Fn(&str) -> Result<String>) -> Result<Vec<String>> {
    let mut open = Vec::new();
    for decision in &DECISIONS {
        if read(decision.path)?.contains(decision.placeholder) {
            open.push(format!("{}: {}", decision.what, decision.path));
        }
    }
    Ok(open)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;
    use clap::Parser;

    use crate::{Cli, Task};

    /// What `cargo xtask release` with these arguments says of a tree whose files are all `text`.
    fn said(arguments: &[&str], text: &str) -> Result<Option<String>> {
        let all = [&["xtask", "release"], arguments].concat();
        let Task::Release(args) = Cli::try_parse_from(all)?.task else {
            bail!("another task");
        };
        check(args.is_tried(), |_| Ok(text.to_owned()))
    }

    #[test]
    fn only_what_is_tried_may_have_placeholders() {
        let (open, decided) = ("* maintainers@example.com\n", "* @acme/platform\n");
        let listed = "\n  Who reviews changes: CODEOWNERS";
        for arguments in [
            &[][..],
            &["--tag", "v0.1.0"],
            &["--registry", "registry.example.com/localhost"],
            &["--registry", "registry.example.com", "--snapshot"],
        ] {
            let error = said(arguments, open).expect_err("placeholders").to_string();
            assert!(error.contains(listed), "{arguments:?}: {error}");
            assert_eq!(said(arguments, decided).expect("all is decided"), None);
        }
        for arguments in [
            &["--snapshot"][..],
            &["--registry", "localhost:5000/platform"],
            &["--registry", "localhost:5000", "--snapshot"],
        ] {
            let warning = said(arguments, open).expect("it is only tried");
            let warning = warning.expect("a warning");
            assert!(warning.contains(listed), "{arguments:?}: {warning}");
            assert_eq!(said(arguments, decided).expect("all is decided"), None);
        }
    }

    #[test]
    fn a_placeholder_is_open_until_it_is_gone() {
        let decided = open(|_| Ok("home: https://git.acme.org/operator\n".to_owned())).expect("files");
        assert!(decided.is_empty(), "{decided:?}");
        let one = open(|path| {
            let code = path == "CODEOWNERS";
            Ok(if code { "* maintainers@example.com\n" } else { "" }.to_owned())
        });
        assert_eq!(one.expect("files"), ["Who reviews changes: CODEOWNERS"]);
        assert!(open(|_| bail!("it is gone")).is_err());
    }

    #[test]
    fn the_page_lists_each_decision_with_its_place() {
        let read = |path: &str| {
            std::fs::read_to_string(crate::workspace().join(path)).with_context(|| path.to_owned())
        };
        let page = read("docs/releasing.md").expect("the page");
        for Decision { what, path, .. } in &DECISIONS {
            assert!(
                page.contains(&format!("\n| {what} | `{path}` |")),
                "{what}: {path}"
            );
        }
        // Every place is there.
        open(read).expect("the files");
    }
}
