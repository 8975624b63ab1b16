//! Archives that are the same for the same content.

use std::io::Write;

use anyhow::Result;
use flate2::{Compression, GzBuilder};
use jiff::Timestamp;

/// A file.
pub(crate) struct Entry {
    name: String,
    mode: u32,
    content: Vec<u8>,
}

impl Entry {
    /// A program.
    pub(crate) fn program(name: &str, content: Vec<u8>) -> Self {
        Self {
            name: name.to_owned(),
            mode: 0o755,
            content,
        }
    }

    /// A text.
    pub(crate) fn text(name: impl Into<String>, content: String) -> Self {
        Self {
            name: name.into(),
            mode: 0o644,
            content: content.into_bytes(),
        }
    }
}

/// A compressed tar of `entries` in their order, of root, all of one time.
///
/// # Errors
/// When a name does not fit.
pub(crate) fn tar_gz(entries: &[Entry], time: Timestamp) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_ustar();
        header.set_mode(entry.mode);
        header.set_size(entry.content.len() as u64);
        header.set_mtime(u64::try_from(time.as_second()).unwrap_or(0));
        header.set_uid(0);
        header.set_gid(0);
        archive.append_data(&mut header, &entry.name, entry.content.as_slice())?;
    }
    let mut gzip = GzBuilder::new().write(Vec::new(), Compression::default());
    gzip.write_all(&archive.into_inner()?)?;
    Ok(gzip.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn tar_reads_it_and_it_is_the_same_twice() {
        let make = || {
            let entries = [
                Entry::program("tool", b"#!".to_vec()),
                Entry::text("docs/a.md", "a".repeat(2000)),
            ];
            tar_gz(&entries, Timestamp::UNIX_EPOCH).expect("an archive")
        };
        let bytes = make();
        assert_eq!(bytes, make());
        let mut tar = Command::new("tar")
            .args(["--list", "--verbose", "--gzip", "--numeric-owner"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tar");
        tar.stdin
            .take()
            .expect("stdin")
            .write_all(&bytes)
            .expect("written");
        let listed = String::from_utf8(tar.wait_with_output().expect("tar").stdout).expect("text");
        let lines: Vec<_> = listed.lines().collect();
        assert!(
            lines[0].starts_with("-rwxr-xr-x 0/0") && lines[0].ends_with(" tool"),
            "{listed}"
        );
        assert!(
            lines[1].starts_with("-rw-r--r-- 0/0") && lines[1].ends_with(" docs/a.md"),
            "{listed}"
        );
        assert_eq!(lines.len(), 2);
    }
}
