{{/* The API group. This is its only place in the templates; the code has it in src/api/mod.rs. */}}
{{- define "idtoken-operator.group" -}}
idtoken.dev
{{- end }}

{{- define "idtoken-operator.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* At most 40 characters, so that suffixes fit. */}}
{{- define "idtoken-operator.fullname" -}}
{{- $name := include "idtoken-operator.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "idtoken-operator.labels" -}}
app.kubernetes.io/name: {{ include "idtoken-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The labels of the operator's pods, and of nothing else. They can never change: a Deployment's selector is immutable. */}}
{{- define "idtoken-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "idtoken-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: controller
{{- end }}

{{/* Labels of the pod of helm test, and of nothing else. */}}
{{- define "idtoken-operator.testSelectorLabels" -}}
app.kubernetes.io/name: {{ include "idtoken-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: test
{{- end }}

{{- define "idtoken-operator.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- define "idtoken-operator.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (include "idtoken-operator.fullname" .) }}
{{- end }}

{{/* The user that the API server takes the operator for. */}}
{{- define "idtoken-operator.username" -}}
{{- printf "system:serviceaccount:%s:%s" .Release.Namespace (include "idtoken-operator.serviceAccountName" .) }}
{{- end }}

{{/*
Whether a cluster has answered to Helm itself, so that what it lacks is missing for good. helm template knows no kinds but those of
--api-versions, and Argo CD names only those that can be watched: it brings kinds and their objects in one sync.
*/}}
{{- define "idtoken-operator.clusterAnswers" -}}
{{- if .Capabilities.APIVersions.Has "authorization.k8s.io/v1/SelfSubjectAccessReview" }}yes{{ end }}
{{- end }}

{{/*
Those of watchNamespaces in which no Role can be created, as {"names": [...]}: they do not exist, or are being deleted. None where no cluster
answers, as for helm template. The release's own namespace may be about to be created by Helm.
*/}}
{{- define "idtoken-operator.absentNamespaces" -}}
{{- $absent := list }}
{{- if and .Values.rbac.create .Values.watchNamespaces }}
{{- $exists := false }}
{{- range without (uniq .Values.watchNamespaces) .Release.Namespace }}
{{- $found := lookup "v1" "Namespace" "" . }}
{{- $exists = or $exists (not (empty $found)) }}
{{- if or (empty $found) ($found.metadata).deletionTimestamp }}
{{- $absent = append $absent . }}
{{- end }}
{{- end }}
{{- if and $absent (not $exists) (not (lookup "v1" "Namespace" "" "default")) }}
{{- $absent = list }}
{{- end }}
{{- end }}
{{- toJson (dict "names" $absent) }}
{{- end }}

{{/* An entry of extraObjects, and the root. */}}
{{- define "idtoken-operator.extraObject" -}}
{{- $entry := first . }}
{{- tpl (kindIs "string" $entry | ternary $entry (toYaml $entry)) (last .) }}
{{- end }}
