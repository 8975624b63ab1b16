package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net/http"
	"strings"
	"sync"

	"google.golang.org/api/idtoken"
)

// account is what the target has seen of one service account.
type account struct {
	Accepted int `json:"accepted"`
	// Tokens is how many different tokens were accepted.
	Tokens int `json:"tokens"`
	seen   map[[sha256.Size]byte]bool
}

// service is the target: who may call it, and who has.
type service struct {
	audience string
	allowed  map[string]bool
	mutex    sync.Mutex
	accounts map[string]*account
	refused  map[string]int
}

// target serves everything but / to those who show an ID token for its audience of an account that may call it. At
// /-/seen it says, to anybody, what it has seen; never a token.
func target(arguments []string) error {
	flags := flag.NewFlagSet("target", flag.ExitOnError)
	listen := flags.String("listen", ":8080", "address to listen on")
	audience := flags.String("audience", "", "the audience that tokens must have")
	emails := flags.String("emails", "", "accounts that may call, separated by commas")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	s := &service{
		audience: *audience,
		allowed:  map[string]bool{},
		accounts: map[string]*account{},
		refused:  map[string]int{},
	}
	for _, email := range strings.Split(*emails, ",") {
		s.allowed[email] = true
	}
	http.HandleFunc("GET /-/seen", s.report)
	http.HandleFunc("GET /-/ready", func(http.ResponseWriter, *http.Request) {})
	http.HandleFunc("/", s.serve)
	return http.ListenAndServe(*listen, nil)
}

func (s *service) serve(w http.ResponseWriter, r *http.Request) {
	email, token, err := s.authenticate(r)
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if err != nil {
		s.refused[email]++
		log.Printf("refused %s from %s: %v", r.URL.Path, r.RemoteAddr, err)
		http.Error(w, err.Error(), http.StatusUnauthorized)
		return
	}
	seen := s.accounts[email]
	if seen == nil {
		seen = &account{seen: map[[sha256.Size]byte]bool{}}
		s.accounts[email] = seen
	}
	seen.Accepted++
	seen.seen[sha256.Sum256([]byte(token))] = true
	seen.Tokens = len(seen.seen)
	// Metrics, so that Prometheus may be the caller.
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	fmt.Fprintf(w, "# TYPE e2e_accepted_total counter\ne2e_accepted_total %d\n", seen.Accepted)
}

// authenticate gives the caller's account and token. Where it fails after the signature was found good, the account is given too.
func (s *service) authenticate(r *http.Request) (string, string, error) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return "", "", errors.New("no bearer token")
	}
	// A caller that does not wait cancels no fetch of Google's keys: its token is none the worse for it.
	payload, err := idtoken.Validate(context.WithoutCancel(r.Context()), token, s.audience)
	if err != nil {
		return "", "", err
	}
	email, _ := payload.Claims["email"].(string)
	if verified, _ := payload.Claims["email_verified"].(bool); !verified {
		return email, "", errors.New("the e-mail is not verified")
	}
	if !s.allowed[email] {
		return email, "", fmt.Errorf("%s may not call", email)
	}
	return email, token, nil
}

func (s *service) report(w http.ResponseWriter, _ *http.Request) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"accounts": s.accounts, "refused": s.refused})
}
