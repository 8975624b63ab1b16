//! What the chart renders, object by object.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use idtoken_operator::api::crds;
use idtoken_operator::cli::{Cli, Command, RunArgs};
use idtoken_operator::google::{GoogleConfig, IdentityProvider};
use idtoken_operator::grants::file::parse_file;
use serde_json::{Value, json};

use crate::helm::{CHART, Helm, NAMESPACE, Version, args, find, matrix, pod};

async fn helm() -> Result<Helm> {
    Helm::offline(Version::Three).await
}

async fn file(name: &str) -> Result<Vec<Value>> {
    let values = format!("--values={CHART}/ci/{name}-values.yaml");
    helm().await?.objects(&[&values]).await
}

async fn set(values: &[&str]) -> Result<Vec<Value>> {
    let args: Vec<String> = values.iter().map(|value| format!("--set={value}")).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    helm().await?.objects(&args).await
}

/// What Helm says where it refuses the values.
async fn refused(values: &[&str]) -> String {
    let result = set(values).await;
    result
        .err()
        .unwrap_or_else(|| panic!("{values:?} are taken"))
        .to_string()
}

/// The operator's own reading of its arguments.
fn parse(objects: &[Value]) -> Result<RunArgs> {
    let line = std::iter::once("idtoken-operator").chain(args(objects));
    match Cli::try_parse_from(line)?.command {
        Command::Run(run) => Ok(*run),
        other => anyhow::bail!("{other:?}"),
    }
}

fn has(objects: &[Value], kind: &str) -> bool {
    objects.iter().any(|object| object["kind"] == kind)
}

#[tokio::test]
async fn the_values_that_the_page_on_installing_shows_are_taken() -> Result<()> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/installation.md"))?;
    let blocks = page
        .split("```yaml\n")
        .filter_map(|rest| rest.split("```").next());
    let shown: Vec<&str> = blocks
        .filter(|block| block.starts_with("# values.yaml\n"))
        .collect();
    ensure!(shown.len() >= 4, "{shown:?}");
    for (n, values) in shown.iter().enumerate() {
        let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("page-{n}.yaml"));
        std::fs::write(&path, values)?;
        let objects = helm()
            .await?
            .objects(&[&format!("--values={}", path.display())])
            .await?;
        parse(&objects).with_context(|| (*values).to_owned())?;
    }
    Ok(())
}

#[tokio::test]
async fn the_operator_takes_its_arguments_with_all_values() -> Result<()> {
    for path in matrix()? {
        let objects = helm()
            .await?
            .objects(&[&format!("--values={}", path.display())])
            .await?;
        parse(&objects).with_context(|| path.display().to_string())?;
    }
    let run = parse(&file("everything").await?)?;
    assert_eq!(run.selector.as_deref(), Some("shard=a"));
    assert_eq!(run.leader.lease_name.as_deref(), Some("tokens"));
    assert_eq!(run.leader.lease_duration, 30);
    assert_eq!(run.google.google_rate, 100);
    assert_eq!(run.google.google_max_in_flight, 16);
    assert_eq!(run.google.universe_domain, "example-universe.com");
    assert_eq!(run.google.allowed_credential_hosts, ["169.254.169.254"]);
    assert!(run.allow_developer_source);
    assert_eq!(run.log, "info,idtoken_operator=debug");
    assert_eq!(run.min_renew_interval, 300);
    // The chart says 20, and extraArgs win.
    assert_eq!(run.google.google_timeout, 5);
    let run = parse(&file("namespaces").await?)?;
    assert_eq!(run.namespaces, ["shop", "yard"]);
    assert!(!run.leader.leader_elect);
    let run = parse(&set(&[]).await?)?;
    assert!(run.leader.leader_elect && !run.allow_developer_source);
    assert_eq!(run.leader.lease_namespace.as_deref(), Some(NAMESPACE));
    assert_eq!(run.min_renew_interval, 60);
    Ok(())
}

#[tokio::test]
async fn replicas_decide_on_budget_and_strategy() -> Result<()> {
    let one = set(&[]).await?;
    assert!(!has(&one, "PodDisruptionBudget"));
    assert_eq!(
        find(&one, "Deployment", "")["spec"]["strategy"]["type"],
        "RollingUpdate"
    );
    let two = set(&["replicaCount=2"]).await?;
    let budget = &find(&two, "PodDisruptionBudget", "")["spec"];
    assert_eq!(budget["maxUnavailable"], 1);
    assert_eq!(
        budget["selector"],
        find(&two, "Deployment", "")["spec"]["selector"]
    );
    let alone = set(&["leaderElection.enabled=false"]).await?;
    assert_eq!(
        find(&alone, "Deployment", "")["spec"]["strategy"],
        json!({"type": "Recreate"})
    );
    assert!(!alone.iter().any(|object| {
        object["metadata"]["name"]
            .as_str()
            .is_some_and(|name| name.ends_with("-lease"))
    }));
    Ok(())
}

#[tokio::test]
async fn an_image_is_named_by_version_tag_or_digest() -> Result<()> {
    let image = async |values: &[&str]| -> Result<Value> {
        Ok(pod(&set(values).await?)["spec"]["containers"][0]["image"].clone())
    };
    let version = env!("CARGO_PKG_VERSION");
    let repository = "registry.example.com/idtoken-operator";
    assert_eq!(image(&[]).await?, format!("{repository}:{version}"));
    assert_eq!(image(&["image.tag=x"]).await?, format!("{repository}:x"));
    let digest = format!("sha256:{}", "0".repeat(64));
    let set_digest = format!("image.digest={digest}");
    assert_eq!(
        image(&["image.tag=x", &set_digest]).await?,
        format!("{repository}@{digest}")
    );
    let local = image(&["image.repository=localhost:5000/a/b-c__d", "image.tag=x"]);
    assert_eq!(local.await?, "localhost:5000/a/b-c__d:x");
    // Where nobody has said which, the chart does not guess one that the nodes cannot pull.
    let said = refused(&["image.repository="]).await;
    assert!(
        said.contains("image.repository is not set: name the repository"),
        "{said}"
    );
    for value in [
        "image.repository=registry.example.com/x:1",
        "image.repository=https://registry.example.com/x",
        "image.repository=registry.example.com/X",
        "image.repository=registry.example.com/x@sha256:0",
        "image.repository=registry.example.com/",
        "image.tag=:1",
    ] {
        let said = refused(&[value]).await;
        assert!(said.contains("does not match pattern"), "{value}: {said}");
    }
    Ok(())
}

#[tokio::test]
async fn another_universe_is_taken_by_values_and_operator_alike() -> Result<()> {
    // gcloud names providers by googleapis.com in every universe.
    for host in ["iam.example-universe.com", "iam.googleapis.com"] {
        let provider = format!("//{host}/projects/1/locations/global/workloadIdentityPools/p/providers/q");
        let objects = set(&[
            "google.universeDomain=example-universe.com",
            &format!("google.workloadIdentityFederation.provider={provider}"),
            "federation.mode=enabled",
            &format!("federation.provider={provider}"),
        ])
        .await?;
        let text = &find(&objects, "ConfigMap", "-google")["data"]["credentials.json"];
        let credentials: Value = serde_json::from_str(text.as_str().context("no credentials.json")?)?;
        assert_eq!(credentials["audience"], provider.as_str());
        assert_eq!(credentials["universe_domain"], "example-universe.com");
        assert_eq!(
            credentials["token_url"],
            "https://sts.example-universe.com/v1/token"
        );
        let run = parse(&objects)?;
        assert_eq!(
            run.federation_provider.context("no provider")?.name(),
            provider.as_str()
        );
        GoogleConfig::from(run.google).validate()?;
    }
    let helm = helm().await?;
    let is_taken = async |value: &str, text: &str| {
        let mode = "--set=federation.mode=strict";
        let value = format!("--set-json={value}={}", json!(text));
        helm.template(&[mode, &value]).await.is_ok()
    };
    let part = "locations/global/workloadIdentityPools/p/providers/q";
    for (name, ok) in [
        (format!("//iam.googleapis.com/projects/1/{part}"), true),
        (format!("//iam.example-universe.com/projects/1/{part}"), true),
        (
            format!(
                "//iam.googleapis.com/projects/1/{}",
                part.replace("global", "eu-west1")
            ),
            true,
        ),
        (format!("https://iam.googleapis.com/projects/1/{part}"), false),
        (format!("//evil.example/projects/1/{part}"), false),
        (format!("//iam.googleapis.com/projects/p/{part}"), false),
        (format!("//iam.googleapis.com/projects/1/{part}/"), false),
        (
            "identitynamespace:p.svc.id.goog:https://container.googleapis.com/v1/projects/p".to_owned(),
            true,
        ),
        ("identitynamespace:p.svc.id.goog".to_owned(), false),
    ] {
        assert_eq!(name.parse::<IdentityProvider>().is_ok(), ok, "{name}");
        assert_eq!(is_taken("federation.provider", &name).await, ok, "{name}");
        let is_own = ok && !name.starts_with("identitynamespace");
        let own = is_taken("google.workloadIdentityFederation.provider", &name).await;
        assert_eq!(own, is_own, "{name}");
    }
    for (universe_domain, ok) in [
        ("googleapis.com", true),
        ("example-universe.com", true),
        ("a.b.c", true),
        ("", false),
        ("com", false),
        ("Example.com", false),
        ("https://example.com", false),
        ("example.com.", false),
        ("a..b", false),
        ("-a.b", false),
    ] {
        let config = GoogleConfig {
            universe_domain: universe_domain.to_owned(),
            ..GoogleConfig::default()
        };
        assert_eq!(config.validate().is_ok(), ok, "{universe_domain}");
        assert_eq!(
            is_taken("google.universeDomain", universe_domain).await,
            ok,
            "{universe_domain}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn kinds_are_missing_only_where_a_cluster_says_so() -> Result<()> {
    let helm = helm().await?;
    let monitor = "--set=metrics.serviceMonitor.enabled=true";
    let extra = r#"--set-json=extraObjects=[{"apiVersion":"idtoken.dev/v1alpha1","kind":"IdTokenRequest","metadata":{"name":"x"}}]"#;
    // What Argo CD names: the kinds that can be watched. It brings definitions and their objects in one sync.
    let argo_cd = "--api-versions=v1,v1/Pod,apps/v1,apps/v1/Deployment";
    for args in [&[monitor, extra][..], &[monitor, extra, argo_cd]] {
        let objects = helm.objects(args).await?;
        assert!(has(&objects, "ServiceMonitor") && has(&objects, "IdTokenRequest"));
    }
    // What a cluster answers to Helm.
    let cluster = "--api-versions=authorization.k8s.io/v1/SelfSubjectAccessReview";
    let missing = async |args: &[&str]| match helm.template(&[args, &[cluster]].concat()).await {
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    };
    assert_eq!(missing(&[]).await, "");
    for (value, kind) in [
        ("serviceMonitor", "ServiceMonitor"),
        ("podMonitor", "PodMonitor"),
        ("prometheusRule", "PrometheusRule"),
    ] {
        let set = format!("--set=metrics.{value}.enabled=true");
        let said = missing(&[&set]).await;
        let sentence = format!("metrics.{value}.enabled: the cluster does not know the kind {kind} of");
        assert!(said.contains(&sentence), "{said}");
        let known = format!("--api-versions=monitoring.coreos.com/v1/{kind}");
        assert_eq!(missing(&[&set, &known]).await, "");
    }
    let list = r#"--set-json=extraObjects=["apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n---\nkind: List\napiVersion: v1\nitems:\n- {kind: IdTokenGrant, apiVersion: idtoken.dev/v1alpha1, metadata: {name: '{{ .Release.Name }}'}}"]"#;
    for (set, kind) in [(extra, "IdTokenRequest"), (list, "IdTokenGrant")] {
        let said = missing(&[set]).await;
        assert!(
            said.contains(&format!(
                "extraObjects: the cluster does not know the kind {kind} of idtoken.dev/v1alpha1 yet"
            )),
            "{said}"
        );
        assert!(
            said.contains("add it by helm upgrade") && said.contains("belong in the value grants"),
            "{said}"
        );
        let known = format!("--api-versions=idtoken.dev/v1alpha1/{kind}");
        assert_eq!(missing(&[set, &known]).await, "");
    }
    let text = r#"--set-json=extraObjects=[{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"},"data":{"x":"apiVersion: idtoken.dev/v1alpha1"}}]"#;
    assert_eq!(missing(&[text]).await, "");
    Ok(())
}

#[tokio::test]
async fn grants_arrive_in_the_file_that_the_operator_reads() -> Result<()> {
    let objects = file("gke").await?;
    let text = &find(&objects, "ConfigMap", "-grants")["data"]["grants.yaml"];
    let grants = parse_file(text.as_str().context("no grants.yaml")?)?;
    let names: Vec<_> = grants.iter().map(|grant| grant.id.name.as_str()).collect();
    assert_eq!(names, ["file:shop-billing", "file:farm"]);
    assert_eq!(
        grants[0].spec.to[0].audiences,
        ["https://billing-x.run.app", "https://api.example.com/*"]
    );
    // A folder: a mounted file would never change.
    let container = &pod(&objects)["spec"]["containers"][0];
    let mount = &container["volumeMounts"][0];
    assert!(mount.get("subPath").is_none());
    let file = parse(&objects)?
        .grants_file
        .context("the operator gets no file")?;
    assert_eq!(
        file.parent().and_then(|dir| dir.to_str()),
        mount["mountPath"].as_str()
    );
    // Other grants restart nothing.
    let none = set(&[]).await?;
    let some = helm()
        .await?
        .objects(&[
            r#"--set-json=grants=[{"name":"x","from":[{"namespace":"x"}],"to":[{"serviceAccounts":["a@p.example"],"audiences":["x"]}]}]"#,
        ])
        .await?;
    assert_eq!(pod(&none), pod(&some));
    assert!(
        parse_file(
            find(&none, "ConfigMap", "-grants")["data"]["grants.yaml"]
                .as_str()
                .context("")?
        )?
        .is_empty()
    );
    Ok(())
}

#[tokio::test]
async fn the_notes_say_where_grants_are_and_which_select_nothing() -> Result<()> {
    let to = r#""to":[{"serviceAccounts":["1"],"audiences":["aud"]}]"#;
    let grant = |name: &str, from: &str| format!(r#"{{"name":"{name}","from":[{from}],{to}}}"#);
    let grants = [
        grant("nothing", r#"{"namespace":"shop"},{"namespaceSelector":{}}"#),
        grant(
            "blank",
            r#"{"namespaceSelector":{"matchLabels":{},"matchExpressions":[]}}"#,
        ),
        grant("team", r#"{"namespaceSelector":{"matchLabels":{"team":"shop"}}}"#),
        grant("everyone", r#"{"allNamespaces":true}"#),
    ];
    let notes = async |grants: &[String]| -> Result<String> {
        // Helm renders the notes for an installation only, and so this object includes them.
        let object = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"notes"},"data":{"text":{{ include "idtoken-operator/templates/NOTES.txt" . | toJson }}}}"#;
        let objects = json!([object]);
        let values = [
            format!("--set-json=grants=[{}]", grants.join(",")),
            format!("--set-json=extraObjects={objects}"),
        ];
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        let objects = helm().await?.objects(&values).await?;
        let text = find(&objects, "ConfigMap", "notes")["data"]["text"].as_str();
        Ok(text.context("no notes")?.to_owned())
    };
    let all = notes(&grants).await?;
    let named = all.split_once("WARNING").context("no warning")?.1;
    for (name, is_named) in [
        ("nothing", true),
        ("blank", true),
        ("team", false),
        ("everyone", false),
    ] {
        let line = format!("- {name} of the value grants\n");
        assert_eq!(named.contains(&line), is_named, "{name}: {all}");
    }
    assert!(!notes(&grants[2..]).await?.contains("WARNING"));
    // `kubectl get idtg` shows none of these grants.
    let objects = helm().await?.objects(&[]).await?;
    let map = find(&objects, "ConfigMap", "-grants");
    let name = map["metadata"]["name"].as_str().context("no name")?;
    let command = format!("\nkubectl get configmap {name} -n ");
    assert!(all.contains(&command), "{all}");
    assert!(!notes(&[]).await?.contains("kubectl get configmap"));
    Ok(())
}

#[tokio::test]
async fn the_own_identity_comes_without_a_key() -> Result<()> {
    let objects = file("any-cluster").await?;
    let text = &find(&objects, "ConfigMap", "-google")["data"]["credentials.json"];
    let credentials: Value = serde_json::from_str(text.as_str().context("no credentials.json")?)?;
    let provider = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q";
    assert_eq!(credentials["type"], "external_account");
    assert_eq!(credentials["audience"], provider);
    assert_eq!(credentials["token_url"], "https://sts.googleapis.com/v1/token");
    let spec = &pod(&objects)["spec"];
    let volume = spec["volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|volume| volume["name"] == "google");
    let token = &volume.context("no volume")?["projected"]["sources"][1]["serviceAccountToken"];
    assert_eq!(token["audience"], format!("https:{provider}"));
    let mounts = spec["containers"][0]["volumeMounts"].as_array();
    let mount = mounts
        .into_iter()
        .flatten()
        .find(|mount| mount["name"] == "google");
    let dir = mount.context("no mount")?["mountPath"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert_eq!(
        credentials["credential_source"]["file"],
        format!("{dir}/{}", token["path"].as_str().unwrap_or_default())
    );
    let args = parse(&objects)?;
    let file = args.google.credentials_file.context("no --credentials-file")?;
    assert_eq!(file.to_str(), Some(format!("{dir}/credentials.json").as_str()));
    assert_eq!(args.allowed_token_audiences, ["my-pool"]);
    let env: BTreeSet<_> = spec["containers"][0]["env"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|variable| variable["name"].as_str())
        .collect();
    assert_eq!(env, BTreeSet::from(["HTTPS_PROXY", "NO_PROXY"]));
    assert!(
        find(&objects, "ConfigMap", "-ca")["data"]["ca.crt"]
            .as_str()
            .is_some_and(|pem| pem.contains("BEGIN"))
    );
    Ok(())
}

#[tokio::test]
async fn a_user_of_one_namespace_needs_nothing_of_the_cluster() -> Result<()> {
    for object in file("namespaces").await? {
        assert!(object["metadata"]["namespace"].is_string(), "{object}");
    }
    let all = set(&[]).await?;
    assert!(has(&all, "ClusterRole") && has(&all, "ValidatingAdmissionPolicy"));
    Ok(())
}

#[tokio::test]
async fn definitions_are_those_of_the_operator_and_stay() -> Result<()> {
    let annotation = |object: &Value| object["metadata"]["annotations"]["helm.sh/resource-policy"].clone();
    for values in [&["crds.keep=true"], &["crds.keep=false"]] {
        let objects = set(values).await?;
        for crd in crds() {
            let crd = serde_json::to_value(crd)?;
            let name = crd["metadata"]["name"].as_str().context("no name")?;
            let rendered = find(&objects, "CustomResourceDefinition", name);
            assert_eq!(rendered["spec"], crd["spec"]);
            let keep = values[0].ends_with("true");
            assert_eq!(annotation(rendered) == "keep", keep);
        }
    }
    assert!(!has(
        &set(&["crds.enabled=false"]).await?,
        "CustomResourceDefinition"
    ));
    Ok(())
}

#[tokio::test]
async fn monitors_find_the_port_and_keep_the_requests_namespace() -> Result<()> {
    let objects = file("everything").await?;
    let service = find(&objects, "Service", "");
    let monitor = &find(&objects, "ServiceMonitor", "")["spec"];
    let labels = monitor["selector"]["matchLabels"]
        .as_object()
        .context("no labels")?;
    for (key, value) in labels {
        assert_eq!(&service["metadata"]["labels"][key], value);
    }
    assert_eq!(
        monitor["endpoints"][0]["port"],
        service["spec"]["ports"][0]["name"]
    );
    assert_eq!(monitor["endpoints"][0]["honorLabels"], true);
    assert_eq!(monitor["namespaceSelector"]["matchNames"], json!([NAMESPACE]));
    let template = pod(&objects);
    for (key, value) in service["spec"]["selector"].as_object().context("no selector")? {
        assert_eq!(&template["metadata"]["labels"][key], value);
    }
    let objects = file("gke").await?;
    let monitor = &find(&objects, "PodMonitor", "")["spec"];
    let port = &pod(&objects)["spec"]["containers"][0]["ports"][0];
    assert_eq!(monitor["podMetricsEndpoints"][0]["port"], port["name"]);
    assert_eq!(monitor["podMetricsEndpoints"][0]["honorLabels"], true);
    // helm test is no target.
    let test = find(&objects, "Pod", "-test");
    assert_ne!(
        test["metadata"]["labels"]["app.kubernetes.io/component"],
        monitor["selector"]["matchLabels"]["app.kubernetes.io/component"]
    );
    Ok(())
}

#[tokio::test]
async fn the_network_is_open_to_dns_the_api_server_google_and_scrapers() -> Result<()> {
    assert!(!has(&set(&[]).await?, "NetworkPolicy"));
    let objects = file("any-cluster").await?;
    let policy = &find(&objects, "NetworkPolicy", "-operator")["spec"];
    assert_eq!(
        policy["podSelector"],
        find(&objects, "Deployment", "")["spec"]["selector"]
    );
    assert_eq!(policy["policyTypes"], json!(["Ingress", "Egress"]));
    let ports: BTreeSet<u64> = policy["egress"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|rule| rule["ports"].as_array().into_iter().flatten())
        .filter_map(|port| port["port"].as_u64())
        .collect();
    assert_eq!(ports, BTreeSet::from([53, 80, 443, 987, 988, 3128, 5353, 6443]));
    let dns = policy["egress"][0]["to"].as_array().context("no peers of DNS")?;
    assert_eq!(dns[1]["ipBlock"]["cidr"], "169.254.20.10/32");
    // Metadata servers and nothing else may be asked in the clear.
    for rule in policy["egress"].as_array().into_iter().flatten() {
        let plain = rule["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|port| port["port"] == 80);
        assert!(
            !plain || rule["to"][0]["ipBlock"]["cidr"] == "169.254.169.254/32",
            "{rule}"
        );
    }
    let ingress = policy["ingress"].as_array().context("no ingress")?;
    assert_eq!(ingress.len(), 1);
    assert_eq!(ingress[0]["ports"], json!([{"port": "http", "protocol": "TCP"}]));
    let test = &find(&objects, "Pod", "-test")["metadata"]["labels"];
    let from = ingress[0]["from"].as_array().context("no peers")?;
    let labels = from[0]["podSelector"]["matchLabels"]
        .as_object()
        .context("no labels")?;
    assert!(labels.iter().all(|(key, value)| &test[key] == value), "{from:?}");
    assert!(from[1].get("namespaceSelector").is_some());

    // helm test reaches the operator where the namespace denies everything.
    let policy = &find(&objects, "NetworkPolicy", "-test")["spec"];
    let selected = policy["podSelector"]["matchLabels"]
        .as_object()
        .context("no labels")?;
    assert!(selected.iter().all(|(key, value)| &test[key] == value));
    assert_eq!(policy["egress"][0]["to"], json!(dns));
    assert_eq!(
        policy["egress"][1],
        json!({
            "to": [{"podSelector": find(&objects, "Deployment", "")["spec"]["selector"]}],
            "ports": [{"port": 8080, "protocol": "TCP"}],
        })
    );
    let none = set(&["networkPolicy.enabled=true", "metrics.service.enabled=false"]).await?;
    assert!(!has(&none, "Pod"));
    find(&none, "NetworkPolicy", "");
    Ok(())
}

/// Whether a NetworkPolicy lets a packet out. Peers other than single addresses are none that the tests ask for.
fn lets_out(policy: &Value, address: &str, protocol: &str, port: u64) -> bool {
    let rules = policy["spec"]["egress"].as_array();
    rules.into_iter().flatten().any(|rule| {
        let to = rule["to"].as_array();
        let is_peer = |peers: &Vec<Value>| {
            peers
                .iter()
                .any(|peer| peer["ipBlock"]["cidr"] == format!("{address}/32"))
        };
        let ports = rule["ports"].as_array();
        let is_port = |ports: &Vec<Value>| {
            let same = |of: &Value| of["port"] == port && of["protocol"] == protocol;
            ports.iter().any(same)
        };
        to.is_none_or(is_peer) && ports.is_none_or(is_port)
    })
}

#[tokio::test]
async fn each_platform_of_the_page_reaches_its_dns_and_api_server() -> Result<()> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/installation.md"))?;
    let section = page.split("\n### NetworkPolicy\n").nth(1).context("no section")?;
    let section = section
        .split("\n## ")
        .next()
        .and_then(|rest| rest.split("\n### ").next());
    let mut rows = 0;
    for row in section
        .context("no section")?
        .lines()
        .filter(|line| line.starts_with('|'))
        .skip(2)
    {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [platform, dns, api_server, values] = cells[..] else {
            anyhow::bail!("{row}");
        };
        // `value: [1, 2]` in each code span.
        let values: Vec<String> = values
            .split('`')
            .skip(1)
            .step_by(2)
            .map(|value| format!("--set-json={}", value.replacen(": ", "=", 1)))
            .collect();
        let mut args = vec!["--set=networkPolicy.enabled=true"];
        args.extend(values.iter().map(String::as_str));
        let reaches = async |args: &[&str]| -> Result<bool> {
            let objects = helm().await?.objects(args).await?;
            let policy = find(&objects, "NetworkPolicy", "-operator");
            let test = find(&objects, "NetworkPolicy", "-test");
            // 53, or 53 at an address.
            let (dns, address) = dns.split_once(" at ").unwrap_or((dns, "10.0.0.10"));
            let dns = dns.parse().with_context(|| row.to_owned())?;
            let names = ["UDP", "TCP"].into_iter().all(|protocol| {
                [policy, test]
                    .iter()
                    .all(|policy| lets_out(policy, address, protocol, dns))
            });
            let api_server = api_server.parse().with_context(|| row.to_owned())?;
            let google = lets_out(policy, "199.36.153.8", "TCP", 443);
            let metadata = lets_out(policy, "169.254.169.254", "TCP", 80)
                && lets_out(policy, "169.254.169.252", "TCP", 988);
            Ok(names && google && metadata && lets_out(policy, "10.0.0.1", "TCP", api_server))
        };
        assert!(reaches(&args).await?, "{platform}");
        // No value is there for nothing.
        for n in 1..args.len() {
            let mut fewer = args.clone();
            fewer.remove(n);
            assert!(!reaches(&fewer).await?, "{platform} without {}", args[n]);
        }
        rows += 1;
    }
    assert!(rows >= 6, "{rows} platforms");
    let policy = set(&["networkPolicy.enabled=true"]).await?;
    let policy = find(&policy, "NetworkPolicy", "-operator");
    assert!(!lets_out(policy, "10.0.0.1", "TCP", 80) && !lets_out(policy, "10.0.0.1", "UDP", 443));
    Ok(())
}

#[tokio::test]
async fn names_of_public_hosts_do_not_go_through_search_domains() -> Result<()> {
    // Names with so many dots are asked for as they are first. Google's have two.
    for objects in [set(&[]).await?, file("everything").await?] {
        let pod = &find(&objects, "Deployment", "")["spec"]["template"]["spec"];
        assert_eq!(
            pod["dnsConfig"]["options"],
            json!([{"name": "ndots", "value": "1"}])
        );
        assert_eq!(
            pod.get("dnsPolicy"),
            None,
            "the cluster's DNS, for the API server and proxies"
        );
    }
    Ok(())
}

#[tokio::test]
async fn the_test_pod_asks_the_service() -> Result<()> {
    let objects = set(&[]).await?;
    let test = find(&objects, "Pod", "-test");
    let args = test["spec"]["containers"][0]["args"]
        .as_array()
        .context("no args")?;
    let line = std::iter::once("idtoken-operator").chain(args.iter().filter_map(Value::as_str));
    let Command::Probe { timeout, url } = Cli::try_parse_from(line)?.command else {
        panic!("{args:?}");
    };
    // The Service and a sidecar may need a while.
    assert_eq!(timeout, 120);
    let service = find(&objects, "Service", "");
    assert_eq!(url.host_str(), service["metadata"]["name"].as_str());
    assert_eq!(
        url.port().map(u64::from),
        service["spec"]["ports"][0]["port"].as_u64()
    );
    let objects = file("everything").await?;
    let test = find(&objects, "Pod", "-test");
    assert_eq!(test["metadata"]["annotations"]["linkerd.io/inject"], "disabled");
    assert_eq!(test["metadata"]["annotations"]["helm.sh/hook"], "test");
    assert_eq!(test["metadata"]["labels"]["sidecar.istio.io/inject"], "false");
    let container = &test["spec"]["containers"][0];
    let requests = json!({"cpu": "10m", "memory": "16Mi", "ephemeral-storage": "16Mi"});
    assert_eq!(container["resources"]["requests"], requests);
    assert_eq!(container["args"][1], "--timeout=30");
    Ok(())
}

#[tokio::test]
async fn nothing_fixes_a_user_and_everything_has_the_common_labels() -> Result<()> {
    for path in matrix()? {
        let text = helm()
            .await?
            .template(&[&format!("--values={}", path.display())])
            .await?;
        for field in ["runAsUser", "runAsGroup", "fsGroup", "hostNetwork", "hostPath"] {
            assert!(
                !text.contains(&format!("{field}:")),
                "{field} in {}",
                path.display()
            );
        }
    }
    for object in file("everything").await? {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        if !name.starts_with("release-as-") {
            assert_eq!(object["metadata"]["labels"]["team"], "platform", "{name}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn unknown_and_wrong_values_are_refused() {
    for value in [
        "replicas=2",
        "image.repo=x",
        "google.credentials.secret=x",
        "leaderElection.enable=true",
        "metrics.serviceMonitor.enable=true",
        "metrics.serviceMonitor.relabelings[0].source=x",
        "securityContext.readonlyRootFilesystem=true",
        "resources.limit.memory=1Gi",
        "extraVolumes[0].emptydir=x",
        "tolerations[0].keys=x",
        "startupProbe.httpGet.path=/",
        "grants[0].audience=x",
    ] {
        let said = refused(&[value]).await;
        assert!(
            said.contains("additional properties") || said.contains("missing propert"),
            "{value}: {said}"
        );
    }
    for value in [
        "federation.mode=maybe",
        "terminationGracePeriodSeconds=10",
        "concurrency=0",
        "log.format=xml",
        "image.digest=sha256:abc",
        "google.workloadIdentityFederation.provider=p",
    ] {
        let said = refused(&[value]).await;
        assert!(said.contains("schema"), "{value}: {said}");
    }
    // What Helm and a chart that depends on this one add.
    assert!(set(&["enabled=true", "global.registry=x"]).await.is_ok());
    // As IdTokenGrant's schema has it: no star in a host.
    let grant = |audience: &str| {
        format!(
            r#"--set-json=grants=[{{"name":"x","from":[{{"namespace":"x"}}],"to":[{{"serviceAccounts":["a@p.example"],"audiences":["{audience}"]}}]}}]"#
        )
    };
    let helm = helm().await.unwrap();
    assert!(helm.template(&[&grant("https://x.example.com/*")]).await.is_ok());
    assert!(helm.template(&[&grant("https://*.example.com/")]).await.is_err());
}

/// Null for each value below `values` that `schema` does not require; none where it requires all.
fn nulls(values: &Value, schema: &Value, path: &str, required: &mut BTreeSet<String>) -> Value {
    let mut found = json!({});
    for (key, value) in values.as_object().into_iter().flatten() {
        let path = format!("{path}{key}");
        let property = &schema["properties"][key];
        let is_required = schema["required"]
            .as_array()
            .is_some_and(|all| all.contains(&json!(key)));
        if property.get("properties").is_some() {
            assert!(is_required, "{path} is a map of values");
            found[key] = nulls(value, property, &format!("{path}."), required);
        } else if is_required {
            required.insert(path);
        } else {
            found[key] = Value::Null;
        }
    }
    found
}

#[tokio::test]
async fn null_means_none_or_is_refused_and_switches_nothing_off() -> Result<()> {
    let read = |name: &str| std::fs::read_to_string(format!("{CHART}/{name}"));
    let values: Value = serde_saphyr::from_str(&read("values.yaml")?)?;
    let schema: Value = serde_json::from_str(&read("values.schema.json")?)?;
    let mut required = BTreeSet::new();
    let mut nulls = nulls(&values, &schema, "", &mut required);
    // Nothing that is off, and no flag without a value, where nobody chose that.
    for value in [
        "admissionPolicies.enabled",
        "concurrency",
        "crds.keep",
        "federation.apiServerAudiences",
        "google.universeDomain",
        "networkPolicy.dnsPorts",
        "networkPolicy.egressPorts",
        "podDisruptionBudget.maxUnavailable",
        "test.timeoutSeconds",
    ] {
        assert!(required.contains(value), "{value}");
    }
    for (value, said) in [
        ("crds.keep=null", "missing property 'keep'"),
        // As helm upgrade --reuse-values does with a map that is new in a version.
        ("test=null", "missing property 'test'"),
        ("networkPolicy.egressPorts=null", "missing property 'egressPorts'"),
    ] {
        let error = refused(&[value]).await;
        assert!(error.contains(said), "{error}");
    }
    // No port would mean all ports.
    let error = helm()
        .await?
        .objects(&["--set-json=networkPolicy.dnsPorts=[]"])
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("minItems"), "{error}");

    nulls["image"]["repository"] = json!("x");
    nulls["replicaCount"] = json!(2);
    nulls["federation"]["mode"] = json!("enabled");
    for value in ["dashboard", "prometheusRule", "serviceMonitor"] {
        nulls["metrics"][value]["enabled"] = json!(true);
    }
    nulls["networkPolicy"]["enabled"] = json!(true);
    // Helm renders the notes for an installation only.
    nulls["extraObjects"] = json!([
        r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"notes"},"data":{"text":{{ include "idtoken-operator/templates/NOTES.txt" . | toJson }}}}"#
    ]);
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("nulls.yaml");
    std::fs::write(&path, nulls.to_string())?;
    let file = format!("--values={}", path.display());
    let text = helm().await?.template(&[&file]).await?;
    assert!(!text.contains("<nil>"), "{text}");
    let objects = crate::helm::read(&text)?;
    parse(&objects)?;
    for object in objects
        .iter()
        .filter(|object| object["kind"] != "CustomResourceDefinition")
    {
        assert!(!object.to_string().contains(":null"), "{object}");
    }
    let grants = &find(&objects, "ConfigMap", "-grants")["data"]["grants.yaml"];
    assert!(parse_file(grants.as_str().context("no grants.yaml")?)?.is_empty());
    Ok(())
}

#[tokio::test]
async fn values_that_contradict_each_other_are_refused() {
    let provider = "google.workloadIdentityFederation.provider=//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q";
    for (values, said) in [
        (
            ["replicaCount=2", "leaderElection.enabled=false"],
            "several replicas need",
        ),
        (
            ["caBundle.inline=x", "caBundle.secretName=y"],
            "set one of inline",
        ),
        (["google.credentials.secretName=x", provider], "set either"),
        (
            [
                "metrics.serviceMonitor.enabled=true",
                "metrics.podMonitor.enabled=true",
            ],
            "counted twice",
        ),
        (
            [
                "metrics.serviceMonitor.enabled=true",
                "metrics.service.enabled=false",
            ],
            "needs metrics.service.enabled",
        ),
        (
            [
                "federation.allowedTokenAudiences[0]=x",
                "federation.apiServerAudiences[0]=x",
            ],
            "API server's own audience",
        ),
        (
            [
                "federation.provider=//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
                "federation.mode=disabled",
            ],
            "without federation.mode",
        ),
        (
            ["federation.mode=strict", "admissionPolicies.enabled=false"],
            "federation.mode: strict needs admissionPolicies.enabled",
        ),
        (
            ["federation.mode=enabled", "admissionPolicies.enabled=false"],
            "set federation.acceptUncheckedAuthors",
        ),
    ] {
        let error = refused(&values).await;
        assert!(error.contains(said), "{values:?}: {error}");
    }
}

#[tokio::test]
async fn federation_without_the_policy_on_authors_is_a_risk_that_the_values_name() -> Result<()> {
    let policies = |objects: &[Value]| {
        let names = objects
            .iter()
            .filter(|object| object["kind"] == "ValidatingAdmissionPolicy");
        names
            .filter(|policy| {
                policy["metadata"]["name"]
                    .as_str()
                    .is_some_and(|name| name.ends_with("-federation-authors"))
            })
            .count()
    };
    for mode in ["strict", "enabled"] {
        let mode = format!("federation.mode={mode}");
        assert_eq!(policies(&set(&[&mode]).await?), 1);
        let accepted = [
            "admissionPolicies.enabled=false",
            "federation.acceptUncheckedAuthors=true",
        ];
        assert_eq!(
            policies(&set(&[&[mode.as_str()], &accepted[..]].concat()).await?),
            0
        );
    }
    // Without federation there is no such risk.
    set(&["admissionPolicies.enabled=false"]).await?;
    Ok(())
}

#[tokio::test]
async fn alerts_and_dashboard_are_those_of_the_files() -> Result<()> {
    let objects = file("gke").await?;
    let read = |name: &str| std::fs::read_to_string(format!("{CHART}/files/{name}"));
    let rule = &find(&objects, "PrometheusRule", "")["spec"];
    let alerts: Value = serde_saphyr::from_str(&read("alerts.yaml")?)?;
    ensure!(
        alerts["groups"]
            .as_array()
            .is_some_and(|groups| !groups.is_empty())
    );
    assert_eq!(rule, &alerts);
    let dashboard = &find(&objects, "ConfigMap", "-dashboard")["data"]["idtoken-operator.json"];
    assert_eq!(dashboard.as_str(), Some(read("dashboard.json")?.as_str()));
    Ok(())
}

#[tokio::test]
async fn a_changed_ca_bundle_reaches_the_pod() -> Result<()> {
    for bundle in [
        "caBundle.inline=x",
        "caBundle.configMapName=y",
        "caBundle.secretName=y",
    ] {
        let objects = set(&[bundle]).await?;
        let deployment = find(&objects, "Deployment", "");
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        let mounts = container["volumeMounts"].as_array().context("no mounts")?;
        let mount = mounts.iter().find(|mount| mount["name"] == "ca");
        let mount = mount.context("no mount of the CA")?;
        // The kubelet does not update a mounted file, only a mounted folder.
        assert_eq!(mount["subPath"], Value::Null, "{bundle}");
        let folder = mount["mountPath"].as_str().context("no folder")?;
        let flag = format!("--ca-file={folder}/ca.crt");
        let args = container["args"].as_array().context("no arguments")?;
        assert!(args.contains(&json!(flag)), "{bundle}");
    }
    Ok(())
}

#[tokio::test]
async fn a_release_has_one_lease_whatever_it_serves() -> Result<()> {
    let helm = Helm::offline(Version::Three).await?;
    let mut names = BTreeSet::new();
    for values in [
        "replicaCount=2",
        "selector=shard=a",
        "watchNamespaces={shop,yard}",
    ] {
        let objects = helm.objects(&["--set", values]).await?;
        let deployment = find(&objects, "Deployment", "")["metadata"]["name"].as_str();
        let flag = format!("--lease-name={}", deployment.unwrap());
        assert!(args(&objects).contains(&flag.as_str()), "{values}");
        names.insert(flag);
    }
    assert_eq!(names.len(), 1);
    let named = helm.objects(&["--set=leaderElection.leaseName=tokens"]).await?;
    assert!(args(&named).contains(&"--lease-name=tokens"));
    Ok(())
}
