// Calls a service every second.
package main

import (
	"log"
	"net/http"
	"os"
	"time"
)

// bearer adds the token that the file holds at each call.
type bearer string

func (file bearer) RoundTrip(request *http.Request) (*http.Response, error) {
	token, err := os.ReadFile(string(file))
	if err != nil {
		return nil, err
	}
	request = request.Clone(request.Context())
	request.Header.Set("Authorization", "Bearer "+string(token))
	return http.DefaultTransport.RoundTrip(request)
}

func main() {
	client := http.Client{Transport: bearer("/var/run/idtoken/token"), Timeout: 10 * time.Second}
	for ; ; time.Sleep(time.Second) {
		response, err := client.Get("https://billing-x.run.app/prices")
		if err != nil {
			log.Print(err)
			continue
		}
		log.Print(response.Status)
		response.Body.Close()
	}
}
