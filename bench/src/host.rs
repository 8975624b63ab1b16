//! The machine and the software of a measurement.

use std::path::Path;
use std::process::Command;

use idtoken_testenv::{Assets, Progress};
use serde_json::{Value, json};

use crate::Arguments;

/// The machine and the versions of the programs. Unknown values are null.
pub(crate) fn describe(arguments: &Arguments) -> Value {
    let assets = Assets::locate(Progress::default()).ok();
    let etcd = assets.as_ref().and_then(|assets| version(&assets.etcd));
    let apiserver = assets.as_ref().and_then(|assets| version(&assets.kube_apiserver));
    json!({
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "processor": line("/proc/cpuinfo", "model name"),
        "memory": line("/proc/meminfo", "MemTotal"),
        "kernel": std::fs::read_to_string("/proc/sys/kernel/osrelease").ok().map(|text| text.trim().to_owned()),
        "operator": version(&arguments.operator),
        "other": arguments.other.as_deref().and_then(version),
        "etcd": etcd,
        "kubeApiserver": apiserver,
    })
}

/// The first line of a program's `--version`.
fn version(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().next().map(str::to_owned)
}

/// The value of `name` in a file with lines such as `name : value`.
fn line(file: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}
