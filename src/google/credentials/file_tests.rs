use serde_json::{Value, json};

use super::*;

fn parse(json: &Value, config: &GoogleConfig) -> Result<CredentialFile, CredentialFileError> {
    CredentialFile::parse(json.to_string().as_bytes(), config)
}

fn external(changes: &[(&str, Value)]) -> Value {
    let mut json = json!({
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": "https://sts.googleapis.com/v1/token",
        "credential_source": {"file": "/var/run/token"},
    });
    for (key, value) in changes {
        json[*key] = value.clone();
    }
    json
}

fn user(changes: &[(&str, Value)]) -> Value {
    let mut json = json!({"type": "authorized_user", "account": "dev@example.com", "client_id": "c",
        "client_secret": "s", "refresh_token": "r"});
    for (key, value) in changes {
        json[*key] = value.clone();
    }
    json
}

fn workforce(changes: &[(&str, Value)]) -> Value {
    let mut json = user(changes);
    json["type"] = json!("external_account_authorized_user");
    json["audience"] = json!("//iam.googleapis.com/locations/global/workforcePools/p/providers/q");
    if json["token_url"].is_null() {
        json["token_url"] = json!("https://sts.googleapis.com/v1/oauthtoken");
    }
    json
}

fn aws(changes: &[(&str, Value)]) -> Value {
    let mut source = json!({
        "environment_id": "aws1",
        "region_url": "http://169.254.169.254/latest/meta-data/placement/availability-zone",
        "url": "http://169.254.169.254/latest/meta-data/iam/security-credentials",
        "regional_cred_verification_url":
            "https://sts.{region}.amazonaws.com?Action=GetCallerIdentity&Version=2011-06-15",
        "imdsv2_session_token_url": "http://[fd00:ec2::254]/latest/api/token",
    });
    for (key, value) in changes {
        source[*key] = value.clone();
    }
    external(&[("credential_source", source)])
}

#[test]
fn aws_is_asked_at_the_addresses_of_its_metadata_server_only() {
    let allowing = |host: &str| GoogleConfig {
        allowed_credential_hosts: vec![host.to_owned()],
        ..GoogleConfig::default()
    };
    let config = GoogleConfig::default();
    assert!(parse(&aws(&[]), &config).is_ok());
    for field in ["region_url", "url", "imdsv2_session_token_url"] {
        for url in [
            "http://169.254.169.253/latest",
            "http://10.0.0.1/latest",
            "https://169.254.169.254/latest",
            "http://169.254.169.254.evil.example/latest",
            "http://169.254.169.254@evil.example/latest",
            "https://evil.googleapis.com/latest",
            "http://[fd00:ec2::253]/latest",
        ] {
            let error = parse(&aws(&[(field, json!(url))]), &config).err();
            assert!(
                matches!(error, Some(CredentialFileError::NotEc2 { field: named, .. }) if named.ends_with(field)),
                "{field} {url} {error:?}"
            );
        }
        let proxy = aws(&[(field, json!("https://imds.corp.example/latest"))]);
        assert!(parse(&proxy, &config).is_err() && parse(&proxy, &allowing("imds.corp.example")).is_ok());
        let plain = aws(&[(field, json!("http://imds.corp.example/latest"))]);
        assert!(parse(&plain, &allowing("imds.corp.example")).is_err());
        assert!(parse(&aws(&[(field, json!("http://127.0.0.1:1/latest"))]), &config).is_ok());
    }
}

#[test]
fn the_principal_is_known() {
    let config = GoogleConfig::default();
    let of = |json: &Value| {
        parse(json, &config)
            .ok()
            .and_then(|file| file.principal)
            .map(|p| p.to_string())
    };
    let url = "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/x@p.iam.gserviceaccount.com:generateAccessToken";
    let chained = |url: &str| {
        json!({"type": "impersonated_service_account", "service_account_impersonation_url": url,
            "source_credentials": user(&[])})
    };
    assert_eq!(of(&user(&[])).as_deref(), Some("dev@example.com"));
    assert_eq!(of(&user(&[("account", json!(""))])), None);
    assert_eq!(
        of(&workforce(&[])).as_deref(),
        Some("an identity of locations/global/workforcePools/p")
    );
    assert_eq!(of(&chained(url)).as_deref(), Some("x@p.iam.gserviceaccount.com"));
    assert_eq!(of(&chained("https://iamcredentials.googleapis.com/v1/x")), None);
    let external_url = external(&[("service_account_impersonation_url", json!(url))]);
    assert_eq!(of(&external_url).as_deref(), Some("x@p.iam.gserviceaccount.com"));
    assert!(of(&external(&[])).is_some_and(|name| name.contains("workloadIdentityPools/p")));
}

#[test]
fn secrets_go_to_google_only() {
    let config = GoogleConfig::default();
    for (field, url) in [
        ("token_url", "https://sts.evil.example/v1/token"),
        ("token_url", "https://googleapis.com.evil.example/"),
        ("token_url", "https://evilgoogleapis.com/"),
        ("token_url", "https://sts.googleapis.com@evil.example/"),
        ("token_url", "https://10.0.0.1/"),
        (
            "service_account_impersonation_url",
            "https://evil.example/v1/projects/-/serviceAccounts/x:generateAccessToken",
        ),
    ] {
        let result = parse(&external(&[(field, json!(url))]), &config);
        assert!(
            matches!(result.err(), Some(CredentialFileError::ForeignHost { .. })),
            "{url}"
        );
    }
    let plain = external(&[("token_url", json!("http://sts.googleapis.com/"))]);
    assert!(matches!(
        parse(&plain, &config).err(),
        Some(CredentialFileError::NotHttps { .. })
    ));
    for url in ["not a url", "https://", "file:///etc/passwd"] {
        let result = parse(&external(&[("token_url", json!(url))]), &config);
        assert!(result.is_err(), "{url}");
    }
    let nested = json!({"type": "impersonated_service_account",
        "service_account_impersonation_url": "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/x:generateAccessToken",
        "source_credentials": user(&[("token_uri", json!("https://evil.example/"))])});
    assert!(matches!(
        parse(&nested, &config).err(),
        Some(CredentialFileError::ForeignHost { .. })
    ));
    assert!(
        parse(
            &external(&[("token_url", json!("http://127.0.0.1:1/v1/token"))]),
            &config
        )
        .is_ok()
    );
}

#[test]
fn allowed_hosts() {
    let source = |url: &str| external(&[("credential_source", json!({"url": url}))]);
    let allowing = |hosts: &[&str]| GoogleConfig {
        allowed_credential_hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        ..GoogleConfig::default()
    };
    assert!(
        parse(
            &source("https://tokens.corp.example/t"),
            &allowing(&["tokens.corp.example"])
        )
        .is_ok()
    );
    assert!(
        parse(
            &source("https://tokens.corp.example/t"),
            &allowing(&[".corp.example"])
        )
        .is_ok()
    );
    assert!(parse(&source("https://corp.example/t"), &allowing(&[".corp.example"])).is_err());
    assert!(
        parse(
            &source("https://evilcorp.example/t"),
            &allowing(&[".corp.example"])
        )
        .is_err()
    );
    assert!(
        parse(
            &source("http://tokens.corp.example/t"),
            &allowing(&["tokens.corp.example"])
        )
        .is_err()
    );
    let azure = source("http://169.254.169.254/metadata/identity/oauth2/token");
    assert!(parse(&azure, &allowing(&[])).is_err());
    assert!(parse(&azure, &allowing(&["169.254.169.254"])).is_ok());
}

#[test]
fn errors_say_what_is_not_supported() {
    let config = GoogleConfig::default();
    let source = |source: Value| external(&[("credential_source", source)]);
    let twice = json!({"type": "impersonated_service_account",
        "service_account_impersonation_url": "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/x:generateAccessToken",
        "source_credentials": external(&[("service_account_impersonation_url",
            json!("https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/y:generateAccessToken"))])});
    let key = json!({"type": "service_account", "client_email": "a@b", "private_key": "SECRET"});
    for (json, part) in [
        (
            source(json!({"environment_id": "aws1"})),
            "regional_cred_verification_url",
        ),
        (aws(&[("environment_id", json!("aws2"))]), "environment_id"),
        (
            aws(&[("regional_cred_verification_url", json!("https://evil.example"))]),
            "GetCallerIdentity",
        ),
        (json!({"type": "gdch_service_account"}), "gdch_service_account"),
        (json!({"type": "unheard_of"}), "external_account_authorized_user"),
        (workforce(&[("token_url", json!(""))]), "token_url"),
        (workforce(&[("client_secret", Value::Null)]), "client_secret"),
        (source(json!({"certificate": {}})), "certificate_config_location"),
        (
            source(
                json!({"certificate": {"use_default_certificate_config": true, "certificate_config_location": "/c"}}),
            ),
            "both",
        ),
        (
            source(json!({"certificate": {"certificate_config_location": "/c"}, "file": "/t"})),
            "another subject token",
        ),
        (source(json!({})), "credential_source"),
        (
            source(json!({"file": "/t", "format": {"type": "json"}})),
            "subject_token_field_name",
        ),
        (source(json!({"file": "/t", "format": {"type": "xml"}})), "format"),
        (external(&[("client_secret", json!("SECRET"))]), "client_secret"),
        (twice, "impersonate"),
        (key, "PEM of an RSA key"),
        (user(&[("refresh_token", json!(""))]), "refresh_token"),
    ] {
        let error = parse(&json, &config).err().expect("refused").to_string();
        assert!(
            error.contains(part) && !error.contains("SECRET"),
            "{json} gave {error}"
        );
    }
}

#[test]
fn executables_are_refused_and_the_alternatives_named() {
    for source in [
        json!({"executable": {"command": "/bin/x"}}),
        json!({"executable": {"command": "/bin/x"}, "file": "/var/run/token"}),
    ] {
        let file = external(&[("credential_source", source)]);
        let error = parse(&file, &GoogleConfig::default()).err().expect("refused");
        assert_eq!(error, CredentialFileError::Executable);
        for part in [
            "credential_source.file",
            "credential_source.url",
            "projected ServiceAccount token",
        ] {
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}

#[test]
fn universes_must_agree() {
    let config = GoogleConfig::default();
    let elsewhere = external(&[("universe_domain", json!("evil.example"))]);
    assert!(matches!(
        parse(&elsewhere, &config).err(),
        Some(CredentialFileError::OtherUniverse { .. })
    ));
    let config = GoogleConfig {
        universe_domain: "cloud.example".to_owned(),
        ..config
    };
    let json = external(&[
        ("universe_domain", json!("cloud.example")),
        ("token_url", json!("https://sts.cloud.example/v1/token")),
    ]);
    assert!(parse(&json, &config).is_ok());
}

#[test]
fn errors_contain_no_secret() {
    let config = GoogleConfig::default();
    let broken = br#"{"type": "service_account", "private_key": "SECRET" "#;
    let error = CredentialFile::parse(broken, &config).err().expect("broken");
    assert!(!format!("{error} {error:?}").contains("SECRET"));
    for bad in [
        &b"[]"[..],
        b"{}",
        b"null",
        b"{\"type\": 1}",
        b"{\"type\":\"gdch_service_account\"}",
    ] {
        assert!(CredentialFile::parse(bad, &config).is_err());
    }
}
