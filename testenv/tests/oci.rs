//! Archives of images: judged by crane, a registry, and by what comes out of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use idtoken_testenv::oci::{Arch, Content, File, Image};
use idtoken_testenv::{Progress, Registry, RunDir};
use jiff::Timestamp;
use tar::EntryType;

fn image(program: &Path) -> Image {
    Image {
        repository: "shop/tool".to_owned(),
        tag: "1.2.3".to_owned(),
        arch: Arch::Arm64,
        created: "2026-01-02T03:04:05Z".parse::<Timestamp>().unwrap(),
        entrypoint: vec!["/tool".to_owned()],
        command: vec!["--help".to_owned()],
        env: BTreeMap::from([("A".to_owned(), "b=c".to_owned())]),
        user: "65532:65532".to_owned(),
        labels: BTreeMap::from([("org.opencontainers.image.version".to_owned(), "1.2.3".to_owned())]),
        files: vec![
            File::program("/tool", program),
            File::text("/etc/a/b.conf", "b"),
            File::text("/etc/a.conf", "a"),
            File::text(format!("/{}long", "folder/".repeat(20)), "long"),
            File::link("/bin/other", "/tool"),
            File {
                path: "/tmp".to_owned(),
                mode: 0o1777,
                content: Content::Directory,
            },
        ],
    }
}

#[tokio::test]
async fn crane_and_a_registry_take_the_archive() {
    let dir = RunDir::create("oci").unwrap();
    let program = dir.path().join("program");
    // More than one block of gzip and of tar.
    let content: Vec<u8> = (0..300_000_u32).flat_map(u32::to_be_bytes).collect();
    std::fs::write(&program, &content).unwrap();
    let archive = dir.path().join("image.tar");
    let image = image(&program);
    let written = image.write(&archive).unwrap();

    let registry = Registry::start(Progress::Stderr).await.unwrap();
    let reference = registry.push(&archive, "tool:1").unwrap();
    assert_eq!(registry.digest(&reference).unwrap(), written.digest);
    let manifest = registry.manifest(&reference).unwrap();
    assert_eq!(manifest["layers"][0]["size"], written.packed);
    assert_eq!(
        manifest["annotations"]["org.opencontainers.image.version"],
        "1.2.3"
    );
    let config = registry.config(&reference).unwrap();
    assert_eq!(config["architecture"], "arm64");
    assert_eq!(config["created"], "2026-01-02T03:04:05Z");
    assert_eq!(
        config["config"],
        serde_json::json!({
            "User": "65532:65532",
            "Env": ["A=b=c"],
            "Entrypoint": ["/tool"],
            "Cmd": ["--help"],
            "WorkingDir": "/",
            "Labels": {"org.opencontainers.image.version": "1.2.3"},
        })
    );

    let files = dir.path().join("files.tar");
    registry.export(&reference, &files).unwrap();
    let long = format!("{}long", "folder/".repeat(20));
    let mut found = BTreeMap::new();
    let mut tar = tar::Archive::new(std::fs::File::open(&files).unwrap());
    for entry in tar.entries().unwrap() {
        let mut entry = entry.unwrap();
        let header = entry.header().clone();
        assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
        assert_eq!(header.mtime().unwrap(), 1_767_323_045);
        let path = entry
            .path()
            .unwrap()
            .to_string_lossy()
            .trim_matches('/')
            .to_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let kind = header.entry_type();
        if kind == EntryType::Symlink {
            content = entry.link_name_bytes().unwrap().into_owned();
        }
        found.insert(path, (kind, header.mode().unwrap() & 0o7777, content));
    }
    let regular = |path: &str, mode: u32, content: &[u8]| {
        (path.to_owned(), (EntryType::Regular, mode, content.to_vec()))
    };
    let wanted = [
        regular("tool", 0o755, &content),
        regular("etc/a/b.conf", 0o644, b"b"),
        regular("etc/a.conf", 0o644, b"a"),
        regular(&long, 0o644, b"long"),
        (
            "bin/other".to_owned(),
            (EntryType::Symlink, 0o777, b"/tool".to_vec()),
        ),
    ];
    for (path, file) in &wanted {
        assert_eq!(found.get(path), Some(file), "{path}");
    }
    let folders: Vec<_> = found
        .iter()
        .filter(|(_, (kind, ..))| *kind == EntryType::Directory)
        .map(|(path, (_, mode, _))| (path.as_str(), *mode))
        .filter(|(path, _)| !path.starts_with("folder"))
        .collect();
    assert_eq!(
        folders,
        [("bin", 0o755), ("etc", 0o755), ("etc/a", 0o755), ("tmp", 0o1777)]
    );
    assert_eq!(found.len(), wanted.len() + folders.len() + 20);
    registry.stop().await.unwrap();
}

#[tokio::test]
async fn a_damaged_archive_is_refused() {
    let dir = RunDir::create("oci").unwrap();
    let program = dir.path().join("program");
    std::fs::write(&program, "program").unwrap();
    let archive = dir.path().join("image.tar");
    image(&program).write(&archive).unwrap();
    let whole = std::fs::read(&archive).unwrap();
    let at = whole.windows(5).position(|bytes| bytes == b"arm64").unwrap();
    let mut damaged = whole.clone();
    damaged[at..at + 5].copy_from_slice(b"ppc64");
    std::fs::write(&archive, damaged).unwrap();
    let registry = Registry::start(Progress::Stderr).await.unwrap();
    assert!(registry.push(&archive, "tool:1").is_err());
    registry.stop().await.unwrap();
}

#[test]
fn the_same_image_is_the_same_bytes() {
    let dir = RunDir::create("oci").unwrap();
    let program = dir.path().join("program");
    std::fs::write(&program, "program").unwrap();
    let one = image(&program);
    let mut other = one.clone();
    other.files.reverse();
    let (a, b) = (dir.path().join("a.tar"), dir.path().join("b.tar"));
    assert_eq!(one.write(&a).unwrap(), other.write(&b).unwrap());
    assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());

    other.files.push(File::text("/tool", ""));
    let error = other.write(&b).unwrap_err().to_string();
    assert!(error.contains("the same path"), "{error}");
    for path in ["/a//b", "/a/", "/a/../b", "/", "./a"] {
        other.files = vec![File::text(path, "")];
        let error = other.write(&b).unwrap_err().to_string();
        assert!(error.contains("not an absolute path"), "{error}");
    }
}
