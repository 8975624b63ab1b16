use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use http::{Request, Response, StatusCode};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::*;
use crate::kubernetes::Connections;
use crate::sync::lock;

/// The name of an object, and its version.
#[derive(Debug)]
struct Name(String, Option<String>);

impl Watched for Name {
    const RESOURCE: &'static str = "secrets";

    fn decode(json: &str) -> Result<Self, serde_json::Error> {
        let object: Value = serde_json::from_str(json)?;
        let field = |name| object["metadata"][name].clone();
        Ok(Self(
            serde_json::from_value(field("name"))?,
            serde_json::from_value(field("resourceVersion"))?,
        ))
    }

    fn resource_version(&self) -> Option<&str> {
        self.1.as_deref()
    }
}

/// Answers calls in order, and then none. Records each call.
#[derive(Clone)]
struct Server {
    answers: Arc<Mutex<VecDeque<(u16, String)>>>,
    calls: Arc<Mutex<Vec<String>>>,
    has_no_answer: Arc<Notify>,
}

impl Server {
    fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            lock(&server.calls).push(request.uri().to_string());
            let answer = lock(&server.answers).pop_front();
            let has_no_answer = server.has_no_answer.clone();
            async move {
                let Some((code, body)) = answer else {
                    has_no_answer.notify_one();
                    return std::future::pending().await;
                };
                let code = StatusCode::from_u16(code).unwrap();
                Response::builder()
                    .status(code)
                    .body(Body::from(body.into_bytes()))
            }
        });
        Client::new(service, "default")
    }

    fn calls(&self) -> Vec<String> {
        let calls = lock(&self.calls);
        let short = |call: &String| {
            let query = |key: &str| {
                let value = call
                    .split(['?', '&'])
                    .find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
                value.map(|value| format!(" {key}={value}")).unwrap_or_default()
            };
            let verb = if call.contains("watch=true") {
                "watch"
            } else {
                "list"
            };
            format!(
                "{verb}{}{}{}",
                query("limit"),
                query("continue"),
                query("resourceVersion")
            )
        };
        calls.iter().map(short).collect()
    }
}

fn object(name: &str, version: &str) -> Value {
    json!({"metadata": {"name": name, "resourceVersion": version}})
}

fn list(items: &[Value], next: &str) -> (u16, String) {
    let list = json!({"metadata": {"resourceVersion": "9", "continue": next}, "items": items});
    (200, list.to_string())
}

fn lines(events: &[(&str, Value)]) -> (u16, String) {
    let line =
        |(change, object): &(&str, Value)| json!({"type": change, "object": object}).to_string() + "\n";
    (200, events.iter().map(line).collect())
}

fn secrets() -> Collection {
    Collection {
        path: "/api/v1/secrets".to_owned(),
        metadata_only: true,
        labels: None,
        fields: None,
    }
}

/// What a watch shows for these answers, its calls, and the metrics after it. The first call that has no answer ends it.
async fn run(answers: Vec<(u16, String)>) -> (Vec<String>, Vec<String>, String) {
    let server = Server {
        answers: Arc::new(Mutex::new(answers.into())),
        calls: Arc::default(),
        has_no_answer: Arc::default(),
    };
    let (mut ctx, _) = WatchContext::empty();
    let client = server.client();
    ctx.connections = Arc::new(Connections::new(1, move || Ok(client.clone())));
    let collection = secrets();
    let mut events = Vec::new();
    let watching = watch(&ctx, &collection, |event: Event<Name>| {
        events.push(match event {
            Event::Listed(Name(name, _)) => format!("listed {name}"),
            Event::Applied(Name(name, _)) => format!("applied {name}"),
            Event::Deleted(Name(name, _)) => format!("deleted {name}"),
            other => format!("{other:?}"),
        });
    });
    tokio::select! {
        () = watching => unreachable!("it never returns"),
        () = server.has_no_answer.notified() => {}
    }
    let metrics = ctx
        .metrics
        .encode(crate::metrics::Format::Text, ctx.clock.now())
        .unwrap();
    (events, server.calls(), metrics)
}

fn value(metrics: &str, name: &str) -> String {
    let series = format!("idtoken_{name}{{resource=\"secrets\"}} ");
    let found = metrics.lines().find_map(|line| line.strip_prefix(&series));
    found.unwrap_or("none").to_owned()
}

#[tokio::test]
async fn an_object_that_cannot_be_decoded_costs_itself_alone() {
    let bad = json!({"metadata": {"name": 7, "resourceVersion": "11"}});
    let (events, calls, metrics) = run(vec![
        list(&[object("a", "1"), bad.clone(), object("b", "2")], "next"),
        list(&[object("c", "3")], ""),
        lines(&[
            ("ADDED", object("d", "10")),
            ("MODIFIED", bad),
            ("DELETED", object("a", "12")),
            ("BOOKMARK", object("", "15")),
        ]),
    ])
    .await;
    let shown = [
        "ListBegins",
        "listed a",
        "listed b",
        "listed c",
        "ListEnds",
        "WatchBegins",
        "applied d",
        "deleted a",
        "Bookmark",
    ];
    assert_eq!(events, shown);
    assert_eq!(
        calls,
        [
            "list limit=100",
            "list limit=100 continue=next",
            "watch resourceVersion=9",
            "watch resourceVersion=15"
        ]
    );
    assert_eq!(value(&metrics, "undecodable_objects_total"), "2");
    assert_eq!(value(&metrics, "watch_restarts_total"), "0");
}

#[tokio::test]
async fn the_version_of_an_object_that_cannot_be_decoded_counts() {
    let bad = json!({"metadata": {"name": 7, "resourceVersion": "11"}});
    let (_, calls, _) = run(vec![list(&[], ""), lines(&[("MODIFIED", bad)])]).await;
    assert_eq!(calls[2..], ["watch resourceVersion=11"]);
}

#[tokio::test]
async fn a_watch_is_resumed_at_the_last_version_that_an_object_has() {
    let events = [
        ("ADDED", object("a", "11")),
        ("MODIFIED", object("b", "12")),
        ("DELETED", json!({"metadata": {"name": "c"}})),
    ];
    let (_, calls, _) = run(vec![list(&[], ""), lines(&events)]).await;
    assert_eq!(calls[2..], ["watch resourceVersion=12"]);
}

#[tokio::test]
async fn only_a_watch_that_cannot_be_resumed_is_lost() {
    let gone = json!({"kind": "Status", "code": 410, "message": "old"});
    let unavailable = || (503, String::new());
    let (events, calls, metrics) = run(vec![
        unavailable(),
        list(&[], ""),
        lines(&[("ERROR", gone)]),
        list(&[], ""),
        lines(&[]),
        unavailable(),
        list(&[object("a", "1")], ""),
        lines(&[]),
    ])
    .await;
    let shown = [
        "ListBegins",
        "ListBegins",
        "ListEnds",
        "WatchBegins",
        "ListBegins",
        "ListEnds",
        "WatchBegins",
        "Lost",
        "ListBegins",
        "listed a",
        "ListEnds",
        "WatchBegins",
    ];
    assert_eq!(events, shown);
    let list = "list limit=100";
    let watch = "watch resourceVersion=9";
    assert_eq!(calls, [list, list, watch, list, watch, watch, list, watch, watch]);
    assert_eq!(value(&metrics, "watch_restarts_total"), "3");
    assert_eq!(value(&metrics, "watches_failing"), "0");
}

#[tokio::test]
async fn what_is_no_event_would_be_sent_again_so_the_objects_are_listed() {
    let (_, calls, metrics) = run(vec![list(&[], ""), (200, "no event\n".to_owned()), list(&[], "")]).await;
    let (list, watch) = ("list limit=100", "watch resourceVersion=9");
    assert_eq!(calls, [list, watch, list, watch]);
    assert_eq!(value(&metrics, "watch_restarts_total"), "1");
}

#[tokio::test]
async fn a_list_without_a_watch_makes_the_pauses_no_shorter_and_mends_nothing() {
    let (_, mut broken) = list(&[object("a", "1"), object("b", "2")], "");
    broken.truncate(broken.len() - 1);
    let server = Server {
        answers: Arc::new(Mutex::new([(200, broken), list(&[object("a", "1")], "")].into())),
        calls: Arc::default(),
        has_no_answer: Arc::default(),
    };
    let (ctx, _) = WatchContext::empty();
    let mut listed = 0;
    let mut stream = Stream {
        clock: &ctx.clock,
        collection: &secrets(),
        metrics: ctx.metrics.watch(Name::RESOURCE),
        backoff: Backoff(MAX_PAUSE),
        page_size: MAX_PAGE_SIZE,
        last_logged: None,
        on_event: |event: Event<Name>| listed += usize::from(matches!(event, Event::Listed(_))),
    };
    stream.list(&server.client()).await.unwrap_err();
    assert_eq!(stream.backoff.next(), MAX_PAUSE);
    stream.metrics.failed(true);
    stream.list(&server.client()).await.unwrap();
    let metrics = ctx
        .metrics
        .encode(crate::metrics::Format::Text, ctx.clock.now())
        .unwrap();
    assert_eq!(value(&metrics, "watches_failing"), "1");
    assert_eq!(stream.backoff.next(), MAX_PAUSE);
    assert_eq!(listed, 3);
}

#[tokio::test]
async fn a_watch_that_is_refused_after_each_list_is_told_each_time() {
    let forbidden = || {
        (
            403,
            json!({"kind": "Status", "code": 403, "message": "no"}).to_string(),
        )
    };
    let answers = vec![
        list(&[], ""),
        forbidden(),
        list(&[], ""),
        forbidden(),
        list(&[], ""),
    ];
    let (events, ..) = run(answers).await;
    assert_eq!(events[2..5], ["Lost", "Refused(\"403 no\")", "ListBegins"]);
    assert!(!events.iter().any(|event| event == "WatchBegins"), "{events:?}");
}

#[test]
fn an_outage_or_an_overload_is_no_refusal() {
    let refuses = |code: u16| {
        let status = kube::core::Status::failure("no", "").with_code(code);
        is_refusal(&kube::Error::Api(Box::new(status)))
    };
    for code in [400, 403, 404, 422, 500] {
        assert!(refuses(code), "{code}");
    }
    for code in [401, 408, 409, 410, 429, 502, 503, 504] {
        assert!(!refuses(code), "{code}");
    }
    assert!(!is_refusal(&kube::Error::LinesCodecMaxLineLengthExceeded));
}

#[tokio::test]
async fn a_large_page_makes_the_next_one_smaller_and_small_ones_let_it_grow() {
    let large = json!({"metadata": {"name": "a", "managedFields": "x".repeat(LARGE_PAGE)}});
    let mut answers: Vec<_> = (0..3).map(|_| list(std::slice::from_ref(&large), "n")).collect();
    answers.extend((0..4).map(|_| list(&[], "n")));
    // A page that breaks off counts, too.
    let (_, mut broken) = list(&[large], "n");
    broken.truncate(LARGE_PAGE);
    answers.push((200, broken));
    let (events, calls, _) = run(answers).await;
    let limits: Vec<u32> = calls
        .iter()
        .map(|call| call.split(['=', ' ']).nth(2).unwrap().parse().unwrap())
        .collect();
    assert_eq!(limits, [100, 50, 25, 12, 24, 48, 96, 100, 50]);
    assert_eq!(events.iter().filter(|event| *event == "ListBegins").count(), 2);
}

#[test]
fn a_page_has_at_least_one_object() {
    let shrink = |sizes: u32| (0..sizes).fold(MAX_PAGE_SIZE, |size, _| next_page_size(size, LARGE_PAGE));
    assert_eq!((shrink(6), shrink(7), shrink(60)), (1, 1, 1));
    assert_eq!(next_page_size(1, SMALL_PAGE), 2);
    assert_eq!(next_page_size(12, SMALL_PAGE + 1), 12);
}

#[test]
fn pauses_grow_to_a_limit_until_a_success() {
    let mut backoff = Backoff::default();
    let pauses: Vec<_> = (0..7).map(|_| backoff.next().as_millis()).collect();
    assert_eq!(pauses, [200, 400, 800, 1600, 3200, 5000, 5000]);
    backoff.reset();
    assert_eq!(backoff.next(), MIN_PAUSE);
}
