#![allow(clippy::unwrap_used)]

use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

use flate2::Compression;
use flate2::write::GzEncoder;
use reqwest::Url;

use super::*;
use crate::assets::downloaded_or_built;

/// What a server sends.
#[derive(Clone)]
enum Answer {
    Whole(Vec<u8>),
    /// Half of it, and then it closes the connection.
    Half(Vec<u8>),
    Status(&'static str),
    /// Half of it, and then nothing more.
    Stall(Vec<u8>),
    /// A byte of it now and then: never a stall, and never done in time.
    Drip(Vec<u8>),
    /// To this URL.
    Redirect(String),
    /// Zeros, until the client closes the connection.
    Endless,
    /// Nothing.
    Silence,
}

impl Answer {
    fn send(self, mut to: TcpStream) -> std::io::Result<()> {
        let head = |status: &str| format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
        let whole = |length: usize| format!("{}Content-Length: {length}\r\n\r\n", head("200 OK"));
        match self {
            Self::Whole(body) => {
                to.write_all(whole(body.len()).as_bytes())?;
                to.write_all(&body)
            }
            Self::Half(body) => {
                to.write_all(whole(body.len()).as_bytes())?;
                to.write_all(&body[..body.len() / 2])
            }
            Self::Stall(body) => {
                to.write_all(whole(body.len()).as_bytes())?;
                to.write_all(&body[..body.len() / 2])?;
                to.read_to_end(&mut Vec::new()).map(drop)
            }
            Self::Drip(body) => {
                to.write_all(whole(body.len()).as_bytes())?;
                for byte in body {
                    to.write_all(&[byte])?;
                    std::thread::sleep(Duration::from_millis(10));
                }
                Ok(())
            }
            Self::Redirect(url) => {
                let head = head("302 Found");
                to.write_all(format!("{head}Location: {url}\r\nContent-Length: 0\r\n\r\n").as_bytes())
            }
            Self::Status(status) => {
                to.write_all(format!("{}Content-Length: 0\r\n\r\n", head(status)).as_bytes())
            }
            Self::Endless => {
                to.write_all(format!("{}\r\n", head("200 OK")).as_bytes())?;
                while to.write_all(&[0; 4096]).is_ok() {}
                Ok(())
            }
            Self::Silence => to.read_to_end(&mut Vec::new()).map(drop),
        }
    }
}

/// A server of an index and of archives.
struct Server {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// `index` is made from the server's URL. The same `archive` is behind every URL but that of the index.
    fn start(index: impl FnOnce(&str) -> Answer, archive: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let (index, requests) = (index(&url), Arc::new(Mutex::new(Vec::new())));
        let seen = requests.clone();
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let (index, archive, seen) = (index.clone(), archive.clone(), seen.clone());
                std::thread::spawn(move || {
                    let mut connection = connection.unwrap();
                    let path = path(&mut connection);
                    let answer = if path == "/index.yaml" { index } else { archive };
                    seen.lock().unwrap().push(path);
                    // The client closes the connection of what it does not want.
                    let _ = answer.send(connection);
                });
            }
        });
        Self { url, requests }
    }

    fn source(&self) -> Source {
        Source {
            index: format!("{}index.yaml", self.url),
            archives: self.url.clone(),
            redirects: Vec::new(),
            proxy: false,
            limits: Limits {
                index_bytes: 1 << 20,
                archive_bytes: 1 << 20,
                unpacked_bytes: 1 << 20,
                ..Source::public().limits
            },
        }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// Reads the head of a request.
fn path(connection: &mut TcpStream) -> String {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && connection.read(&mut byte).unwrap() == 1 {
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    head.split(' ').nth(1).unwrap_or_default().to_owned()
}

/// A compressed tar of (path, type, content). The paths are written as they are.
fn packed(files: &[(&str, EntryType, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (path, kind, content) in files {
        let mut header = tar::Header::new_old();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        header.set_cksum();
        archive.append(&header, *content).unwrap();
    }
    archive.into_inner().unwrap().finish().unwrap()
}

const ETCD: (&str, EntryType, &[u8]) = ("controller-tools/envtest/etcd", EntryType::Regular, b"E");
const APISERVER: (&str, EntryType, &[u8]) = (
    "controller-tools/envtest/kube-apiserver",
    EntryType::Regular,
    b"A",
);
const KUBECTL: (&str, EntryType, &[u8]) = ("controller-tools/envtest/kubectl", EntryType::Regular, b"K");

fn good() -> Vec<u8> {
    let folder = ("controller-tools/envtest/", EntryType::Directory, &b""[..]);
    let licence = ("controller-tools/envtest/LICENSE", EntryType::Regular, &b"L"[..]);
    packed(&[folder, ETCD, licence, APISERVER, KUBECTL])
}

fn sha512(content: &[u8]) -> String {
    crate::digest::hex(digest::digest(&digest::SHA512, content).as_ref())
}

/// An index in the shape of the published one, with the archive of `version` and `others` that nobody may choose.
fn index(url: &str, version: &str, hash: &str, others: &[&str]) -> String {
    let mut text = "releases:\n".to_owned();
    let platform = platform();
    for (version, hash) in others
        .iter()
        .map(|other| (*other, "0".repeat(128)))
        .chain([(version, hash.to_owned())])
    {
        text.push_str(&format!("  {version}:\n"));
        for (platform, hash) in [("plan9-mips", "1".repeat(128)), (&platform, hash)] {
            let name = format!("envtest-{version}-{platform}.tar.gz");
            text.push_str(&format!(
                "    {name}:\n      hash: {hash}\n      selfLink: {url}{name}\n"
            ));
        }
    }
    text
}

/// A server of `archive` with its checksum.
fn serving(archive: Vec<u8>) -> Server {
    let hash = sha512(&archive);
    Server::start(
        |url| Answer::Whole(index(url, "v1.37.10", &hash, &[]).into_bytes()),
        Answer::Whole(archive),
    )
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name != ".envtest.lock").collect();
    names.sort();
    names
}

/// A folder in that of a run.
fn parent() -> (RunDir, PathBuf) {
    let dir = RunDir::create("published").unwrap();
    let parent = dir.path().join("testenv");
    (dir, parent)
}

#[test]
fn the_newest_published_patch_is_downloaded_once_and_kept() {
    let archive = good();
    let hash = sha512(&archive);
    let others = ["v1.37.9", "v1.37.11-rc.0", "v1.36.12", "v1.38.0", "v2.37.12"];
    let server = Server::start(
        |url| Answer::Whole(index(url, "v1.37.10", &hash.to_ascii_uppercase(), &others).into_bytes()),
        Answer::Whole(archive),
    );
    let (_run, parent) = parent();
    let get = || server.source().get(&parent, Progress::Quiet).unwrap();
    let dirs =
        std::thread::scope(|scope| [scope.spawn(get), scope.spawn(get)].map(|got| got.join().unwrap()));
    assert_eq!(dirs[0], dirs[1]);
    let folder = format!("envtest-v1.37.10-{}-{}", platform(), &hash[..16]);
    assert_eq!(dirs[0], parent.join(&folder));
    assert_eq!(names(&dirs[0]), REQUIRED);
    for (name, content) in REQUIRED.into_iter().zip(["E", "A", "K"]) {
        let program = dirs[0].join(name);
        assert_eq!(std::fs::read_to_string(&program).unwrap(), content);
        assert_eq!(program.metadata().unwrap().permissions().mode() & 0o111, 0o111);
    }
    let archive = format!("/envtest-v1.37.10-{}.tar.gz", platform());
    assert_eq!(server.requests(), ["/index.yaml", &archive]);

    // Damaged: a program is missing.
    std::fs::remove_file(dirs[0].join("kubectl")).unwrap();
    assert_eq!(get(), dirs[0]);
    assert_eq!(names(&parent), [folder]);
    assert_eq!(names(&dirs[0]), REQUIRED);
    assert_eq!(server.requests().len(), 4);
}

#[tokio::test]
async fn a_caller_may_be_in_a_runtime() {
    let (_run, parent) = parent();
    serving(good()).source().get(&parent, Progress::Quiet).unwrap();
}

#[test]
fn what_is_broken_is_neither_used_nor_kept() {
    let whole = |archive: &[u8]| Answer::Whole(archive.to_vec());
    let hash = sha512(&good());
    let of = |version: &'static str, hash: &str| {
        let hash = hash.to_owned();
        move |url: &str| Answer::Whole(index(url, version, &hash, &[]).into_bytes())
    };
    let elsewhere = |_: &str| Answer::Whole(index("http://127.0.0.2/", "v1.37.0", &hash, &[]).into_bytes());
    let noise: Vec<u8> = (0..4096_u32)
        .flat_map(|n| sha512(&n.to_be_bytes()).into_bytes())
        .collect();
    let cut = &good()[..good().len() - 12];
    let (wrong, with) = ("0".repeat(128), |file| packed(&[ETCD, file, APISERVER, KUBECTL]));
    let file = |path| (path, EntryType::Regular, &b"x"[..]);
    let link = (KUBECTL.0, EntryType::Symlink, &b""[..]);
    let zeros = vec![0; 2 << 20];
    let bomb = packed(&[
        ETCD,
        ("controller-tools/envtest/x", EntryType::Regular, &zeros),
        APISERVER,
        KUBECTL,
    ]);
    let servers = [
        (
            "error decoding response body",
            Server::start(of("v1.37.0", &hash), Answer::Half(good())),
        ),
        (
            "cannot be used: its SHA-512 is",
            Server::start(of("v1.37.0", &wrong), whole(&good())),
        ),
        ("its SHA-512 is", Server::start(of("v1.37.0", &hash), whole(cut))),
        (
            "404 Not Found",
            Server::start(of("v1.37.0", &hash), Answer::Status("404 Not Found")),
        ),
        (
            "has more than 1048576 bytes",
            Server::start(of("v1.37.0", &hash), Answer::Endless),
        ),
        (
            "has no v1.37 for",
            Server::start(of("v1.36.0", &hash), whole(&good())),
        ),
        (
            "has no SHA-512 of v1.37.0",
            Server::start(of("v1.37.0", "../../x"), whole(&good())),
        ),
        ("which is not below", Server::start(elsewhere, whole(&good()))),
        (
            "it is no index",
            Server::start(|_| whole(b"<html>}"), whole(&good())),
        ),
        (
            "it is no index",
            Server::start(|_| whole(b"releases: 7"), whole(&good())),
        ),
        (
            "it is no text",
            Server::start(|_| whole(b"releases: \xff"), whole(&good())),
        ),
        (
            "has more than 1048576 bytes",
            Server::start(|_| Answer::Endless, whole(&good())),
        ),
        (
            "500 Internal",
            Server::start(|_| Answer::Status("500 Internal Server Error"), whole(&good())),
        ),
        // With the checksum that the index has.
        (
            "cannot be unpacked",
            serving(
                packed(&[("controller-tools/envtest/etcd", EntryType::Regular, &noise)])[..90_000].to_vec(),
            ),
        ),
        ("it is incomplete or no archive", serving(cut.to_vec())),
        ("it is incomplete or no archive", serving(b"no archive".to_vec())),
        (
            "it has the path controller-tools/envtest/../../../x",
            serving(with(file("controller-tools/envtest/../../../x"))),
        ),
        ("it has the path /etc/x", serving(with(file("/etc/x")))),
        (
            "it has no controller-tools/envtest/kubectl",
            serving(packed(&[ETCD, APISERVER])),
        ),
        (
            "it has no controller-tools/envtest/kubectl",
            serving(packed(&[ETCD, APISERVER, file("bin/kubectl")])),
        ),
        ("kubectl is no file", serving(packed(&[ETCD, APISERVER, link]))),
        ("cannot write etcd", serving(with(ETCD))),
        ("it is incomplete or no archive", serving(bomb)),
    ];
    for (number, (expected, server)) in servers.iter().enumerate() {
        let (_run, parent) = parent();
        let error = server.source().get(&parent, Progress::Quiet);
        let error = format!("{:#}", error.expect_err(expected));
        assert!(error.contains(expected), "{number}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        assert_eq!(names(&parent), [""; 0], "{number}: {error}");
    }
}

#[test]
fn what_cannot_be_downloaded_is_built() {
    let (_run, parent) = parent();
    let get = |server: Option<&Server>| {
        let build = || Ok(PathBuf::from("built"));
        downloaded_or_built(server.map(Server::source), &parent, Progress::Quiet, build).unwrap()
    };
    let bad = Server::start(|_| Answer::Status("404 Not Found"), Answer::Silence);
    assert_eq!(get(Some(&bad)), Path::new("built"));
    assert_eq!(bad.requests(), ["/index.yaml"]);
    // IDTOKEN_TESTENV_BUILD=1
    assert_eq!(get(None), Path::new("built"));
    assert_eq!(get(Some(&serving(good()))).parent(), Some(parent.as_path()));
}

#[test]
fn no_network_is_no_wait() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = Server::start(|_| Answer::Silence, Answer::Silence);
    let quick = Limits {
        connect: Duration::from_millis(200),
        index: Duration::from_millis(400),
        ..Source::public().limits
    };
    let source = |index: String| Source {
        index,
        limits: quick,
        ..server.source()
    };
    for (index, expected) in [
        (format!("http://{closed}/index.yaml"), "Connection refused"),
        // It accepts connections and never answers.
        (server.source().index, "it takes too long"),
        (
            server.source().index.replacen("http", "https", 1),
            "operation timed out",
        ),
        ("http://nowhere.invalid/index.yaml".to_owned(), "cannot be read"),
    ] {
        let (_run, parent) = parent();
        let error = source(index).get(&parent, Progress::Quiet).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_redirect_leads_to_known_hosts_only() {
    let archive = good();
    let elsewhere = serving(archive.clone());
    let file = format!("{}files/envtest.tar.gz", elsewhere.url);
    let to = |url: String| {
        let hash = sha512(&archive);
        Server::start(
            move |own| Answer::Whole(index(own, "v1.37.10", &hash, &[]).into_bytes()),
            Answer::Redirect(url),
        )
    };
    let get = |server: &Server, allowed: &[&String]| {
        let (_run, parent) = parent();
        let source = Source {
            redirects: allowed.iter().copied().cloned().collect(),
            ..server.source()
        };
        let got = source.get(&parent, Progress::Quiet);
        assert_eq!(names(&parent).len(), usize::from(got.is_ok()));
        got.map(drop).map_err(|error| format!("{error:#}"))
    };
    // The same content, with the right checksum: what counts is the host.
    let server = to(format!("{file}?signature=secret"));
    let lookalike = elsewhere
        .url
        .replace("http://127.0.0.1", "http://127.0.0.1.example");
    let secure = elsewhere.url.replace("http:", "https:");
    for allowed in [&[][..], &[&lookalike], &[&secure]] {
        let error = get(&server, allowed).unwrap_err();
        assert!(
            error.contains(&format!("it redirects to {file}, which is not followed")),
            "{error}"
        );
        assert!(!error.contains("secret") && error.lines().count() == 1, "{error}");
        assert_eq!(elsewhere.requests(), [""; 0], "{allowed:?}");
    }
    assert_eq!(get(&server, &[&elsewhere.url]), Ok(()));
    assert_eq!(elsewhere.requests(), ["/files/envtest.tar.gz?signature=secret"]);
    // A refusal does not show the signature either.
    let gone = Server::start(|_| Answer::Silence, Answer::Status("403 Forbidden"));
    let refused = to(format!("{}files?signature=secret", gone.url));
    let error = get(&refused, &[&gone.url]).unwrap_err();
    assert!(
        error.contains("403 Forbidden") && !error.contains("secret"),
        "{error}"
    );
    // By a host that is allowed to one that is not, and in a circle.
    let second = to(format!("{}again", server.url));
    let error = get(&second, &[&server.url]).unwrap_err();
    assert!(
        error.contains(&format!("it redirects to {file}, which")),
        "{error}"
    );
    let circle = to("again".to_owned());
    let error = get(&circle, &[&circle.url]).unwrap_err();
    assert!(error.contains("again, which is not followed"), "{error}");
    assert!(circle.requests().len() < 10, "{:?}", circle.requests());
    // An index that has moved.
    let moved = Server::start(|_| Answer::Redirect(file.clone()), Answer::Silence);
    let error = get(&moved, &[]).unwrap_err();
    assert!(
        error.contains("index of published archives cannot be read") && error.contains("not followed"),
        "{error}"
    );
}

#[test]
fn what_is_public_is_https_to_the_end() {
    let public = Source::public();
    let urls = public.redirects.iter().chain([&public.index, &public.archives]);
    for url in urls {
        let parsed = Url::parse(url).unwrap();
        let host = parsed.host_str().unwrap();
        assert_eq!(parsed.scheme(), "https", "{url}");
        assert!(
            host == "github.com" || host.ends_with(".githubusercontent.com"),
            "{url}"
        );
        // Otherwise another host could begin so.
        assert!(url[8..].contains('/'), "{url}");
    }
    assert!(!public.redirects.is_empty());
}

#[test]
fn a_stall_ends_with_an_error_that_says_so() {
    let archive = good();
    let hash = sha512(&archive);
    let limits = Limits {
        read: Duration::from_millis(150),
        archive: Duration::from_millis(600),
        ..Source::public().limits
    };
    for (answer, expected) in [
        (Answer::Silence, "cannot be used: nothing came for 150ms"),
        (
            Answer::Stall(archive.clone()),
            "cannot be used: nothing came for 150ms",
        ),
        // At least 100 bytes, which take a second.
        (Answer::Drip(archive.clone()), "cannot be used: it takes too long"),
    ] {
        let hash = hash.clone();
        let server = Server::start(
            move |url| Answer::Whole(index(url, "v1.37.10", &hash, &[]).into_bytes()),
            answer,
        );
        let source = Source {
            limits,
            ..server.source()
        };
        let (_run, parent) = parent();
        let began = std::time::Instant::now();
        let error = format!("{:#}", source.get(&parent, Progress::Quiet).unwrap_err());
        assert!(error.contains(expected), "{error}");
        assert!(began.elapsed() < Duration::from_secs(10), "{error}");
        assert_eq!(names(&parent), [""; 0], "{error}");
    }
}

#[test]
fn only_released_patches_of_the_pinned_minor_version_count() {
    assert!(Version::parse(KUBERNETES_VERSION).is_some());
    assert_eq!(Version::parse("v1.37.10").unwrap().to_string(), "v1.37.10");
    assert!(Version::parse("v1.37.10") > Version::parse("v1.37.9"));
    for other in [
        "v1.37",
        "v1.37.",
        "v1.370.1",
        "v1.36.1",
        "v1.37.1-rc.0",
        "v1.37.+1",
        "1.37.1",
    ] {
        assert_eq!(Version::parse(other), None, "{other}");
    }
}
