//! Archives that are the same for the same content.

use std::io::{Read, Write};

use anyhow::{Context, Result};
use flate2::read::GzDecoder;
use flate2::{Compression, GzBuilder};
use jiff::Timestamp;

/// A file.
#[derive(Clone, Debug)]
pub struct Entry {
    name: String,
    mode: u32,
    content: Vec<u8>,
}

impl Entry {
    /// A program.
    #[must_use]
    pub fn program(name: &str, content: Vec<u8>) -> Self {
        Self {
            name: name.to_owned(),
            mode: 0o755,
            content,
        }
    }

    /// A text.
    pub fn text(name: impl Into<String>, content: String) -> Self {
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
pub fn tar_gz(entries: &[Entry], time: Timestamp) -> Result<Vec<u8>> {
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

/// The same archive with the time `time` and of root.
///
/// # Errors
/// When it is no compressed tar of texts.
pub fn again(archive: &[u8], time: Timestamp) -> Result<Vec<u8>> {
    let mut entries = Vec::new();
    for entry in tar::Archive::new(GzDecoder::new(archive)).entries()? {
        let mut entry = entry?;
        let (path, mut text) = (entry.path()?.to_string_lossy().into_owned(), String::new());
        entry
            .read_to_string(&mut text)
            .with_context(|| format!("{path} is no text"))?;
        entries.push(Entry::text(path, text));
    }
    tar_gz(&entries, time)
}

#[cfg(test)]
#[allow(clippy::expect_used)]
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

    #[test]
    fn the_time_of_an_archive_is_replaced_and_nothing_else() {
        let entries = [Entry::text("b", "b".to_owned()), Entry::text("a", "a".to_owned())];
        let at = |seconds| Timestamp::from_second(seconds).expect("a time");
        let archive = |seconds| tar_gz(&entries, at(seconds)).expect("an archive");
        assert_ne!(archive(1), archive(2));
        assert_eq!(again(&archive(1), at(2)).expect("an archive"), archive(2));
    }
}
