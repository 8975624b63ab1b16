// Google's discovery documents, which this module carries as JSON. Update: `go get google.golang.org/api@vX` (not `go mod tidy`, which would drop
// what no Go file imports), here and in tests/referees/go.
module idtoken.dev/testenv/tools/discovery

go 1.26.0

require google.golang.org/api v0.311.0
