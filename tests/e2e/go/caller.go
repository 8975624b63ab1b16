package main

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

// line is what the caller says: of each token when it first sees it, of each call that fails, and now and then how many went well.
type line struct {
	Event string    `json:"event"`
	Time  time.Time `json:"time"`
	// Calls is how many calls went well so far.
	Calls int `json:"calls"`
	// Issued is the token's time of issue.
	Issued int64 `json:"issued,omitempty"`
	// Expires is when it ends.
	Expires int64 `json:"expires,omitempty"`
	// Error is why a call failed.
	Error string `json:"error,omitempty"`
}

// caller reads the file before each call, as a program must that wants to follow renewals.
func caller(arguments []string) error {
	flags := flag.NewFlagSet("caller", flag.ExitOnError)
	file := flags.String("file", "/var/run/idtoken/token", "file with the token")
	variable := flags.String("env", "", "environment variable with the token, in place of the file")
	url := flags.String("url", "", "what to call; empty: only look at the token")
	interval := flags.Duration("interval", 500*time.Millisecond, "time between calls")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	// A connection of its own for each call: an open one would hide a Service that is gone.
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	out := json.NewEncoder(os.Stdout)
	said, calls, reported := int64(0), 0, time.Now()
	for ; ; time.Sleep(*interval) {
		token, err := read(*file, *variable)
		if err != nil {
			return err
		}
		issued, expires, err := times(token)
		if err != nil {
			return err
		}
		if issued != said {
			said = issued
			_ = out.Encode(line{Event: "token", Time: time.Now(), Calls: calls, Issued: issued, Expires: expires})
		}
		if *url == "" {
			continue
		}
		if err := call(client, *url, token); err != nil {
			_ = out.Encode(line{Event: "failed", Time: time.Now(), Calls: calls, Issued: issued, Expires: expires, Error: err.Error()})
			continue
		}
		calls++
		if calls == 1 || time.Since(reported) >= 5*time.Second {
			reported = time.Now()
			_ = out.Encode(line{Event: "calls", Time: reported, Calls: calls})
		}
	}
}

func read(file, variable string) (string, error) {
	if variable != "" {
		return os.Getenv(variable), nil
	}
	content, err := os.ReadFile(file)
	return string(content), err
}

func call(client *http.Client, url, token string) error {
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+token)
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(response.Body, 500))
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", response.Status, strings.TrimSpace(string(body)))
	}
	return nil
}

// times gives when a token was issued and when it ends.
func times(token string) (int64, int64, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return 0, 0, errors.New("what was read is no token")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return 0, 0, err
	}
	var claims struct {
		Issued  int64 `json:"iat"`
		Expires int64 `json:"exp"`
	}
	err = json.Unmarshal(payload, &claims)
	return claims.Issued, claims.Expires, err
}
