//! A release on its way to its users: pushed, signed, verified with the commands of the page, pulled, and tampered with.
//!
//! Its programs are stand-ins, since only the way is tested here. `cargo xtask release --registry localhost:PORT` goes it with the real ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use idtoken_testenv::archive::{self, Entry};
use idtoken_testenv::node::packages;
use idtoken_testenv::oci::{Arch, File, Image};
use idtoken_testenv::{Artifact, Progress, Publisher, Registry, RunDir, binaries, sha256};
use jiff::Timestamp;
use serde_json::{Value, json};

const VERSION: &str = env!("CARGO_PKG_VERSION");
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// What GitHub tells the workflow of a tag.
const GITHUB: [(&str, &str); 7] = [
    ("GITHUB_SERVER_URL", "https://github.example.com"),
    ("GITHUB_REPOSITORY", "acme/idtoken-operator"),
    (
        "GITHUB_WORKFLOW_REF",
        "acme/idtoken-operator/.github/workflows/release.yml@refs/tags/v1",
    ),
    ("GITHUB_REF", "refs/tags/v1"),
    ("GITHUB_SHA", COMMIT),
    ("GITHUB_RUN_ID", "17"),
    ("GITHUB_RUN_ATTEMPT", "1"),
];

/// Of the registry, which asks for none.
const PASSWORD: &str = "correct-horse";

/// A published release, and who published it.
struct Published {
    dir: RunDir,
    registry: Registry,
    publisher: Publisher,
    key: PathBuf,
    table: String,
    /// The digests that the build knew before anything was pushed.
    built: BTreeMap<String, String>,
}

impl Published {
    /// None where a program is missing that the machine itself has to have.
    async fn new() -> Result<Option<Self>> {
        if packages::find_or_skip(("jq", "jq"), Progress::Stderr)?.is_none() {
            return Ok(None);
        }
        let dir = RunDir::create("release")?;
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let publisher = Publisher::new(root, Progress::Stderr)?;
        let registry = Registry::start(Progress::Stderr).await?;
        let key = publisher.key(&dir.path().join("key"))?;
        let dist = dir.path().join(VERSION);
        let built = release(root, &dist)?;
        let config = dir.path().join("docker");
        let login = [
            ("REGISTRY_USER", "robot"),
            ("REGISTRY_PASSWORD", PASSWORD),
            ("DOCKER_CONFIG", config.to_str().context("a folder's name")?),
        ];
        let variables = [&GITHUB[..], &login].concat();
        let table = publisher.publish(&dist, registry.address(), &key, &variables)?;
        Ok(Some(Self {
            dir,
            registry,
            publisher,
            key,
            table,
            built,
        }))
    }

    fn dist(&self) -> PathBuf {
        self.dir.path().join(VERSION)
    }

    fn verify(&self) -> Result<String> {
        self.publisher
            .verify(&self.dist(), self.registry.address(), &self.key)
    }

    /// Name of an artifact in the registry.
    fn reference(&self, name: &str) -> String {
        format!("{}/{name}:{VERSION}", self.registry.address())
    }

    /// What verification says while the file is other than it was.
    fn with(&self, file: &Path, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Result<String> {
        let before = std::fs::read(file).with_context(|| file.display().to_string())?;
        std::fs::write(file, change(before.clone()))?;
        let said = self.verify();
        std::fs::write(file, before)?;
        Ok(said.expect_err("what was tampered with is refused").to_string())
    }
}

/// Makes what `cargo xtask release` makes, of the real chart and manifests and of programs that do nothing. Returns the digests of what is
/// to be pushed.
fn release(root: &Path, dist: &Path) -> Result<BTreeMap<String, String>> {
    std::fs::create_dir(dist)?;
    let time: Timestamp = "2026-01-02T03:04:05Z".parse()?;
    let mut built = BTreeMap::new();
    for name in ["idtoken-operator", "idtoken-emulator"] {
        for (arch, text) in [(Arch::Amd64, "amd64"), (Arch::Arm64, "arm64")] {
            let image = Image {
                repository: name.to_owned(),
                tag: VERSION.to_owned(),
                arch,
                created: time,
                entrypoint: vec![format!("/{name}")],
                command: Vec::new(),
                env: BTreeMap::new(),
                user: "65532:65532".to_owned(),
                labels: BTreeMap::new(),
                files: vec![File::text(format!("/{name}"), text)],
            };
            let stem = dist.join(format!("{name}-{VERSION}-linux-{text}"));
            let written = image.write(Path::new(&format!("{}.oci.tar", stem.display())))?;
            built.insert(format!("{name}:{VERSION}-{text}"), written.digest);
            let sbom = json!({"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
                "components": [{"type": "library", "name": "serde", "version": "1.0.0"}]});
            std::fs::write(format!("{}.cdx.json", stem.display()), sbom.to_string())?;
        }
    }
    let helm = binaries::HELM.build(&["helm"], Progress::Stderr)?.join("helm");
    let packaged = Command::new(helm)
        .arg("package")
        .arg(root.join("charts/idtoken-operator"))
        .arg("--destination")
        .arg(dist)
        .output()?;
    ensure!(packaged.status.success(), "{packaged:?}");
    let package = std::fs::read(dist.join(format!("idtoken-operator-{VERSION}.tgz")))?;
    let chart = std::fs::read_to_string(root.join("charts/idtoken-operator/Chart.yaml"))?;
    let chart = Artifact::chart(archive::again(&package, time)?, &serde_saphyr::from_str(&chart)?)?;
    let crd = std::fs::read_to_string(root.join("crds/idtokenrequests.yaml"))?;
    let manifests = archive::tar_gz(&[Entry::text("crds/idtokenrequests.yaml", crd)], time)?;
    let manifests = Artifact::manifests(
        manifests,
        &json!({"name": "idtoken-operator", "version": VERSION}),
    );
    for (kind, artifact) in [("chart", chart), ("manifests", manifests)] {
        let archive = dist.join(format!("idtoken-operator-{VERSION}-{kind}.oci.tar"));
        let digest = artifact.write(&archive, time, Some(COMMIT))?;
        let folder = if kind == "chart" { "charts" } else { kind };
        built.insert(format!("{folder}/idtoken-operator:{VERSION}"), digest);
    }
    let sums = Command::new("sh")
        .args(["-c", "sha256sum * >../sums && mv ../sums SHA256SUMS"])
        .current_dir(dist)
        .output()?;
    ensure!(sums.status.success(), "{sums:?}");
    Ok(built)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "builds cosign: in cargo xtask nightly"]
async fn what_is_pushed_is_verified_and_pulled_and_what_is_tampered_with_is_refused() -> Result<()> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let Some(published) = Published::new().await? else {
        return Ok(());
    };
    the_table_has_all_of_it(&published)?;
    it_logs_in_to_the_registry(&published)?;
    the_chart_names_the_registry(&published)?;
    let said = published.verify()?;
    the_provenance_names_commit_and_workflow(&said)?;
    helm_and_crane_pull_it(&published)?;
    tampering_is_refused(&published).await?;
    // Nothing of that has left a trace.
    published.verify()?;
    another_key_is_refused(&published)
}

fn the_table_has_all_of_it(published: &Published) -> Result<()> {
    let rows: Vec<Vec<&str>> = published
        .table
        .lines()
        .skip(2)
        .map(|row| row.trim_matches(['|', ' ']).split(" | ").collect())
        .collect();
    for row in &rows {
        ensure!(row.len() == 4, "{row:?}");
        ensure!(row[1].parse::<u64>()? > 50, "{row:?}");
        ensure!(row[2].trim_matches('`').len() == "sha256:".len() + 64, "{row:?}");
    }
    for name in [
        "idtoken-operator",
        "idtoken-emulator",
        "charts/idtoken-operator",
        "manifests/idtoken-operator",
    ] {
        let reference = published.reference(name);
        let row = rows
            .iter()
            .find(|row| row[0] == reference)
            .context(reference.clone())?;
        ensure!(row[3].starts_with("signature, provenance"), "{row:?}");
        assert_eq!(row[2], format!("`{}`", published.registry.digest(&reference)?));
    }
    // Four archives of images with an SBOM each, the chart, two artifacts; and the checksums themselves.
    assert_eq!(rows.len(), 4 + 4 + 4 + 1 + 2 + 1, "{}", published.table);
    for (name, digest) in &published.built {
        let reference = format!("{}/{name}", published.registry.address());
        assert_eq!(published.registry.digest(&reference)?, *digest, "{name}");
    }
    let index = published
        .registry
        .manifest(&published.reference("idtoken-operator"))?;
    let platforms: Vec<_> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|part| &part["platform"])
        .collect();
    assert_eq!(
        platforms,
        [
            &json!({"architecture": "amd64", "os": "linux"}),
            &json!({"architecture": "arm64", "os": "linux"})
        ]
    );
    Ok(())
}

fn it_logs_in_to_the_registry(published: &Published) -> Result<()> {
    use base64::Engine;
    let config = std::fs::read(published.dir.path().join("docker/config.json"))?;
    let config: Value = serde_json::from_slice(&config)?;
    let given = base64::engine::general_purpose::STANDARD.encode(format!("robot:{PASSWORD}"));
    assert_eq!(config["auths"][published.registry.address()]["auth"], given);
    assert!(!published.table.contains(PASSWORD));
    Ok(())
}

/// Where no registry is given. The charts are others: what the project's own names must not be asked here.
fn the_chart_names_the_registry(published: &Published) -> Result<()> {
    let package = published.dist().join(format!("idtoken-operator-{VERSION}.tgz"));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("xtask/release/publish.sh");
    let chart = format!("apiVersion: v2\nname: idtoken-operator\nversion: {VERSION}\n");
    let before = std::fs::read(&package)?;
    // Nobody listens at the second.
    for (repository, wanted) in [
        ("idtoken-operator", "the chart names no registry"),
        ("127.0.0.1:1/platform/idtoken-operator", "127.0.0.1:1/"),
    ] {
        let files = [
            Entry::text("idtoken-operator/Chart.yaml", chart.clone()),
            Entry::text(
                "idtoken-operator/values.yaml",
                format!("image: {{repository: {repository:?}}}\n"),
            ),
        ];
        std::fs::write(&package, archive::tar_gz(&files, Timestamp::UNIX_EPOCH)?)?;
        let mut command = published.publisher.command(&script);
        let command = isolated(command.arg(published.dist()), published);
        let said = published.publisher.run(command);
        let said = said.expect_err("there is no registry").to_string();
        ensure!(said.contains(wanted), "{said}");
    }
    std::fs::write(&package, before)?;
    Ok(())
}

/// `said` is what cosign prints of each attestation: an envelope on a line.
fn the_provenance_names_commit_and_workflow(said: &str) -> Result<()> {
    use base64::Engine;
    let statements: Vec<Value> = said
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|envelope| {
            let payload = envelope["payload"].as_str()?;
            let payload = base64::engine::general_purpose::STANDARD.decode(payload).ok()?;
            serde_json::from_slice(&payload).ok()
        })
        .collect();
    let of = |kind: &str| {
        statements
            .iter()
            .filter(|statement| statement["predicateType"] == kind)
            .count()
    };
    assert_eq!(of("https://slsa.dev/provenance/v1"), 4, "{said}");
    assert_eq!(of("https://cyclonedx.org/bom"), 2, "{said}");
    for statement in &statements {
        if statement["predicateType"] == "https://slsa.dev/provenance/v1" {
            let predicate = &statement["predicate"];
            let source = &predicate["buildDefinition"]["resolvedDependencies"][0];
            assert_eq!(source["digest"]["gitCommit"], COMMIT);
            assert_eq!(
                source["uri"],
                "git+https://github.example.com/acme/idtoken-operator@refs/tags/v1"
            );
            assert_eq!(
                predicate["runDetails"]["builder"]["id"],
                "https://github.example.com/acme/idtoken-operator/.github/workflows/release.yml@refs/tags/v1"
            );
        }
    }
    Ok(())
}

fn helm_and_crane_pull_it(published: &Published) -> Result<()> {
    let chart = format!("oci://{}/charts/idtoken-operator", published.registry.address());
    let digest = &published.built[&format!("charts/idtoken-operator:{VERSION}")];
    let by_digest = format!("{chart}@{digest}");
    for helm in [binaries::HELM, binaries::HELM_4] {
        let helm = helm.build(&["helm"], Progress::Stderr)?.join("helm");
        for chart in [&[chart.as_str(), "--version", VERSION][..], &[by_digest.as_str()]] {
            let mut command = published.publisher.command(&helm);
            command.args(["template", "idtoken-operator", "--plain-http"]);
            command.args(chart);
            command.args(["--set", "image.repository=registry.example.com/idtoken-operator"]);
            let said = published.publisher.run(isolated(&mut command, published))?;
            assert!(
                said.contains(&format!("registry.example.com/idtoken-operator:{VERSION}")),
                "{said}"
            );
        }
    }
    let files = published.dir.path().join("files.tar");
    published
        .registry
        .export(&published.reference("manifests/idtoken-operator"), &files)?;
    let mut files = tar_names(&files)?;
    files.retain(|name| name.ends_with(".yaml"));
    assert_eq!(files, ["crds/idtokenrequests.yaml"]);
    Ok(())
}

/// Helm with caches of its own.
fn isolated<'c>(command: &'c mut Command, published: &Published) -> &'c mut Command {
    let home = published.dir.path().join("helm");
    command
        .env("HELM_CACHE_HOME", &home)
        .env("HELM_CONFIG_HOME", &home)
        .env("HELM_DATA_HOME", &home)
}

fn tar_names(archive: &Path) -> Result<Vec<String>> {
    let listed = Command::new("tar").arg("-tf").arg(archive).output()?;
    ensure!(listed.status.success(), "{listed:?}");
    Ok(String::from_utf8(listed.stdout)?
        .lines()
        .map(str::to_owned)
        .collect())
}

async fn tampering_is_refused(published: &Published) -> Result<()> {
    let registry = &published.registry;
    let flip = |mut content: Vec<u8>| {
        let middle = content.len() / 2;
        content[middle] ^= 1;
        content
    };
    let layer = |reference: &str| -> Result<PathBuf> {
        let manifest = registry.manifest(reference)?;
        let digest = manifest["layers"][0]["digest"]
            .as_str()
            .context("a layer")?
            .to_owned();
        Ok(registry.blob(&digest))
    };

    // A registry gives other bytes than the signed digests name: clients refuse them.
    let image = layer(&format!(
        "{}/idtoken-operator:{VERSION}-amd64",
        registry.address()
    ))?;
    let chart = layer(&published.reference("charts/idtoken-operator"))?;
    let whole = [std::fs::read(&image)?, std::fs::read(&chart)?];
    let liar = liar(published).await?;
    let helm = binaries::HELM.build(&["helm"], Progress::Stderr)?.join("helm");
    let mut pull = published.publisher.command(&helm);
    pull.args([
        "pull",
        &format!("oci://{liar}/charts/idtoken-operator"),
        "--version",
        VERSION,
        "--plain-http",
    ])
    .current_dir(published.dir.path());
    let to = published.dir.path().join("pulled.tar");
    let part = format!("{liar}/idtoken-operator:{VERSION}-amd64");
    registry.export(&part, &to)?;
    published.publisher.run(isolated(&mut pull, published))?;
    // Each stays a good archive of the same size: only the time in gzip's header is another.
    for (file, content) in [(&image, &whole[0]), (&chart, &whole[1])] {
        let mut content = content.clone();
        content[4] ^= 1;
        std::fs::write(file, content)?;
    }
    let said = registry
        .export(&part, &to)
        .expect_err("a tampered layer")
        .to_string();
    ensure!(said.contains("error verifying"), "{said}");
    let said = published
        .publisher
        .run(isolated(&mut pull, published))
        .expect_err("a tampered chart")
        .to_string();
    ensure!(said.contains("digest"), "{said}");
    std::fs::write(&image, &whole[0])?;
    std::fs::write(&chart, &whole[1])?;

    // The registry gives something else under the name, which is whole in itself: nobody has signed that.
    for name in [
        "idtoken-operator",
        "charts/idtoken-operator",
        "manifests/idtoken-operator",
    ] {
        let reference = published.reference(name);
        let kept = registry.digest(&reference)?;
        let other = published.dir.path().join("other.oci.tar");
        let content = archive::tar_gz(&[Entry::text("evil", "evil".to_owned())], Timestamp::UNIX_EPOCH)?;
        Artifact::manifests(content, &json!({})).write(&other, Timestamp::UNIX_EPOCH, None)?;
        push_layout(published, &other, &reference)?;
        ensure!(registry.digest(&reference)? != kept);
        let said = published.verify().expect_err("another artifact").to_string();
        ensure!(
            said.contains("no signatures found") || said.contains("no matching"),
            "{name}: {said}"
        );
        registry.crane(&[
            "tag",
            &format!("{}@{kept}", reference.rsplit_once(':').unwrap().0),
            VERSION,
        ])?;
        published.verify().with_context(|| format!("{name} is back"))?;
    }

    // An SBOM: the file of the page, and the attestation in the registry.
    let sbom = published
        .dist()
        .join(format!("idtoken-operator-{VERSION}-linux-amd64.cdx.json"));
    let said = published.with(&sbom, |text| {
        String::from_utf8(text)
            .unwrap()
            .replace("serde", "sarde")
            .into_bytes()
    })?;
    ensure!(said.contains("1 computed checksum did NOT match"), "{said}");
    forged_attestation(published)?;

    // The checksums and what signs them.
    let dist = published.dist();
    let said = published.with(&dist.join("SHA256SUMS"), flip)?;
    ensure!(said.contains("invalid signature"), "{said}");
    Ok(())
}

/// Starts a registry that gives blobs as they are in the other one's folder, whatever their digests say. Returns its address.
async fn liar(published: &Published) -> Result<String> {
    let upstream = published.registry.address().to_owned();
    let blobs = published.registry.blob("");
    let answer = async move |request: Request| -> Result<Response> {
        let path = request.uri().path().to_owned();
        if let Some((_, digest)) = path.split_once("/blobs/") {
            let content = std::fs::read(blobs.join(digest.replace(':', "/")))?;
            return Ok(Response::new(Body::from(content)));
        }
        let accept = request.headers().get("accept").cloned();
        let mut asked = reqwest::Client::new().get(format!("http://{upstream}{path}"));
        if let Some(accept) = accept {
            asked = asked.header("accept", accept);
        }
        let answer = asked.send().await?;
        let mut response = Response::builder().status(answer.status());
        for name in ["content-type", "docker-content-digest"] {
            if let Some(value) = answer.headers().get(name) {
                response = response.header(name, value);
            }
        }
        Ok(response.body(Body::from(answer.bytes().await?))?)
    };
    let app = axum::Router::new().fallback(move |request: Request| {
        let answer = answer.clone();
        async move {
            answer(request)
                .await
                .unwrap_or_else(|error| panic!("the registry cannot answer: {error:#}"))
        }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(address)
}

/// Pushes an archive as it is.
fn push_layout(published: &Published, archive: &Path, reference: &str) -> Result<()> {
    let layout = published.dir.path().join("layout");
    std::fs::create_dir(&layout)?;
    let unpacked = Command::new("tar")
        .arg("-xf")
        .arg(archive)
        .arg("-C")
        .arg(&layout)
        .status()?;
    ensure!(unpacked.success());
    published
        .registry
        .crane(&["push", &layout.to_string_lossy(), reference])?;
    Ok(std::fs::remove_dir_all(&layout)?)
}

/// Whoever has the registry replaces the SBOM in its attestation, with all digests right: the signature does not fit.
fn forged_attestation(published: &Published) -> Result<()> {
    use base64::Engine;
    let base64 = base64::engine::general_purpose::STANDARD;
    let registry = &published.registry;
    let repository = format!("{}/idtoken-operator", registry.address());
    let image = registry.digest(&format!("{repository}:{VERSION}-amd64"))?;
    // Where the registry has no API of referrers, they are in an index of this name.
    let tag = image.replace(':', "-");
    let index = registry.manifest(&format!("{repository}:{tag}"))?;
    let mut forged = index.clone();
    let mut replaced = 0;
    for part in forged["manifests"].as_array_mut().context("attestations")? {
        let digest = part["digest"].as_str().context("a digest")?.to_owned();
        let mut manifest = registry.manifest(&format!("{repository}@{digest}"))?;
        let layer = manifest["layers"][0]["digest"]
            .as_str()
            .context("a bundle")?
            .to_owned();
        let mut bundle: Value = serde_json::from_slice(&std::fs::read(registry.blob(&layer))?)?;
        let payload = base64.decode(bundle["dsseEnvelope"]["payload"].as_str().context("a payload")?)?;
        let payload = String::from_utf8(payload)?;
        if !payload.contains("serde") {
            continue;
        }
        bundle["dsseEnvelope"]["payload"] = base64.encode(payload.replace("serde", "sarde")).into();
        let bundle = bundle.to_string();
        manifest["layers"][0]["digest"] = put(registry, &repository, bundle.as_bytes())?.into();
        manifest["layers"][0]["size"] = bundle.len().into();
        let manifest = manifest.to_string();
        part["digest"] = put_manifest(registry, &repository, None, &manifest)?.into();
        part["size"] = manifest.len().into();
        replaced += 1;
    }
    assert_eq!(replaced, 1, "{index}");
    put_manifest(registry, &repository, Some(&tag), &forged.to_string())?;
    let said = published.verify().expect_err("a forged SBOM").to_string();
    ensure!(
        said.contains("none of the attestations matched the predicate type: cyclonedx"),
        "{said}"
    );
    put_manifest(registry, &repository, Some(&tag), &index.to_string())?;
    Ok(())
}

fn curl(registry: &Registry, method: &str, path: &str, kind: &str, content: &[u8]) -> Result<()> {
    let dir = RunDir::create("upload")?;
    let file = dir.path().join("content");
    std::fs::write(&file, content)?;
    let said = Command::new("curl")
        .args(["--silent", "--show-error", "--fail", "--request", method])
        .args(["--header", &format!("Content-Type: {kind}"), "--data-binary"])
        .arg(format!("@{}", file.display()))
        .arg(format!("http://{}/v2/{path}", registry.address()))
        .output()?;
    ensure!(said.status.success(), "{method} {path}: {said:?}");
    Ok(())
}

fn digest(content: &[u8]) -> String {
    format!("sha256:{}", sha256(content))
}

fn put(registry: &Registry, repository: &str, content: &[u8]) -> Result<String> {
    let digest = digest(content);
    let name = repository.split_once('/').context("a repository")?.1;
    curl(
        registry,
        "POST",
        &format!("{name}/blobs/uploads/?digest={digest}"),
        "application/octet-stream",
        content,
    )?;
    Ok(digest)
}

fn put_manifest(registry: &Registry, repository: &str, tag: Option<&str>, manifest: &str) -> Result<String> {
    let digest = digest(manifest.as_bytes());
    let name = repository.split_once('/').context("a repository")?.1;
    let kind: Value = serde_json::from_str(manifest)?;
    let kind = kind["mediaType"].as_str().context("a media type")?;
    curl(
        registry,
        "PUT",
        &format!("{name}/manifests/{}", tag.unwrap_or(&digest)),
        kind,
        manifest.as_bytes(),
    )?;
    Ok(digest)
}

fn another_key_is_refused(published: &Published) -> Result<()> {
    let other = published.publisher.key(&published.dir.path().join("another"))?;
    let said = published
        .publisher
        .verify(&published.dist(), published.registry.address(), &other)
        .expect_err("another key")
        .to_string();
    ensure!(
        said.contains("accepted signatures do not match threshold"),
        "{said}"
    );
    Ok(())
}
