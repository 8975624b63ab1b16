// The programs of the end-to-end tests' pods.
//
//	e2e pause                 holds a pod's namespaces
//	e2e target [flags]        a service that wants an ID token, as Cloud Run does; judged by Google's own library
//	e2e caller [flags]        calls such a service again and again with the token of a file
package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	programs := map[string]func([]string) error{"pause": pause, "target": target, "caller": caller}
	if len(os.Args) < 2 || programs[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: e2e pause|target|caller [flags]")
		os.Exit(2)
	}
	if err := programs[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func pause([]string) error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	<-stop
	return nil
}
