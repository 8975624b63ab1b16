//! Programs built from a Go module whose `go.mod` and `go.sum` are part of this crate.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::builder::{hash, lock, run};
use crate::paths;
use crate::progress::{Progress, Step};

/// Arguments of every `go build`. They override GOFLAGS. `readonly` keeps go.mod and go.sum as they are, so that every machine builds
/// the same sources.
const FLAGS: [&str; 3] = ["-mod=readonly", "-trimpath", "-buildvcs=false"];

/// One program of a [`GoModule`].
#[derive(Clone, Copy, Debug)]
pub struct GoTool {
    /// The program's file name.
    pub name: &'static str,
    /// Its Go package.
    pub package: &'static str,
}

/// Programs at the versions pinned by a `go.mod` and a `go.sum`.
#[derive(Clone, Copy, Debug)]
pub struct GoModule {
    /// A short name, for the folder and for messages.
    pub name: &'static str,
    /// The content of `go.mod`, with a `tool` line for each program.
    pub go_mod: &'static str,
    /// The content of `go.sum`.
    pub go_sum: &'static str,
    /// Go files of the module's own main package (name and content), which is built as `.`; most modules have none.
    pub files: &'static [(&'static str, &'static str)],
    /// The value of `go build -ldflags`.
    pub ldflags: &'static str,
    /// The value of `go build -tags`, separated by commas.
    pub tags: &'static str,
    /// Whether the compiler optimizes. Most programs do little in the tests, and compile in two thirds of the time without.
    pub optimized: bool,
    /// The programs.
    pub tools: &'static [GoTool],
}

impl GoModule {
    /// Builds the programs `names` unless they are built. Returns their folder, `target/testenv/<name>-<hash of all inputs>`.
    ///
    /// Blocks. If several processes build the same programs, one builds and the others wait.
    ///
    /// # Errors
    /// When a name is unknown, when Go is missing, too old or fails, or when the folder cannot be written.
    pub fn build(&self, names: &[&str], progress: Progress) -> Result<PathBuf> {
        let tools = self.tools(names)?;
        let (sources, dir) = self.folders()?;
        if missing(&dir, &tools).is_empty() {
            return Ok(dir);
        }
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let _lock = lock(&dir.join(".lock"), self.name, progress)?;
        // Checked again: another process may have built them while this one waited.
        let todo = missing(&dir, &tools);
        for (index, tool) in todo.iter().enumerate() {
            let what = format!("building {} ({} of {})", tool.name, index + 1, todo.len());
            self.build_one(tool, &sources, &dir, &what, progress)?;
        }
        Ok(dir)
    }

    /// The folder of the programs `names` if all of them are built and Go can be asked for its version, which is part of the folder's name.
    pub(crate) fn built(&self, names: &[&str]) -> Option<PathBuf> {
        let (_, dir) = self.folders().ok()?;
        missing(&dir, &self.tools(names).ok()?).is_empty().then_some(dir)
    }

    /// The working directory for `go`, and the folder of the programs.
    fn folders(&self) -> Result<(PathBuf, PathBuf)> {
        let sources = self.source_dir()?;
        let name = format!("{}-{}", self.name, self.hash(&go_version(&sources)?));
        Ok((sources, paths::testenv_dir().join(name)))
    }

    /// The folder of a module that go.mod requires, from the module cache or by GOPROXY. Blocks.
    ///
    /// # Errors
    /// When Go is missing, the module cannot be had, or its content is another one than go.sum says.
    pub(crate) fn download(&self, module: &str) -> Result<PathBuf> {
        let sources = self.source_dir()?;
        go_version(&sources)?;
        let mut command = go(&sources);
        command
            .args(["mod", "download", "-json", module])
            .env("GOFLAGS", "-mod=readonly");
        let output = command.output().context("cannot run go")?;
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        match answer["Dir"].as_str().filter(|_| output.status.success()) {
            Some(folder) => Ok(PathBuf::from(folder)),
            None => bail!(
                "go cannot download {module}, from the module cache or by GOPROXY: {}{}",
                answer["Error"].as_str().unwrap_or_default(),
                String::from_utf8_lossy(&output.stderr).trim(),
            ),
        }
    }

    /// The working directory for `go`, with go.mod and go.sum.
    pub(crate) fn source_dir(&self) -> Result<PathBuf> {
        write_sources(self, &paths::testenv_dir())
    }

    fn tools(&self, names: &[&str]) -> Result<Vec<GoTool>> {
        names.iter().map(|name| self.tool(name)).collect()
    }

    fn tool(&self, name: &str) -> Result<GoTool> {
        let found = self.tools.iter().find(|tool| tool.name == name).copied();
        found.with_context(|| format!("the Go module {} has no program {name}", self.name))
    }

    fn flags(&self) -> Vec<String> {
        // Of all packages. The linker would drop the debug information.
        let compiler = match self.optimized {
            true => "all=-dwarf=false",
            false => "all=-N -l -dwarf=false",
        };
        let flags = FLAGS.map(str::to_owned).into_iter();
        flags
            .chain([format!("-tags={}", self.tags), format!("-gcflags={compiler}")])
            .collect()
    }

    /// The sources that `go` reads, in the order of the hash.
    fn sources(&self) -> impl Iterator<Item = &str> {
        let files = self.files.iter().flat_map(|(name, content)| [*name, *content]);
        [self.go_mod, self.go_sum].into_iter().chain(files)
    }

    fn hash(&self, go_version: &str) -> String {
        let flags = self.flags().join(" ");
        let target = [std::env::consts::OS, std::env::consts::ARCH];
        let how = [self.ldflags, &flags, go_version, target[0], target[1]];
        hash(self.sources().chain(how))
    }

    fn build_one(
        &self,
        tool: &GoTool,
        sources: &Path,
        dir: &Path,
        what: &str,
        progress: Progress,
    ) -> Result<()> {
        let mut step = Step::new(progress);
        // A killed build leaves only this file. The next build overwrites it.
        let part = dir.join(format!(".{}.part", tool.name));
        let mut command = go(sources);
        command
            .arg("build")
            .args(self.flags())
            .arg(format!("-ldflags={}", self.ldflags))
            .arg("-o")
            .arg(&part);
        command.arg(tool.package);
        let (status, output) = run(&command, what, &mut step)?;
        if !status.success() {
            step.finish(&format!("could not build {}", tool.name));
            bail!(
                "go cannot build {} ({status}). It needs the modules named in go.mod, from the module cache or by \
                 GOPROXY. Its output:\n{output}",
                tool.name,
            );
        }
        let program = dir.join(tool.name);
        std::fs::rename(&part, &program).with_context(|| format!("cannot write {}", program.display()))?;
        step.finish(&format!("built {}", tool.name));
        Ok(())
    }
}

/// Writes go.mod and go.sum into a folder of their own: `go` reads them from its working directory.
fn write_sources(module: &GoModule, parent: &Path) -> Result<PathBuf> {
    let dir = parent.join(format!("{}-src-{}", module.name, hash(module.sources())));
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let files = module.files.iter().copied();
    for (name, content) in files.chain([("go.sum", module.go_sum), ("go.mod", module.go_mod)]) {
        let path = dir.join(name);
        if std::fs::read_to_string(&path).is_ok_and(|present| present == content) {
            continue;
        }
        // Renamed into place, so that another process never reads an incomplete file.
        let part = dir.join(format!(
            ".{name}.{}.{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        std::fs::write(&part, content).with_context(|| format!("cannot write {}", part.display()))?;
        std::fs::rename(&part, &path).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(dir)
}

fn missing(dir: &Path, tools: &[GoTool]) -> Vec<GoTool> {
    tools
        .iter()
        .filter(|tool| !dir.join(tool.name).is_file())
        .copied()
        .collect()
}

fn go(sources: &Path) -> Command {
    let mut command = Command::new("go");
    // GOTOOLCHAIN stays as the user set it: `auto` may download a newer Go, `local` never does.
    command
        .current_dir(sources)
        .env("GOWORK", "off")
        .env("CGO_ENABLED", "0")
        .env_remove("GOOS")
        .env_remove("GOARCH");
    command
}

/// The version of Go that builds the module, as GOTOOLCHAIN and go.mod select it.
fn go_version(sources: &Path) -> Result<String> {
    let remedy = "Install Go 1.26 or newer (GOTOOLCHAIN=auto lets an older one download it)";
    let output = match go(sources)
        .args(["env", "GOVERSION"])
        .stdin(Stdio::null())
        .output()
    {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("there is no `go` in PATH. {remedy}")
        }
        Err(error) => return Err(error).context("cannot run go"),
    };
    if !output.status.success() {
        bail!("{}. {remedy}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match minor(&version) {
        // Before 1.21 Go ignored the version in go.mod.
        Some(minor) if minor < 21 => bail!("{version} is too old. {remedy}"),
        _ => Ok(version),
    }
}

/// `go1.26.8` → 26.
fn minor(version: &str) -> Option<u32> {
    let rest = version.strip_prefix("go1.")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// The folders of all modules but three: that of Kubernetes is compiled with other flags, and those of cosign and krew in no run of CI.
    fn common_modules() -> Vec<PathBuf> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let tools = std::fs::read_dir(root.join("tools")).unwrap();
        let tools = tools.map(|entry| entry.unwrap().path());
        let tools = tools.filter(|dir| {
            !["cosign", "kubernetes", "krew"]
                .iter()
                .any(|name| dir.ends_with(name))
        });
        let tests = ["kstatus", "referees/go", "e2e/go"].map(|dir| root.join("../tests").join(dir));
        tools.chain(tests).collect()
    }

    /// The modules that a `go.mod` requires, and their versions.
    fn requirements(dir: &Path) -> Vec<(String, String)> {
        let text = std::fs::read_to_string(dir.join("go.mod")).unwrap();
        let mut required = Vec::new();
        let mut within = false;
        for line in text.lines() {
            within = (within || line == "require (") && line != ")";
            let single = line.strip_prefix("require ");
            let requirement = if within { Some(line) } else { single };
            let mut words = requirement.unwrap_or_default().split_whitespace();
            if let (Some(module), Some(version)) = (words.next(), words.next()) {
                required.push((module.to_owned(), version.to_owned()));
            }
        }
        required
    }

    /// A package is compiled once for all programs only where it and all that it imports have one version.
    #[test]
    fn common_packages_have_one_version() {
        // Its API changed, and kube-state-metrics uses the old one.
        let exceptions = [("kube-state-metrics", "github.com/KimMachineGun/automemlimit")];
        let mut versions: BTreeMap<String, BTreeMap<String, Vec<String>>> = BTreeMap::new();
        for dir in common_modules() {
            let all = requirements(&dir);
            assert!(!all.is_empty(), "{} requires nothing", dir.display());
            let exempt = |module: &str| {
                exceptions
                    .iter()
                    .any(|(name, of)| dir.ends_with(name) && module == *of)
            };
            for (module, version) in all.into_iter().filter(|(module, _)| !exempt(module)) {
                let users = versions.entry(module).or_default().entry(version).or_default();
                users.push(dir.display().to_string());
            }
        }
        versions.retain(|_, versions| versions.len() > 1);
        assert!(
            versions.is_empty(),
            "each is compiled for each version. In the go.mod files with an older version write the newest, and run `go mod tidy`: \
             {versions:#?}"
        );
    }

    #[test]
    fn a_module_is_only_what_its_sum_says() {
        let module = |go_sum| GoModule {
            name: "sums",
            go_mod: include_str!("../tools/discovery/go.mod"),
            go_sum,
            files: &[],
            ldflags: "",
            tags: "",
            optimized: false,
            tools: &[],
        };
        let right = module(include_str!("../tools/discovery/go.sum"));
        assert!(
            right
                .download("google.golang.org/api")
                .unwrap()
                .join("iam/v1/iam-api.json")
                .is_file()
        );
        let wrong = module(
            "google.golang.org/api v0.311.0 h1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\
             google.golang.org/api v0.311.0/go.mod h1:x9+Bc6l3cH1HItpSGqV2mZnbM1bk1VmpLJMwKEtsmgg=\n",
        );
        let error = wrong.download("google.golang.org/api").unwrap_err().to_string();
        assert!(error.contains("checksum mismatch"), "{error}");
    }

    #[test]
    fn reads_go_versions() {
        assert_eq!(minor("go1.26.8"), Some(26));
        assert_eq!(minor("go1.27rc1"), Some(27));
        assert_eq!(minor("devel +abc"), None);
    }
}
