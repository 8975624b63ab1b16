//! Checks requests and answers by Google's discovery documents: method, path, parameters, fields and their types.

use std::collections::BTreeMap;

use idtoken_testenv::discovery_document;
use regex::Regex;
use serde_json::{Map, Value};

/// What Google's own libraries send, and no discovery document has.
const UNDEFINED: [&str; 4] = [
    // https://github.com/googleapis/google-auth-library-python/blob/main/google/oauth2/_client.py
    "useEmailAzp is no field",
    "includeEmail is no boolean",
    "$alt is no parameter",
    // The refresh of a workforce pool's users.
    "there is no POST /v1/oauthtoken",
];

/// The documents, by the first label of their host.
pub(crate) struct Discovery(BTreeMap<&'static str, Value>);

/// A request.
pub(crate) struct Asked<'a> {
    pub(crate) service: &'a str,
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) body: Option<Value>,
}

/// A method that a request calls.
pub(crate) struct Method<'d> {
    document: &'d Value,
    method: &'d Value,
}

impl Method<'_> {
    pub(crate) fn id(&self) -> &str {
        self.method["id"].as_str().unwrap()
    }
}

impl Discovery {
    /// Reads the documents.
    pub(crate) fn load() -> Self {
        let services = [
            ("iam", "iam", "v1"),
            ("iamcredentials", "iamcredentials", "v1"),
            ("sts", "sts", "v1"),
            // At www, which has more than this document defines.
            ("userinfo", "oauth2", "v2"),
        ];
        Self(
            services
                .into_iter()
                .map(|(name, api, version)| (name, discovery_document(api, version).unwrap()))
                .collect(),
        )
    }

    /// Whether a service has a document.
    pub(crate) fn has(&self, service: &str) -> bool {
        self.0.contains_key(service)
    }

    /// The ids of all methods.
    pub(crate) fn ids(&self) -> Vec<&str> {
        let methods = self.0.values().flat_map(methods);
        methods.map(|method| method["id"].as_str().unwrap()).collect()
    }

    /// The method of a request, and what is wrong with the request.
    pub(crate) fn check_request(&self, asked: &Asked<'_>) -> (Option<Method<'_>>, Vec<String>) {
        let document = &self.0[asked.service];
        let Some((method, parameters)) = methods(document)
            .into_iter()
            .filter(|method| method["httpMethod"] == asked.method)
            .find_map(|method| Some((method, path_parameters(method, asked.path)?)))
        else {
            let wrong = format!("there is no {} {}", asked.method, asked.path);
            return (None, defined(vec![wrong]));
        };
        let mut wrong = Vec::new();
        for (name, value) in parameters {
            let pattern = method["parameters"][&name]["pattern"].as_str().unwrap_or("^.+$");
            if !Regex::new(pattern).unwrap().is_match(&value) {
                wrong.push(format!("{name} does not match {pattern}"));
            }
        }
        for (name, value) in &asked.query {
            let own = &method["parameters"][name];
            let parameter = if own["location"] == "query" {
                own
            } else {
                &document["parameters"][name]
            };
            let is_integer = parameter["type"] == "integer";
            if parameter["location"] != "query" {
                wrong.push(format!("{name} is no parameter"));
            } else if is_integer && value.parse::<i64>().is_err() {
                wrong.push(format!("{name} is no integer"));
            }
        }
        match (&method["request"], &asked.body) {
            (Value::Null, None) => {}
            (Value::Null, Some(_)) => wrong.push("a body that the method does not have".to_owned()),
            (schema, body) => {
                let empty = Value::Object(Map::new());
                let body = body.as_ref().unwrap_or(&empty);
                check(document, schema, body, "the body", Direction::Request, &mut wrong);
            }
        }
        (Some(Method { document, method }), defined(wrong))
    }

    /// What is wrong with an answer.
    pub(crate) fn check_answer(&self, method: &Method<'_>, status: u16, body: &Value) -> Vec<String> {
        let mut wrong = Vec::new();
        if status < 400 {
            let schema = &method.method["response"];
            check(
                method.document,
                schema,
                body,
                "the answer",
                Direction::Answer,
                &mut wrong,
            );
        } else if method.id() != "sts.token" || status == 403 {
            // What denies a call before the service has the form of all APIs.
            wrong.extend(self.check_error(status, body));
        } else if !(body["error"].is_string() && body["error_description"].is_string()) {
            wrong.push("an error has error and error_description".to_owned());
        }
        wrong
    }

    /// What is wrong with an error of a Google API: a `google.rpc.Status`, and the name of its code.
    fn check_error(&self, status: u16, body: &Value) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut error = body["error"].clone();
        if error["code"] != status {
            wrong.push(format!("the code is {} and the status {status}", error["code"]));
        }
        match error.as_object_mut().and_then(|error| error.remove("status")) {
            Some(Value::String(name))
                if name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_') => {}
            other => wrong.push(format!("the status is {other:?}")),
        }
        let schema = serde_json::json!({"$ref": "Status"});
        check(
            &self.0["iam"],
            &schema,
            &error,
            "the error",
            Direction::Answer,
            &mut wrong,
        );
        wrong
    }
}

/// Without what is known to be defined nowhere.
fn defined(wrong: Vec<String>) -> Vec<String> {
    let known = |line: &String| UNDEFINED.iter().any(|known| line.ends_with(known));
    wrong.into_iter().filter(|line| !known(line)).collect()
}

fn methods(document: &Value) -> Vec<&Value> {
    let mut found: Vec<_> = document["methods"]
        .as_object()
        .into_iter()
        .flat_map(|methods| methods.values())
        .collect();
    for resource in document["resources"]
        .as_object()
        .into_iter()
        .flat_map(|all| all.values())
    {
        found.extend(methods(resource));
    }
    found
}

/// The path parameters, if the path fits the method's template and patterns.
fn path_parameters(method: &Value, path: &str) -> Option<Vec<(String, String)>> {
    let template = method["path"].as_str()?;
    let (mut pattern, mut names, mut rest) = ("^/".to_owned(), Vec::new(), template);
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}')?;
        pattern.push_str(&regex::escape(before));
        pattern.push_str(if name.starts_with('+') {
            "([^:]+|[^:]*@[^:]+)"
        } else {
            "([^/]+)"
        });
        names.push(name.trim_start_matches('+').to_owned());
        rest = after;
    }
    pattern.push_str(&regex::escape(rest));
    pattern.push('$');
    let captures = Regex::new(&pattern).ok()?.captures(path)?;
    let values: Vec<_> = names
        .into_iter()
        .zip(
            captures
                .iter()
                .skip(1)
                .map(|value| value.map_or("", |value| value.as_str()).to_owned()),
        )
        .collect();
    let fits = values.iter().all(|(name, value)| {
        let pattern = method["parameters"][name]["pattern"].as_str();
        pattern.is_none_or(|pattern| Regex::new(pattern).unwrap().is_match(value))
    });
    fits.then_some(values)
}

#[derive(Clone, Copy, PartialEq)]
enum Direction {
    Request,
    Answer,
}

fn check(
    document: &Value,
    schema: &Value,
    value: &Value,
    path: &str,
    direction: Direction,
    wrong: &mut Vec<String>,
) {
    if let Some(name) = schema["$ref"].as_str() {
        let referred = &document["schemas"][name];
        assert!(referred.is_object(), "there is no schema {name}");
        return check(document, referred, value, path, direction, wrong);
    }
    let is = match (schema["type"].as_str().unwrap_or("any"), value) {
        // As absent.
        (_, Value::Null) | ("any", _) => true,
        ("string", Value::String(text)) => {
            if let Some(values) = schema["enum"].as_array()
                && !values.iter().any(|value| value == text)
            {
                wrong.push(format!("{path} is none of its values"));
            }
            match schema["format"].as_str() {
                Some("google-datetime") => text.parse::<jiff::Timestamp>().is_ok(),
                Some("google-duration") => {
                    let number = text.strip_suffix('s');
                    number.is_some_and(|number| number.parse::<f64>().is_ok())
                }
                _ => true,
            }
        }
        ("boolean", Value::Bool(_)) => true,
        ("integer", Value::Number(number)) => number.is_i64() || number.is_u64(),
        ("number", Value::Number(_)) => true,
        ("array", Value::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                let path = format!("{path}[{index}]");
                check(document, &schema["items"], item, &path, direction, wrong);
            }
            true
        }
        ("object", Value::Object(fields)) => {
            for (name, value) in fields {
                let own = &schema["properties"][name];
                let path = format!("{path}.{name}");
                match (own, &schema["additionalProperties"]) {
                    (Value::Null, Value::Null) => wrong.push(format!("{path} is no field")),
                    (Value::Null, any) => check(document, any, value, &path, direction, wrong),
                    (own, _) if own["readOnly"] == true && direction == Direction::Request => {
                        wrong.push(format!("{path} is only in answers"));
                    }
                    (own, _) => check(document, own, value, &path, direction, wrong),
                }
            }
            true
        }
        _ => false,
    };
    if !is {
        wrong.push(format!(
            "{path} is no {}",
            schema["type"].as_str().unwrap_or_default()
        ));
    }
}

fn wrong_with(
    service: &str,
    method: &str,
    path: &str,
    query: &[(&str, &str)],
    body: Option<Value>,
) -> Vec<String> {
    let asked = Asked {
        service,
        method,
        path,
        query: query
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        body,
    };
    Discovery::load().check_request(&asked).1
}

#[test]
fn what_no_document_defines_is_found() {
    use serde_json::json;
    let create = "/v1/projects/p/serviceAccounts";
    let body = |extra: Value| {
        let mut body = json!({"accountId": "a", "serviceAccount": {"displayName": "A"}});
        for (name, value) in extra.as_object().unwrap() {
            body["serviceAccount"][name] = value.clone();
        }
        Some(body)
    };
    assert_eq!(wrong_with("iam", "POST", create, &[], body(json!({}))), [""; 0]);
    for (method, path, query, body, found) in [
        ("PUT", create, &[][..], body(json!({})), "there is no PUT"),
        (
            "POST",
            "/v1/project/p/serviceAccounts",
            &[][..],
            body(json!({})),
            "there is no POST",
        ),
        (
            "POST",
            create,
            &[("dryRun", "1")][..],
            body(json!({})),
            "dryRun is no parameter",
        ),
        (
            "POST",
            create,
            &[][..],
            body(json!({"nonsense": 1})),
            "nonsense is no field",
        ),
        (
            "POST",
            create,
            &[][..],
            body(json!({"displayName": 1})),
            "displayName is no string",
        ),
        (
            "POST",
            create,
            &[][..],
            body(json!({"email": "e"})),
            "email is only in answers",
        ),
        (
            "GET",
            create,
            &[("pageSize", "many")][..],
            None,
            "pageSize is no integer",
        ),
        (
            "DELETE",
            "/v1/projects/p/serviceAccounts/a@p",
            &[][..],
            Some(json!({})),
            "a body that",
        ),
    ] {
        let wrong = wrong_with("iam", method, path, query, body);
        assert!(
            wrong.len() == 1 && wrong[0].contains(found),
            "{method} {path}: {wrong:?}"
        );
    }
}

#[test]
fn each_definition_that_an_assertion_names_exists() {
    let discovery = Discovery::load();
    let ids = discovery.ids();
    let mut named = 0;
    for assertion in idtoken_conformance::all().unwrap() {
        if let idtoken_conformance::Source::Definition(id) = &assertion.source {
            assert!(ids.contains(&id.as_str()), "{}: there is no {id}", assertion.name);
            named += 1;
        }
    }
    assert!(named > 15, "{named}");
}
