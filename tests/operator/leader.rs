//! Several replicas, of which the one that holds the Lease works.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
use idtoken_emulator::{EmulatorHandle, Endpoint, Fault};
use idtoken_testenv::until;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::ListParams;
use kube::runtime::watcher;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::common::{AUDIENCE, CALLER, LIMIT, Operator, Setup, USER, Wire, World, is_ready, policy, token};

const NAMESPACE: &str = "idtoken-system";
const NAME: &str = "idtoken-operator";
/// Times of the Lease in seconds: duration, deadline, period.
const SHORT: [u64; 3] = [4, 3, 1];
/// Short, so that renewals are always due; a takeover takes less than the half that is left then.
const LIFETIME: u64 = 24;

/// A replica with Google's endpoints of its own, so that its calls are told from the others', and a wire of its own to the API server.
struct Pod {
    name: &'static str,
    operator: Operator,
    google: EmulatorHandle,
    wire: Wire,
    times: [u64; 3],
}

async fn world() -> Result<World> {
    let setup = Setup {
        operator: false,
        ..Setup::lifetime(LIFETIME)
    };
    let world = World::with(setup).await?;
    world.granted("shop").await?;
    Ok(world)
}

async fn operator(
    world: &World,
    name: &str,
    google: &EmulatorHandle,
    wire: &Wire,
    times: [u64; 3],
) -> Result<Operator> {
    let kubeconfig = std::fs::read_to_string(&world.kubeconfig)?;
    let server = format!("https://{}", wire.address());
    let path = world.cluster.dir().join(format!("{name}.kubeconfig"));
    std::fs::write(&path, kubeconfig.replace(&world.cluster.url(), &server))?;
    let flags = [
        "--leader-elect".to_owned(),
        format!("--lease-namespace={NAMESPACE}"),
        format!("--lease-duration={}", times[0]),
        format!("--renew-deadline={}", times[1]),
        format!("--retry-period={}", times[2]),
        // So that work is held up right before its call to Google, where a test can make it wait.
        "--google-max-in-flight=1".to_owned(),
    ];
    let env = [("HOSTNAME", name), ("IDTOKEN_LOG", "debug")];
    world.replica(google.address(), &path, &flags, &env).await
}

async fn pod(world: &World, name: &'static str, times: [u64; 3]) -> Result<Pod> {
    let options = idtoken_emulator::Options {
        lifetime: Duration::from_secs(LIFETIME),
        ..idtoken_emulator::Options::default()
    };
    let google = EmulatorHandle::start(policy(), options).await?;
    let api = world.cluster.url();
    let wire = Wire::to(api.trim_start_matches("https://").parse()?).await?;
    let operator = operator(world, name, &google, &wire, times).await?;
    operator.ready().await?;
    Ok(Pod {
        name,
        operator,
        google,
        wire,
        times,
    })
}

impl Pod {
    /// When it asked for ID tokens, whatever came of it.
    fn mints(&self) -> Vec<Timestamp> {
        let calls = self.google.calls().into_iter();
        calls
            .filter(|call| call.endpoint == Endpoint::GenerateIdToken)
            .map(|call| Timestamp::from_millisecond(call.time_unix_ms).unwrap())
            .collect()
    }

    async fn leads(&self) -> Result<bool> {
        Ok(self.operator.metric("idtoken_leader").await? == 1.0)
    }

    async fn stands_by(&self) -> Result<()> {
        until(&format!("{} stands by", self.name), LIMIT, async || {
            Ok((!self.leads().await?).then_some(()))
        })
        .await?;
        self.operator.ready().await
    }

    /// Starts it again after its process ended.
    async fn restart(&mut self, world: &World) -> Result<()> {
        self.operator = operator(world, self.name, &self.google, &self.wire, self.times).await?;
        self.operator.ready().await
    }
}

#[derive(Clone, Debug)]
struct Term {
    holder: String,
    acquired: Timestamp,
    renewed: Timestamp,
}

fn term(lease: &Lease) -> Option<Term> {
    let spec = lease.spec.as_ref()?;
    Some(Term {
        holder: spec.holder_identity.clone()?.split('_').next()?.to_owned(),
        acquired: spec.acquire_time.as_ref()?.0,
        renewed: spec.renew_time.as_ref()?.0,
    })
}

fn leases(world: &World) -> Api<Lease> {
    Api::namespaced(world.client.clone(), NAMESPACE)
}

async fn current(world: &World) -> Result<Term> {
    let lease = leases(world).get_opt(NAME).await?;
    lease.as_ref().and_then(term).context("no Lease")
}

/// Waits until `name` holds the Lease and works.
async fn until_leads(world: &World, pod: &Pod) -> Result<Term> {
    until(&format!("{} leads", pod.name), LIMIT, async || {
        let term = current(world).await.ok();
        Ok(term.filter(|term| term.holder == pod.name))
    })
    .await?;
    until(&format!("{} works", pod.name), LIMIT, async || {
        Ok(pod.leads().await?.then_some(()))
    })
    .await?;
    current(world).await
}

/// Every state that the Lease was in.
struct History {
    seen: Arc<Mutex<Vec<Term>>>,
    task: JoinHandle<()>,
}

impl History {
    fn of(world: &World) -> Self {
        let seen: Arc<Mutex<Vec<Term>>> = Arc::default();
        let kept = seen.clone();
        let mut stream = watcher(leases(world), watcher::Config::default()).boxed();
        let task = tokio::spawn(async move {
            while let Some(event) = stream.next().await {
                if let Ok(watcher::Event::InitApply(lease) | watcher::Event::Apply(lease)) = event {
                    let mut seen = kept.lock().unwrap();
                    seen.extend(term(&lease));
                }
            }
        });
        Self { seen, task }
    }

    /// Makes sure that `pod` called Google only while its Lease had not ended, and that none was taken before its end.
    fn check(&self, pod: &Pod) -> Result<usize> {
        let seen = self.seen.lock().unwrap();
        let lease = Duration::from_secs(pod.times[0]);
        let mints = pod.mints();
        for at in &mints {
            let held = seen.iter().filter(|term| term.holder == pod.name);
            let covers = |term: &Term| term.renewed <= *at && *at < term.renewed + lease;
            let last = held.clone().rfind(|term| term.renewed <= *at);
            ensure!(
                held.clone().any(covers),
                "{} asked for a token at {at}; the last renewal of its Lease before was {:?}",
                pod.name,
                last.map(|term| term.renewed)
            );
        }
        for pair in seen.windows(2) {
            let (before, after) = (&pair[0], &pair[1]);
            let is_taken = after.acquired != before.acquired && !before.holder.is_empty();
            ensure!(
                !is_taken || after.holder.is_empty() || after.acquired >= before.renewed + lease,
                "taken before its end: {before:?}, {after:?}"
            );
        }
        Ok(mints.len())
    }
}

impl History {
    /// How long after the last renewal the Lease was taken, each time that it was not given back, in milliseconds.
    fn takeovers(&self) -> Vec<i128> {
        let seen = self.seen.lock().unwrap();
        let pairs = seen
            .windows(2)
            .filter(|pair| pair[0].holder != pair[1].holder && !pair[0].holder.is_empty());
        pairs
            .map(|pair| pair[1].acquired.duration_since(pair[0].renewed).as_millis())
            .collect()
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn two(world: &World, times: [u64; 3]) -> Result<(Pod, Pod)> {
    let first = pod(world, "first", times).await?;
    until_leads(world, &first).await?;
    let second = pod(world, "second", times).await?;
    Ok((first, second))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_replicas_one_works_and_gives_the_lease_back() -> Result<()> {
    let world = world().await?;
    // So long that a takeover within the limit of a wait shows that the Lease was given back.
    let (first, second) = two(&world, [600, 500, 1]).await?;
    for name in ["a", "b", "c"] {
        world.issued("shop", name, json!({})).await?;
    }
    assert_eq!((first.mints().len(), second.mints().len()), (3, 0));
    assert!(!second.leads().await?);
    assert_eq!(second.operator.metric("idtoken_requests{").await?, 0.0);

    first.operator.process.request_stop()?;
    let status = first.operator.process.wait(LIMIT).await?;
    ensure!(status.success(), "{status}");
    let term = until_leads(&world, &second).await?;
    assert_eq!(term.holder, "second");
    world.issued("shop", "d", json!({})).await?;
    // What the first has written is kept.
    assert_eq!((first.mints().len(), second.mints().len()), (3, 1));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_replaced_at_the_end_of_its_lease() -> Result<()> {
    let world = world().await?;
    let (first, second) = two(&world, SHORT).await?;
    let history = History::of(&world);
    world.issued("shop", "a", json!({})).await?;
    first.operator.process.kill().await?;
    let last = current(&world).await?;
    assert_eq!(last.holder, "first");
    let next = until_leads(&world, &second).await?;
    let took = next.acquired.duration_since(last.renewed);
    assert!(took.as_secs() >= i64::try_from(SHORT[0])?, "taken after {took:#}");
    // leaseDuration + retryPeriod, and what a busy machine adds.
    assert!(
        took.as_secs() <= i64::try_from(SHORT[0] + SHORT[2])? + 30,
        "taken after {took:#}"
    );
    world.issued("shop", "b", json!({})).await?;
    assert_eq!((history.check(&first)?, history.check(&second)?), (1, 1));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_leader_does_nothing_when_it_goes_on() -> Result<()> {
    let world = world().await?;
    let (first, second) = two(&world, SHORT).await?;
    let history = History::of(&world);
    for n in 0..20 {
        world.request("shop", &format!("r{n}"), json!({})).await?;
    }
    fresh(&world, &[&first, &second], 20).await?;
    // It is stopped while some renewals wait for their turn, right before their calls.
    let slow = Fault::delay(Duration::from_millis(500)).on(Endpoint::GenerateIdToken);
    first.google.fault(slow)?;
    until("renewals are under way", LIMIT, async || {
        Ok((first.mints().len() >= 22).then_some(()))
    })
    .await?;
    first.operator.process.pause()?;
    until_leads(&world, &second).await?;
    let before = first.mints().len();
    // By now the timers of the first have run out for all of them.
    until("every token was renewed", LIMIT, async || {
        Ok((before + second.mints().len() >= 40).then_some(()))
    })
    .await?;
    let log = first.operator.process.log().len();
    first.operator.process.resume()?;
    first
        .operator
        .process
        .wait_for_line("lost leadership", LIMIT)
        .await?;
    first.stands_by().await?;
    let said = first.operator.process.log()[log..].to_owned();
    assert!(said.contains("could not be renewed in time"), "{said}");
    assert_eq!(first.mints().len(), before, "{said}");
    history.check(&first)?;
    history.check(&second)?;
    // It can lead again.
    second.operator.process.kill().await?;
    until_leads(&world, &first).await?;
    world.issued("shop", "late", json!({})).await?;
    fresh(&world, &[&first, &second], 21).await?;
    history.check(&first)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_stops_before_another_begins() -> Result<()> {
    let world = world().await?;
    let (first, second) = two(&world, SHORT).await?;
    let history = History::of(&world);
    for n in 0..20 {
        world.request("shop", &format!("r{n}"), json!({})).await?;
    }
    fresh(&world, &[&first, &second], 20).await?;
    first.wire.cut();
    until_leads(&world, &second).await?;
    first.stands_by().await?;
    until("every token was renewed", LIMIT, async || {
        Ok((second.mints().len() >= 20).then_some(()))
    })
    .await?;
    first.wire.mend();
    world.issued("shop", "late", json!({})).await?;
    fresh(&world, &[&first, &second], 21).await?;
    history.check(&first)?;
    history.check(&second)?;
    Ok(())
}

/// Waits until all requests are ready, and makes sure that each Secret holds a token that is valid now.
async fn fresh(world: &World, pods: &[&Pod], count: usize) -> Result<()> {
    world
        .wait("every request is ready", async || {
            let list = world.requests("shop").list(&ListParams::default()).await?;
            Ok(list.items.iter().filter(|request| is_ready(request)).count() == count)
        })
        .await?;
    let secrets = world.secrets("shop").list(&ListParams::default()).await?;
    ensure!(secrets.items.len() == count, "{} Secrets", secrets.items.len());
    for secret in &secrets.items {
        let token = token(secret);
        let verified = pods.iter().any(|pod| pod.google.verify(&token).is_ok());
        ensure!(verified, "{:?} holds no valid token", secret.metadata.name);
    }
    Ok(())
}

/// 3 rounds take about half a minute; more by IDTOKEN_FAILOVER_ROUNDS.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover() -> Result<()> {
    const COUNT: usize = 30;
    let rounds: u64 = match std::env::var("IDTOKEN_FAILOVER_ROUNDS") {
        Ok(text) => text.parse()?,
        Err(_) => 3,
    };
    let world = world().await?;
    let (mut first, mut second) = two(&world, SHORT).await?;
    let history = History::of(&world);
    for n in 0..COUNT {
        world.request("shop", &format!("r{n}"), json!({})).await?;
    }
    fresh(&world, &[&first, &second], COUNT).await?;
    for round in 0..rounds {
        let (leader, other) = match round % 2 {
            0 => (&mut first, &second),
            _ => (&mut second, &first),
        };
        let told = format!("round {round}");
        let before = current(&world).await?;
        ensure!(before.holder == leader.name, "{told}: {before:?}");
        // Each fault meets each replica: the three do not keep step with the two.
        match round % 3 {
            0 => drop(leader.operator.process.kill().await?),
            1 => leader.operator.process.pause()?,
            _ => leader.wire.cut(),
        }
        until_leads(&world, other).await.context(told.clone())?;
        match round % 3 {
            0 => leader.restart(&world).await?,
            1 => leader.operator.process.resume()?,
            _ => leader.wire.mend(),
        }
        leader.stands_by().await.context(told.clone())?;
        fresh(&world, &[leader, other], COUNT).await.context(told)?;
    }
    let (one, two) = (history.check(&first)?, history.check(&second)?);
    let needed = COUNT;
    if one + two < needed {
        bail!("{one} and {two} mints for {needed} requests");
    }
    println!(
        "{rounds} rounds, {one} and {two} mints, takeovers in {:?} ms",
        history.takeovers()
    );
    Ok(())
}

/// A replica of the Deployment `tokens`, as `pod` of it.
async fn member(world: &World, pod: &str, flags: &[&str]) -> Result<Operator> {
    let common = [
        "--leader-elect",
        "--lease-namespace=idtoken-system",
        // So long that a takeover within the limit of a wait shows that the Lease was given back.
        "--lease-duration=600",
        "--renew-deadline=500",
        "--retry-period=1",
    ];
    let flags: Vec<String> = common
        .iter()
        .chain(flags)
        .map(|flag| (*flag).to_owned())
        .collect();
    let name = format!("tokens-{pod}");
    let operator = world
        .replica(
            world.google.address(),
            &world.kubeconfig,
            &flags,
            &[("HOSTNAME", &name)],
        )
        .await?;
    operator.ready().await?;
    Ok(operator)
}

async fn until_working(operator: &Operator) -> Result<()> {
    until("it leads", LIMIT, async || {
        Ok((operator.metric("idtoken_leader").await? == 1.0).then_some(()))
    })
    .await
}

/// A rollout to other namespaces and another selector, from a version that named the Lease after both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_that_changes_the_scope_has_one_leader_and_leaves_one_lease() -> Result<()> {
    const FOUND: &str = "found a Lease of the same Deployment under another name";
    let from = json!([{"namespace": "shop"}, {"namespace": "yard"}]);
    let to = json!([{"serviceAccounts": [CALLER], "audiences": [AUDIENCE]}]);
    let world = World::with(Setup {
        operator: false,
        grants_file: Some(json!([{"name": "both", "from": from, "to": to}]).to_string()),
        ..Setup::default()
    })
    .await?;
    for namespace in ["shop", "yard"] {
        world.namespace(namespace).await?;
    }
    let holders = async || {
        let all = leases(&world).list(&ListParams::default()).await?;
        let holder = |lease: Lease| {
            let pod = lease.spec?.holder_identity?;
            Some((lease.metadata.name?, pod.split('_').next()?.to_owned()))
        };
        anyhow::Ok(all.items.into_iter().filter_map(holder).collect::<Vec<_>>())
    };
    let (before, after) = (
        ["--namespace=shop", "--selector=!canary"],
        ["--namespace=shop,yard", "--lease-name=tokens"],
    );
    let old = member(&world, "6d8f9c7b5d-x2k4q", &before).await?;
    until_working(&old).await?;
    for name in ["a", "b", "c", "d", "e"] {
        world.issued("shop", name, json!({})).await?;
    }
    let new = member(&world, "5b9d4f6c88-zzzzz", &after).await?;
    new.process.wait_for_line(FOUND, LIMIT).await?;
    world.renewed("shop", "a", "now").await?;
    assert_eq!(new.metric("idtoken_leader").await?, 0.0);
    assert_eq!(world.google.mint_count(), 6);
    let former = holders().await?;
    assert!(
        former.len() == 1 && former[0].0.starts_with("idtoken-operator-"),
        "{former:?}"
    );

    old.process.request_stop()?;
    old.process.wait(LIMIT).await?;
    until_working(&new).await?;
    world.issued("yard", "f", json!({})).await?;
    // A replica from before, which knows only the former Lease, cannot have it.
    let both = ["idtoken-operator", "tokens"].map(|name| (name, "tokens-5b9d4f6c88-zzzzz"));
    let held = holders().await?;
    let held: Vec<_> = held
        .iter()
        .map(|(name, pod)| (&name[..name.len().min(16)], &**pod))
        .collect();
    assert_eq!(held, both);
    let standby = member(&world, "6d8f9c7b5d-vvvvv", &before).await?;
    world.renewed("shop", "b", "now").await?;
    assert_eq!(standby.metric("idtoken_leader").await?, 0.0);
    standby.process.request_stop()?;
    standby.process.wait(LIMIT).await?;

    new.process.request_stop()?;
    new.process.wait(LIMIT).await?;
    assert_eq!(holders().await?, [("tokens".to_owned(), String::new())]);
    assert_eq!(
        world.google.mint_count(),
        8,
        "one for each request and each renewal"
    );
    Ok(())
}

/// A release of its own: its Lease is `name` in `namespace`.
async fn release(world: &World, namespace: &str, name: &str, flags: &[&str]) -> Result<Operator> {
    let lease = [
        "--leader-elect".to_owned(),
        format!("--lease-namespace={namespace}"),
        format!("--lease-name={name}"),
        "--lease-duration=3".to_owned(),
        "--renew-deadline=2".to_owned(),
        "--retry-period=1".to_owned(),
    ];
    let flags: Vec<String> = lease
        .into_iter()
        .chain(flags.iter().map(|flag| (*flag).to_owned()))
        .collect();
    let google = world.google.address();
    let operator = world
        .replica(google, &world.kubeconfig, &flags, &[("HOSTNAME", name)])
        .await?;
    operator.ready().await?;
    until_working(&operator).await?;
    Ok(operator)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn releases_that_overlap_are_reported_and_shards_are_not() -> Result<()> {
    const REPORT: &str = "another release serves some of the same requests";
    let setup = Setup {
        operator: false,
        ..Setup::default()
    };
    let world = World::with(setup).await?;
    world.namespace("yard").await?;
    // As the chart of a release in that namespace has it.
    for (kind, body) in [
        (
            "Role",
            json!({"rules": [{"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "list", "create", "update"]}]}),
        ),
        (
            "RoleBinding",
            json!({
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "lease"},
                "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": USER}],
            }),
        ),
    ] {
        let mut object = body;
        object["apiVersion"] = json!("rbac.authorization.k8s.io/v1");
        object["kind"] = json!(kind);
        object["metadata"] = json!({"name": "lease", "namespace": "yard"});
        world.cluster.apply(&object.to_string()).await?;
    }
    let sees = async |operator: &Operator, count: f64| {
        let what = format!("{count} overlapping releases");
        until(&what, LIMIT, async || {
            Ok((operator.metric("idtoken_overlapping_releases").await? == count).then_some(()))
        })
        .await
    };
    let one = release(&world, NAMESPACE, "shard-a", &["--selector=shard=a"]).await?;
    let two = release(&world, NAMESPACE, "shard-b", &["--selector=shard!=a"]).await?;
    let all = release(&world, "yard", "tokens", &[]).await?;
    sees(&all, 2.0).await?;
    // Of each other they report nothing.
    for shard in [&one, &two] {
        sees(shard, 1.0).await?;
        shard.process.wait_for_line(REPORT, LIMIT).await?;
        let answer = shard.get("/readyz?verbose").await?;
        assert_eq!(answer.status(), 200);
        let text = answer.text().await?;
        let line = "[-]scope overlaps with that of the release of Lease tokens in namespace yard since ";
        assert!(text.contains(line) && text.matches("[-]").count() == 1, "{text}");
    }
    // One of some namespaces is seen too, and may not list elsewhere itself.
    let some = release(
        &world,
        NAMESPACE,
        "some",
        &["--namespace=yard", "--selector=shard=a"],
    )
    .await?;
    sees(&all, 3.0).await?;
    sees(&one, 2.0).await?;
    sees(&two, 1.0).await?;
    sees(&some, 1.0).await?;
    all.process.request_stop()?;
    all.process.wait(LIMIT).await?;
    sees(&two, 0.0).await?;
    sees(&one, 1.0).await?;
    Ok(())
}
