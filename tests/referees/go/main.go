// Gets and verifies ID tokens with Google's client libraries for Go.
//
//	referee fetch AUDIENCE                            the token of Application Default Credentials
//	referee impersonate AUDIENCE ACCOUNT [DELEGATE…]  the token of an account, by Application Default Credentials
//	referee verify AUDIENCE CERTS_URL                 for each line of standard input, a token, {"claims": …} or {"error": …};
//	                                                  CERTS_URL may be "default"
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"cloud.google.com/go/auth/credentials"
	authidtoken "cloud.google.com/go/auth/credentials/idtoken"
	"cloud.google.com/go/auth/credentials/impersonate"
	"google.golang.org/api/idtoken"
)

const scope = "https://www.googleapis.com/auth/cloud-platform"

func fetch(ctx context.Context, audience string) (string, error) {
	source, err := idtoken.NewTokenSource(ctx, audience)
	if err != nil {
		return "", err
	}
	token, err := source.Token()
	if err != nil {
		return "", err
	}
	return token.AccessToken, nil
}

func impersonated(ctx context.Context, audience, account string, delegates []string) (string, error) {
	base, err := credentials.DetectDefault(&credentials.DetectOptions{Scopes: []string{scope}})
	if err != nil {
		return "", err
	}
	target, err := impersonate.NewIDTokenCredentials(&impersonate.IDTokenOptions{
		Audience:        audience,
		TargetPrincipal: account,
		Delegates:       delegates,
		IncludeEmail:    true,
		Credentials:     base,
	})
	if err != nil {
		return "", err
	}
	token, err := target.Token(ctx)
	if err != nil {
		return "", err
	}
	return token.Value, nil
}

// judge asks the client of the API library where the keys are Google's, and that of the auth library otherwise.
func judge(ctx context.Context, token, audience, certsURL string) (map[string]any, error) {
	if certsURL == "default" {
		payload, err := idtoken.Validate(ctx, token, audience)
		if err != nil {
			return nil, err
		}
		return payload.Claims, nil
	}
	validator, err := authidtoken.NewValidator(&authidtoken.ValidatorOptions{RS256CertsURL: certsURL})
	if err != nil {
		return nil, err
	}
	payload, err := validator.Validate(ctx, token, audience)
	if err != nil {
		return nil, err
	}
	return payload.Claims, nil
}

func verify(ctx context.Context, audience, certsURL string) (string, error) {
	tokens, err := io.ReadAll(os.Stdin)
	if err != nil {
		return "", err
	}
	var answers []string
	for token := range strings.Lines(string(tokens)) {
		answer := map[string]any{}
		if claims, err := judge(ctx, strings.TrimSpace(token), audience, certsURL); err != nil {
			answer["error"] = err.Error()
		} else {
			answer["claims"] = claims
		}
		text, err := json.Marshal(answer)
		if err != nil {
			return "", err
		}
		answers = append(answers, string(text))
	}
	return strings.Join(answers, "\n"), nil
}

func run(ctx context.Context, args []string) (string, error) {
	switch {
	case len(args) == 2 && args[0] == "fetch":
		return fetch(ctx, args[1])
	case len(args) >= 3 && args[0] == "impersonate":
		return impersonated(ctx, args[1], args[2], args[3:])
	case len(args) == 3 && args[0] == "verify":
		return verify(ctx, args[1], args[2])
	}
	return "", fmt.Errorf("unknown arguments")
}

func main() {
	answer, err := run(context.Background(), os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(answer)
}
