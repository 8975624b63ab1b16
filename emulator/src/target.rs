//! Services behind Google's front ends, as a policy names them.

use serde::{Deserialize, Serialize};

/// A service behind one of Google's front ends, at `/targets/NAME`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Target {
    /// Its name in the path.
    pub name: String,
    /// Who answers before the application does.
    pub front_end: FrontEnd,
    /// The audience that tokens must have.
    pub audience: String,
    /// The e-mail addresses of accounts with the role. A gateway and a Google API ask for none.
    #[serde(default)]
    pub members: Vec<String>,
    /// Whether it takes internal traffic only: nobody who calls the emulator reaches it.
    #[serde(default)]
    pub internal: bool,
    /// What the front end answers besides, whatever the token is worth. Default: nothing.
    #[serde(default)]
    pub trouble: Option<Trouble>,
    /// The status and body of the application, which answers once the front end lets a call in. Default 200, `hello`.
    #[serde(default)]
    pub application: Application,
}

/// What an application answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Application {
    /// The status.
    pub status: u16,
    /// The body. `{token}` stands for the token that was sent, as a careless application echoes it.
    pub body: String,
}

impl Default for Application {
    fn default() -> Self {
        Self {
            status: 200,
            body: "hello".into(),
        }
    }
}

/// What a front end refuses a call for, although its token may be good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Trouble {
    /// Cloud Run and functions: a perimeter of VPC Service Controls forbids the call.
    Perimeter,
    /// Cloud Run and functions: there is no instance for the call.
    NoInstance,
    /// A gateway: it is configured with another issuer.
    OtherIssuer,
    /// A gateway: the API wants an API key.
    NoApiKey,
    /// A gateway: the API has no such path.
    UnknownPath,
}

/// Who answers before an application does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FrontEnd {
    /// Cloud Run, and functions of the 2nd generation at their `run.app` URL.
    CloudRun,
    /// Functions of both generations at their `cloudfunctions.net` URL.
    CloudFunctions,
    /// Identity-Aware Proxy with an OAuth client of one's own.
    Iap,
    /// Identity-Aware Proxy with Google's own client; the audience is a client on the allow-list.
    IapOfGoogle,
    /// API Gateway and Cloud Endpoints.
    Gateway,
    /// An API of Google, which takes access tokens.
    GoogleApi,
    /// A load balancer whose backend does not answer.
    LoadBalancer,
    /// None: the application answers everyone.
    None,
}
