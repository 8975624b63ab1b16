use super::*;

const ACCOUNT: &str = "caller@p.iam.gserviceaccount.com";
const AUDIENCE: &str = "https://billing-x.run.app";

fn grants(yaml: &str) -> Vec<Grant> {
    idtoken_operator::grants::file::parse_file(yaml).unwrap()
}

fn token() -> TokenSpec {
    TokenSpec {
        audience: AUDIENCE.into(),
        service_account: Some(ACCOUNT.into()),
        ..any_token()
    }
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    Some(
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
    )
}

fn fields(verdict: &Verdict) -> Vec<(String, Vec<String>)> {
    let Verdict::Denied(misses) = verdict else {
        panic!("{verdict:?}")
    };
    let fields = |miss: &NearMiss| {
        miss.mismatches
            .iter()
            .map(|mismatch| mismatch.field.clone())
            .collect()
    };
    misses
        .iter()
        .map(|miss| (miss.grant.clone(), fields(miss)))
        .collect()
}

#[test]
fn names_the_allowing_grant() {
    let grants = grants(&format!(
        "- {{name: other, from: [{{namespace: shop}}], to: [{{serviceAccounts: ['1'], audiences: [a]}}]}}\n\
         - {{name: right, from: [{{namespaceSelector: {{matchLabels: {{team: a}}}}}}], to: [{{serviceAccounts: [{ACCOUNT}], audiences: ['{AUDIENCE}']}}]}}"
    ));
    let verdict = decide(&grants, "shop", &labels(&[("team", "a")]), &token());
    assert_eq!(
        verdict,
        Verdict::Allowed(GrantRef {
            name: "file:right".into(),
            uid: None
        })
    );
    assert_eq!(
        decide(&grants, "shop", &None, &token()),
        Verdict::Unknown(vec!["file:right".into()])
    );
    assert_eq!(
        fields(&decide(&grants, "shop", &labels(&[("team", "b")]), &token())),
        [
            ("file:right".into(), vec!["from".into()]),
            (
                "file:other".into(),
                vec!["to[0].serviceAccounts".into(), "to[0].audiences".into()]
            ),
        ]
    );
}

#[test]
fn each_field_is_compared_alone() {
    let chain = TokenSpec {
        source: TokenSource::Impersonation {
            delegates: vec!["1".into(), "2".into()],
        },
        ..token()
    };
    for (entry, field, requested) in [
        (
            format!(
                "serviceAccounts: ['*@q.iam.gserviceaccount.com'], audiences: ['{AUDIENCE}'], delegates: ['1', '2']"
            ),
            "serviceAccounts",
            ACCOUNT,
        ),
        (
            format!("serviceAccounts: [{ACCOUNT}], audiences: ['{AUDIENCE}/*'], delegates: ['1', '2']"),
            "audiences",
            AUDIENCE,
        ),
        (
            format!("serviceAccounts: [{ACCOUNT}], audiences: ['{AUDIENCE}'], delegates: ['1']"),
            "delegates",
            "2",
        ),
        (
            format!(
                "serviceAccounts: [{ACCOUNT}], audiences: ['{AUDIENCE}'], delegates: ['1', '2'], sources: [Developer]"
            ),
            "sources",
            "Impersonation",
        ),
    ] {
        let grants = grants(&format!(
            "- {{name: g, from: [{{namespace: shop}}], to: [{{{entry}}}]}}"
        ));
        let Verdict::Denied(misses) = decide(&grants, "shop", &None, &chain) else {
            panic!("{entry}")
        };
        let [miss] = misses.as_slice() else {
            panic!("{misses:?}")
        };
        let [mismatch] = miss.mismatches.as_slice() else {
            panic!("{miss:?}")
        };
        assert_eq!(
            (mismatch.field.as_str(), mismatch.requested.as_str()),
            (format!("to[0].{field}").as_str(), requested)
        );
    }
}

#[test]
fn an_entry_that_matches_in_nothing_shares_nothing() {
    let grants = grants(&format!(
        "- {{name: a, from: [{{namespace: x}}], to: [{{serviceAccounts: ['1'], audiences: [a]}}]}}\n\
         - {{name: b, from: [{{namespace: x}}], to: [{{serviceAccounts: ['1'], audiences: ['{AUDIENCE}']}}]}}"
    ));
    let Verdict::Denied(misses) = decide(&grants, "shop", &None, &token()) else {
        panic!()
    };
    let shares: Vec<_> = misses
        .iter()
        .map(|miss| (miss.grant.as_str(), miss.shares_something()))
        .collect();
    assert_eq!(shares, [("file:b", true), ("file:a", false)]);
}

#[test]
fn nothing_is_granted_without_grants() {
    assert_eq!(decide(&[], "shop", &None, &token()), Verdict::Denied(Vec::new()));
}

#[test]
fn json_names_what_was_asked_and_what_the_grant_has() {
    let mismatch = Mismatch {
        field: "from".into(),
        requested: "shop".into(),
        has: vec!["other".into()],
    };
    let json = serde_json::json!({"field": "from", "asked": "shop", "has": ["other"]});
    assert_eq!(serde_json::to_value(mismatch).unwrap(), json);
}
