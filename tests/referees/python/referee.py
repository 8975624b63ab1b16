"""Gets and verifies ID tokens with google-auth, Google's client library for Python.

referee.py fetch AUDIENCE                         the token of Application Default Credentials
referee.py impersonate AUDIENCE ACCOUNT [DELEGATE…]  the token of an account, by Application Default Credentials
referee.py verify AUDIENCE CERTS_URL              for each line of standard input, a token, {"claims": …} or {"error": …};
                                                  CERTS_URL may be "default"
"""

import json
import sys

import google.auth
from google.auth import impersonated_credentials
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import Request
from google.oauth2 import id_token

SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]


def fetch(audience):
    return id_token.fetch_id_token(Request(), audience)


def impersonate(audience, account, *delegates):
    source, _ = google.auth.default(scopes=SCOPES)
    delegates = [f"projects/-/serviceAccounts/{delegate}" for delegate in delegates]
    target = impersonated_credentials.Credentials(
        source, target_principal=account, target_scopes=SCOPES, delegates=delegates
    )
    credentials = impersonated_credentials.IDTokenCredentials(target, target_audience=audience, include_email=True)
    credentials.refresh(Request())
    return credentials.token


def judge(token, audience, certs_url):
    try:
        if certs_url == "default":
            claims = id_token.verify_oauth2_token(token, Request(), audience)
        else:
            claims = id_token.verify_token(token, Request(), audience, certs_url)
    except (ValueError, GoogleAuthError) as error:
        return {"error": str(error)}
    except Exception as error:  # PyJWT's errors, which google-auth lets through.
        if type(error).__module__ != "jwt.exceptions":
            raise
        return {"error": str(error)}
    return {"claims": claims}


def verify(audience, certs_url):
    tokens = sys.stdin.read().splitlines()
    return "\n".join(json.dumps(judge(token, audience, certs_url)) for token in tokens)


if __name__ == "__main__":
    actions = {"fetch": fetch, "impersonate": impersonate, "verify": verify}
    print(actions[sys.argv[1]](*sys.argv[2:]))
