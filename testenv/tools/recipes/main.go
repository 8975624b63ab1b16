// Reads a configuration of another program by that program's own code, and exits with 1 where it refuses: `recipes KIND FILE`. The code
// of Alertmanager and vmagent then goes on calling.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/VictoriaMetrics/VictoriaMetrics/app/vmagent/remotewrite"
	"github.com/VictoriaMetrics/VictoriaMetrics/lib/envflag"
	"github.com/VictoriaMetrics/VictoriaMetrics/lib/prompb"
	"github.com/argoproj/notifications-engine/pkg/api"
	"github.com/argoproj/notifications-engine/pkg/services"
	"github.com/prometheus/alertmanager/config"
	"github.com/prometheus/alertmanager/notify"
	"github.com/prometheus/alertmanager/notify/webhook"
	"github.com/prometheus/alertmanager/template"
	"github.com/prometheus/alertmanager/types"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/credential_injector/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/http/injected_credentials/generic/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// Between two calls of a program that goes on running.
const pause = time.Second

var kinds = map[string]func([]byte) error{
	"alertmanager": alertmanager,
	"argocd":       argocd,
	"envoy-filter": func(text []byte) error { return envoy(text, &hcm.HttpFilter{}) },
	"envoy-secret": func(text []byte) error { return envoy(text, &discovery.DiscoveryResponse{}) },
	"vmagent":      vmagent,
}

func main() {
	check := kinds[os.Args[1]]
	text, err := os.ReadFile(os.Args[2])
	if err == nil {
		err = check(text)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// A whole configuration; unknown fields are errors. Then sends an alert to the first webhook, again and again.
func alertmanager(text []byte) error {
	parsed, err := config.Load(string(text))
	if err != nil {
		return err
	}
	templates, err := template.FromGlobs(nil)
	if err != nil {
		return err
	}
	templates.ExternalURL = &url.URL{Scheme: "http", Host: "alertmanager"}
	logger := slog.Default()
	notifier, err := webhook.New(parsed.Receivers[0].WebhookConfigs[0], templates, logger)
	if err != nil {
		return err
	}
	now := notify.WithGroupKey(context.Background(), "group")
	for range time.Tick(pause) {
		if _, err := notifier.Notify(now, &types.Alert{}); err != nil {
			logger.Warn("the alert was refused", "error", err)
		}
	}
	return nil
}

// The data of the ConfigMap, as argocd-notifications-cm has it. Sends one notification to a server here in place of each service's
// URL, which must bring the Secret's value.
func argocd(text []byte) error {
	var configMap corev1.ConfigMap
	if err := yaml.UnmarshalStrict(text, &configMap); err != nil {
		return err
	}
	var seen []string
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, request *http.Request) {
		seen = append(seen, request.Header.Get("Authorization"))
	}))
	defer server.Close()
	for key, value := range configMap.Data {
		configMap.Data[key] = strings.ReplaceAll(value, "https://billing-x.run.app", server.URL)
	}
	secret := &corev1.Secret{Data: map[string][]byte{"billing-token": []byte("a-token")}}
	parsed, err := api.ParseConfig(&configMap, secret)
	if err != nil {
		return err
	}
	if len(parsed.Services) == 0 {
		return fmt.Errorf("it has no service")
	}
	for name, factory := range parsed.Services {
		service, err := factory()
		if err != nil {
			return err
		}
		notification := services.Notification{Webhook: services.WebhookNotifications{name: {Method: "POST", Body: "{}"}}}
		if err := service.Send(notification, services.Destination{Service: name}); err != nil {
			return err
		}
		if got := strings.Join(seen, ","); got != "Bearer a-token" {
			return fmt.Errorf("%s was called with the Authorization %q", name, got)
		}
	}
	return nil
}

// A message of Envoy's API. Unknown fields and types are errors, and so is what Envoy's own rules refuse.
func envoy(text []byte, message proto.Message) error {
	document, err := yaml.YAMLToJSON(text)
	if err != nil {
		return err
	}
	if err := protojson.Unmarshal(document, message); err != nil {
		return err
	}
	return valid(message.ProtoReflect())
}

// Checks a message, and those inside of it that are packed with their type, which a message does not check itself.
func valid(message protoreflect.Message) error {
	if packed, ok := message.Interface().(*anypb.Any); ok {
		inner, err := packed.UnmarshalNew()
		if err != nil {
			return err
		}
		return valid(inner.ProtoReflect())
	}
	if checked, ok := message.Interface().(interface{ ValidateAll() error }); ok {
		if err := checked.ValidateAll(); err != nil {
			return err
		}
	}
	var wrong error
	message.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		if field.Message() == nil || field.IsMap() {
			return true
		}
		if field.IsList() {
			for i := 0; i < value.List().Len() && wrong == nil; i++ {
				wrong = valid(value.List().Get(i).Message())
			}
		} else {
			wrong = valid(value.Message())
		}
		return wrong == nil
	})
	return wrong
}

// A JSON list of arguments, as a container has them; unknown flags are errors. Then writes a sample, again and again.
func vmagent(text []byte) error {
	var args []string
	if err := json.Unmarshal(text, &args); err != nil {
		return err
	}
	os.Args = append([]string{"vmagent"}, args...)
	envflag.Parse()
	remotewrite.Init()
	for range time.Tick(pause) {
		remotewrite.TryPush(nil, &prompb.WriteRequest{Timeseries: []prompb.TimeSeries{{
			Labels:  []prompb.Label{{Name: "__name__", Value: "sold"}},
			Samples: []prompb.Sample{{Value: 1, Timestamp: time.Now().UnixMilli()}},
		}}})
	}
	return nil
}
