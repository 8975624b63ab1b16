// A reference for the benchmark: what a good engineer would write in an afternoon with controller-runtime. It keeps ID tokens in
// Secrets as the operator does, by impersonation only, without grants, checks, retries by kind or care for what others wrote.
package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
)

const expires = "reference.idtoken.dev/expires"

type Spec struct {
	Audience       string `json:"audience"`
	ServiceAccount string `json:"serviceAccount"`
}

type Token struct {
	ExpirationTime metav1.Time `json:"expirationTime"`
	Audience       string      `json:"audience"`
}

type Status struct {
	ObservedGeneration int64              `json:"observedGeneration"`
	Conditions         []metav1.Condition `json:"conditions,omitempty"`
	Token              *Token             `json:"token,omitempty"`
}

type IdTokenRequest struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              Spec   `json:"spec"`
	Status            Status `json:"status,omitempty"`
}

func (r *IdTokenRequest) DeepCopyObject() runtime.Object {
	out := *r
	r.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	out.Status.Conditions = append([]metav1.Condition(nil), r.Status.Conditions...)
	return &out
}

type IdTokenRequestList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []IdTokenRequest `json:"items"`
}

func (l *IdTokenRequestList) DeepCopyObject() runtime.Object {
	out := *l
	out.Items = make([]IdTokenRequest, len(l.Items))
	for i := range l.Items {
		out.Items[i] = *l.Items[i].DeepCopyObject().(*IdTokenRequest)
	}
	return &out
}

// The IAM Service Account Credentials API.
const iamCredentials = "https://iamcredentials.googleapis.com"

type reconciler struct {
	client.Client
	http   *http.Client
	bearer string
}

func (r *reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var object IdTokenRequest
	if err := r.Get(ctx, req.NamespacedName, &object); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	held := metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}}
	err := r.Get(ctx, req.NamespacedName, &held)
	if client.IgnoreNotFound(err) != nil {
		return ctrl.Result{}, err
	}
	if end, bad := time.Parse(time.RFC3339, held.Annotations[expires]); err == nil && bad == nil {
		if due := time.Until(end) - 30*time.Minute; due > 0 && object.Status.ObservedGeneration == object.Generation {
			return ctrl.Result{RequeueAfter: due}, nil
		}
	}
	token, end, err := r.mint(ctx, object.Spec)
	if err != nil {
		return ctrl.Result{}, err
	}
	secret := corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: req.Name, Namespace: req.Namespace, ResourceVersion: held.ResourceVersion,
			Labels: map[string]string{"app.kubernetes.io/managed-by": "reference"}, Annotations: map[string]string{expires: end.Format(time.RFC3339)}},
		StringData: map[string]string{"token": token},
	}
	if err := ctrl.SetControllerReference(&object, &secret, r.Scheme()); err != nil {
		return ctrl.Result{}, err
	}
	if held.ResourceVersion == "" {
		err = r.Create(ctx, &secret)
	} else {
		err = r.Update(ctx, &secret)
	}
	if err != nil {
		if apierrors.IsAlreadyExists(err) || apierrors.IsConflict(err) {
			return ctrl.Result{RequeueAfter: time.Second}, nil
		}
		return ctrl.Result{}, err
	}
	before := object.DeepCopyObject().(*IdTokenRequest)
	object.Status = Status{ObservedGeneration: object.Generation, Token: &Token{metav1.NewTime(end), object.Spec.Audience},
		Conditions: []metav1.Condition{{Type: "Ready", Status: "True", Reason: "Issued", LastTransitionTime: metav1.Now(), ObservedGeneration: object.Generation}}}
	if err := r.Status().Patch(ctx, &object, client.MergeFrom(before)); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	return ctrl.Result{RequeueAfter: time.Until(end) - 30*time.Minute}, nil
}

func (r *reconciler) mint(ctx context.Context, spec Spec) (string, time.Time, error) {
	body, _ := json.Marshal(map[string]any{"audience": spec.Audience, "includeEmail": true})
	url := iamCredentials + "/v1/projects/-/serviceAccounts/" + spec.ServiceAccount + ":generateIdToken"
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return "", time.Time{}, err
	}
	request.Header.Set("Authorization", "Bearer "+r.bearer)
	request.Header.Set("Content-Type", "application/json")
	var answer struct{ Token string }
	if err := r.call(request, &answer); err != nil {
		return "", time.Time{}, err
	}
	parts := strings.Split(answer.Token, ".")
	if len(parts) != 3 {
		return "", time.Time{}, fmt.Errorf("no JWT")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", time.Time{}, err
	}
	var claims struct{ Exp int64 }
	err = json.Unmarshal(payload, &claims)
	return answer.Token, time.Unix(claims.Exp, 0), err
}

func (r *reconciler) call(request *http.Request, into any) error {
	response, err := r.http.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 400))
		return fmt.Errorf("%s: %s", response.Status, text)
	}
	return json.NewDecoder(response.Body).Decode(into)
}

func run() error {
	log.SetLogger(zap.New())
	group := schema.GroupVersion{Group: "idtoken.dev", Version: "v1alpha1"}
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		return err
	}
	scheme.AddKnownTypes(group, &IdTokenRequest{}, &IdTokenRequestList{})
	metav1.AddToGroupVersion(scheme, group)
	config, err := ctrl.GetConfig()
	if err != nil {
		return err
	}
	config.QPS = -1
	manager, err := ctrl.NewManager(config, ctrl.Options{Scheme: scheme, Metrics: server.Options{BindAddress: "0"}})
	if err != nil {
		return err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 50
	r := &reconciler{Client: manager.GetClient(), http: &http.Client{Transport: transport, Timeout: 20 * time.Second}}
	request, err := http.NewRequest(http.MethodGet, "http://"+os.Getenv("GCE_METADATA_HOST")+"/computeMetadata/v1/instance/service-accounts/default/token", nil)
	if err != nil {
		return err
	}
	request.Header.Set("Metadata-Flavor", "Google")
	var identity struct {
		AccessToken string `json:"access_token"`
	}
	if err := r.call(request, &identity); err != nil {
		return err
	}
	r.bearer = identity.AccessToken
	err = ctrl.NewControllerManagedBy(manager).
		For(&IdTokenRequest{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Owns(&corev1.Secret{}, builder.OnlyMetadata).
		WithOptions(controller.Options{MaxConcurrentReconciles: 50}).
		Complete(r)
	if err != nil {
		return err
	}
	return manager.Start(ctrl.SetupSignalHandler())
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
