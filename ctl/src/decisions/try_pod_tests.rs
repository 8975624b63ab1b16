use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::*;

/// As a token of Google's is: three parts of base64.
fn token() -> String {
    format!(
        "{}.{}.{}",
        "eyJhbGciOiJSUzI1NiJ9",
        "eyJhdWQiOiJ4In0",
        "c2lnbmF0dXJl".repeat(8)
    )
}

fn call(url: &str) -> PodCall<'_> {
    PodCall {
        image: "curl",
        secret: "billing",
        key: "token",
        url,
        method: "GET",
        authorization_header: "Authorization",
        headers: &[],
        timeout: Duration::from_secs(20),
    }
}

/// Runs the container of the pod as a process of this machine, without a newline at the end of the token, as the operator writes it.
fn run(pod: &Value, test: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../target/tmp")
        .join(format!("try-pod-{test}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("token"), token()).unwrap();
    let container = &pod["spec"]["containers"][0];
    let arguments = container["args"].as_array().unwrap();
    let status = Command::new("sh")
        .args(arguments.iter().map(|argument| argument.as_str().unwrap()))
        .env("TOKEN_FILE", folder.join("token"))
        .env("RESULT_FILE", folder.join("result"))
        .env("NO_PROXY", "*")
        .status()
        .unwrap();
    assert!(status.success());
    let result = std::fs::read_to_string(folder.join("result")).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    result
}

/// A server that answers one request by `answer` of its text, and returns it.
fn serve(answer: impl FnOnce(&str) -> String + Send + 'static) -> (String, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/path", listener.local_addr().unwrap());
    let served = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            request.push(byte[0]);
        }
        let request = String::from_utf8(request).unwrap();
        stream.write_all(answer(&request).as_bytes()).unwrap();
        request
    });
    (url, served)
}

fn ended(message: &str, exit_code: i32) -> PodProgress {
    let pod: Pod = serde_json::from_value(json!({
        "status": {"phase": "Succeeded", "containerStatuses": [{
            "name": CONTAINER, "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": exit_code, "message": message, "reason": "Completed"}},
        }]},
    }))
    .unwrap();
    progress(&pod)
}

fn answered(message: &str) -> Answer {
    match ended(message, 0) {
        PodProgress::Done(Ok(answer)) => answer,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_script_sends_the_token_and_keeps_it_out_of_its_result() {
    let echoed = token();
    let (url, served) = serve(move |_| {
        format!(
            "HTTP/1.1 403 Forbidden\r\nServer: Google Frontend\r\nSet-Cookie: a=b\r\nX-Goog-Echo: {echoed}\r\nConnection: close\r\n\r\n\
             <h1>{echoed}</h1>\n{}\n\nend",
            &echoed[echoed.rfind('.').unwrap() + 1..]
        )
    });
    let headers = ["X-Mine: a'b\"$(c)".to_owned()];
    let pod = pod(&PodCall {
        headers: &headers,
        authorization_header: "X-Serverless-Authorization",
        ..call(&url)
    });
    assert!(!pod.to_string().contains("c2lnbmF0dXJl"), "{pod}");
    let result = run(&pod, "echo");
    let request = served.join().unwrap();
    assert!(
        request.contains(&format!("X-Serverless-Authorization: Bearer {}\r\n", token())),
        "{request}"
    );
    assert!(request.contains("X-Mine: a'b\"$(c)\r\n"), "{request}");
    assert!(request.starts_with("GET /path HTTP/1.1"), "{request}");
    assert!(
        !result.contains("eyJ") && !result.contains("c2lnbmF0dXJl"),
        "{result}"
    );
    let answer = answered(&result);
    assert_eq!(answer.status, 403);
    assert_eq!(
        answer.headers,
        [
            ("server".to_owned(), "Google Frontend".to_owned()),
            ("x-goog-echo".to_owned(), "[redacted]".to_owned())
        ]
    );
    assert_eq!(answer.body, "<h1>[redacted]</h1>\n[redacted]\n\nend");
}

#[test]
fn a_long_answer_leaves_room_for_its_head_and_no_redirect_is_followed() {
    let (url, served) = serve(|_| {
        format!(
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nX-Long: {}\r\n\r\n{}",
            "x".repeat(20_000),
            "\u{e9}".repeat(30_000)
        )
    });
    let result = run(
        &pod(&PodCall {
            method: "POST",
            ..call(&url)
        }),
        "long",
    );
    let request = served.join().unwrap();
    assert!(
        request.starts_with("POST /path") && request.contains("Content-Length: 0\r\n"),
        "{request}"
    );
    assert!(result.len() <= 4096, "{}", result.len());
    let answer = answered(&result);
    assert_eq!(answer.status, 302);
    assert!(answer.body.len() > 3000);
}

#[test]
fn no_answer_says_what_curl_says() {
    let result = run(&pod(&call("http://127.0.0.1:1/")), "refused");
    let PodProgress::Done(Err(error)) = ended(&result, 0) else {
        panic!("{result}");
    };
    assert!(error.to_string().contains("curl exits with 7"), "{error}");
}

#[test]
fn each_way_to_fail_has_its_words() {
    let failed = |message: &str, code: i32| match ended(message, code) {
        PodProgress::Done(Err(error)) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(failed("", 137).contains("exit code 137"));
    assert!(failed("", 127).contains("no sh or no curl"));
    assert!(failed("curl 127\nsh: curl: not found", 0).contains("no curl"));
    assert!(!failed("curl 6\n\u{1b}[2J", 0).contains('\u{1b}'));
    let state = |status: Value| progress(&serde_json::from_value(json!({"status": status})).unwrap());
    let waiting = |reason: &str| {
        state(json!({"phase": "Pending", "containerStatuses": [{
            "name": CONTAINER, "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": reason, "message": "m\u{1b}"}},
        }]}))
    };
    for reason in ["ImagePullBackOff", "CreateContainerConfigError"] {
        assert!(matches!(waiting(reason), PodProgress::Done(Err(_))), "{reason}");
    }
    for reason in ["ContainerCreating", "ErrImagePull"] {
        assert!(
            matches!(waiting(reason), PodProgress::Pending(text) if !text.contains('\u{1b}')),
            "{reason}"
        );
    }
    let unscheduled = state(json!({"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"},
    ]}));
    assert!(matches!(unscheduled, PodProgress::Pending(text) if text.contains("0/1 nodes")));
    let evicted = state(json!({"phase": "Failed", "reason": "Evicted", "message": "low"}));
    assert!(matches!(evicted, PodProgress::Done(Err(PodError::NotRun(text))) if text.contains("Evicted")));
    assert!(matches!(progress(&Pod::default()), PodProgress::Pending(_)));
}
