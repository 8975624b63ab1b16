//! Parses callgrind's output into the instructions of a case, without its cryptography. Pure.
//!
//! The format: <https://valgrind.org/docs/manual/cl-format.html>. A block begins with `fn=`, and each of its lines ends with a cost of the
//! function's own; the line after `calls=` has what the function named by `cfn=` cost when it was called from here, all that it called
//! included.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};

/// Parts of the names of AWS-LC's functions (its build prefixes them with its version) and of its Rust wrapper. AWS-LC runs other
/// code on other processors, and is not code of this project.
const CRYPTOGRAPHY: &str = "aws_lc_";

/// The cost of a case.
#[derive(Debug)]
pub(crate) struct Profile {
    /// Instructions of all calls, without cryptography.
    pub(crate) counted: u64,
    /// Instructions of cryptography and its calls.
    pub(crate) cryptography: u64,
    /// Instructions of each function itself, without cryptography.
    pub(crate) own: BTreeMap<String, u64>,
}

/// A function's block.
#[derive(Default)]
struct Function {
    own: u64,
    /// The calls and their costs.
    calls: BTreeMap<String, u64>,
}

impl Profile {
    /// Reads a file of callgrind's, without compression. `root` is in the name of the function whose calls were counted.
    ///
    /// # Errors
    /// The text has another format, or counts nothing.
    pub(crate) fn parse(text: &str, root: &str) -> Result<Self> {
        if !text.lines().any(|line| line == "events: Ir") {
            bail!("it does not count instructions alone");
        }
        let functions = functions(text)?;
        let root = functions.keys().find(|name| name.contains(root));
        let root = root.context("the function that is counted was not called")?;
        // Internal functions of the cryptography may have any name: only functions with the prefix call them.
        let mut reached = BTreeSet::from([root.as_str()]);
        let mut next = vec![root.as_str()];
        let mut cryptography = 0;
        while let Some(name) = next.pop() {
            for (called, cost) in functions.get(name).iter().flat_map(|function| &function.calls) {
                if called.contains(CRYPTOGRAPHY) {
                    cryptography += cost;
                } else if reached.insert(called) {
                    next.push(called);
                }
            }
        }
        let total: u64 = functions.values().map(|function| function.own).sum();
        if total <= cryptography {
            bail!("nothing was counted");
        }
        let own = functions
            .iter()
            .filter(|(name, _)| reached.contains(name.as_str()));
        Ok(Self {
            counted: total - cryptography,
            cryptography,
            own: own.map(|(name, function)| (name.clone(), function.own)).collect(),
        })
    }
}

fn functions(text: &str) -> Result<BTreeMap<String, Function>> {
    let mut all: BTreeMap<String, Function> = BTreeMap::new();
    let (mut current, mut called) = (None, None);
    let mut is_call = false;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("fn=") {
            current = Some(name.to_owned());
        } else if let Some(name) = line.strip_prefix("cfn=") {
            called = Some(name.to_owned());
        } else if line.starts_with("calls=") {
            is_call = true;
        } else if line.starts_with(|c: char| c.is_ascii_digit()) {
            let name = current.clone().context("a cost comes before a function")?;
            let cost = line.split_ascii_whitespace().nth(1);
            let cost: u64 = cost
                .and_then(|cost| cost.parse().ok())
                .with_context(|| format!("no cost: {line}"))?;
            let function = all.entry(name).or_default();
            if std::mem::take(&mut is_call) {
                let called = called.take().context("a call of no function")?;
                *function.calls.entry(called).or_default() += cost;
            } else {
                function.own += cost;
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `decide` and `hash` are counted; `hash` calls AWS-LC, whose own functions call each other and `free`, which `decide` calls too.
    const FILE: &str = "\
# callgrind format
version: 1
positions: line
events: Ir

fl=???
fn=idtoken_instructions::counted_part
0 7
cfn=decide
calls=1 0
0 1160

fn=decide
0 30
0 20
cfi=malloc.c
cfn=free
calls=2 0
0 10
cfn=hash
calls=1 0
0 1100

fn=hash
0 90
cfn=aws_lc_0_42_0_EVP_Digest
calls=1 0
0 1010

fn=aws_lc_0_42_0_EVP_Digest
0 400
cfn=sha256_update
calls=1 0
0 605
cfn=free
calls=1 0
0 5

fn=sha256_update
0 5
cfn=aws_lc_0_42_0_sha256_block_data_order
calls=1 0
0 600

fn=aws_lc_0_42_0_sha256_block_data_order
0 600

fn=free
0 15

totals: 1167
";

    #[test]
    fn cryptography_is_left_out_with_all_that_it_calls() {
        let profile = Profile::parse(FILE, "counted_part").expect("a profile");
        assert_eq!((profile.counted, profile.cryptography), (157, 1010));
        assert_eq!(profile.own["decide"], 50);
        assert_eq!(profile.own["hash"], 90);
        assert!(!profile.own.contains_key("sha256_update"));
    }

    #[test]
    fn what_counted_nothing_is_no_profile() {
        let fault = |text: &str, root| Profile::parse(text, root).expect_err("no profile").to_string();
        assert!(fault(FILE, "another").contains("was not called"));
        assert!(fault("events: Ir\nfn=counted_part\n0 0\n", "counted_part").contains("nothing was counted"));
        assert!(fault("events: Ir Dr\n", "counted_part").contains("instructions alone"));
        assert!(fault("events: Ir\n0 3\n", "counted_part").contains("before a function"));
        assert!(fault("events: Ir\nfn=a\n0 x\n", "counted_part").contains("no cost"));
    }
}
