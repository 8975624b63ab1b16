//! `kubectl idtoken can -f`: decides on manifests without a cluster.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use common::{AUDIENCE, CALLER, Outcome, finish, plugin};

fn folder(test: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("manifests-{test}"));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn request(name: &str, namespace: &str) -> String {
    format!(
        "---\napiVersion: idtoken.dev/v1alpha1\nkind: IdTokenRequest\nmetadata: {{name: {name}{namespace}}}\n\
         spec: {{audience: '{AUDIENCE}', serviceAccount: {CALLER}}}\n"
    )
}

fn grant(from: &str) -> String {
    format!(
        "---\napiVersion: idtoken.dev/v1alpha1\nkind: IdTokenGrant\nmetadata: {{name: shop}}\n\
         spec: {{from: [{from}], to: [{{serviceAccounts: [{CALLER}], audiences: ['{AUDIENCE}']}}]}}\n"
    )
}

fn can(folder: &Path, args: &[&str]) -> Outcome {
    // A kubeconfig that would fail if it were read.
    let mut command = plugin(folder);
    command
        .current_dir(folder)
        .env("KUBECONFIG", "/nonexistent")
        .arg("can")
        .args(args);
    finish(&mut command)
}

#[test]
fn requests_are_checked_by_the_grants_beside_them() {
    let folder = folder("beside");
    let write = |name: &str, text: String| std::fs::write(folder.join(name), text).unwrap();
    let in_shop = ", namespace: shop";
    write(
        "a.yaml",
        request("billing", in_shop) + &request("other", ", namespace: yard"),
    );
    write("b.yml", grant("{namespace: shop}"));
    write("notes.txt", "no: [manifest".to_owned());
    can(&folder, &["-f", "."])
        .exits(1)
        .says("yes: shop/billing: IdTokenGrant shop allows namespace shop")
        .says("no: yard/other: no IdTokenGrant allows namespace yard")
        .says("spec.from does not contain yard: it contains shop");
    let json = can(&folder, &["-f", "a.yaml", "-f", "b.yml", "-o", "json"])
        .exits(1)
        .json();
    assert_eq!(json["allowed"], false);
    assert_eq!(
        (&json["requests"][0]["allowed"], &json["requests"][1]["allowed"]),
        (&true.into(), &false.into())
    );
    // The namespace of the flag is for those that name none, as for kubectl apply.
    write("a.yaml", request("billing", ""));
    can(&folder, &["-f", "."]).exits(1).says("it has no namespace");
    can(&folder, &["-f", ".", "-n", "shop"]).exits(0);
    // What depends on labels is no yes.
    write("b.yml", grant("{namespaceSelector: {matchLabels: {team: shop}}}"));
    can(&folder, &["-f", ".", "-n", "shop"])
        .exits(1)
        .says("depending on labels of namespace shop")
        .says("add the manifest of the Namespace");
    write(
        "c.json",
        r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"team": "shop"}}}"#.to_owned(),
    );
    can(&folder, &["-f", ".", "-n", "shop"]).exits(0);
    // The chart's values.
    std::fs::remove_file(folder.join("b.yml")).unwrap();
    write(
        "grants.values",
        format!(
            "[{{name: values, from: [{{namespace: shop}}], to: [{{serviceAccounts: [{CALLER}], audiences: ['{AUDIENCE}']}}]}}]"
        ),
    );
    can(&folder, &["-f", ".", "-n", "shop"])
        .exits(1)
        .says("There are no grants.");
    can(&folder, &["-f", ".", "-n", "shop", "--grants-file=grants.values"])
        .exits(0)
        .says("IdTokenGrant file:values allows");
}

#[test]
fn standard_input_and_what_cannot_be_used() {
    let folder = folder("input");
    let mut command = plugin(&folder);
    command
        .args(["can", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let text = request("billing", ", namespace: shop") + &grant("{namespace: shop}");
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait_with_output().unwrap().status.success());

    let write = |text: &str| std::fs::write(folder.join("x.yaml"), text).unwrap();
    write(&grant("{cluster: shop}"));
    can(&folder, &["-f", "x.yaml"])
        .exits(1)
        .warns("the manifests of x.yaml cannot be used: IdTokenGrant shop: unknown field `cluster`");
    write("{{ template }}: [");
    can(&folder, &["-f", "x.yaml"])
        .exits(1)
        .warns("it is neither YAML nor JSON");
    write(&grant("{namespace: shop}"));
    can(&folder, &["-f", "x.yaml"])
        .exits(1)
        .warns("the files have no IdTokenRequest");
    let spec = request("billing", ", namespace: shop").replace(AUDIENCE, "a b");
    write(&spec);
    can(&folder, &["-f", "x.yaml"])
        .exits(1)
        .says("no: shop/billing: the operator rejects the spec");
    can(&folder, &["-f", "absent.yaml"])
        .exits(1)
        .warns("cannot read absent.yaml");
    std::fs::create_dir(folder.join("empty")).unwrap();
    can(&folder, &["-f", "empty"]).exits(1).warns("empty has no file");
    can(&folder, &["billing", "-f", "x.yaml"]).exits(2);
}
