{{/* The name of everything: the release's, with the chart's where it does not hold it. */}}
{{- define "name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "labels" -}}
{{ include "selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* The configuration file. */}}
{{- define "config" -}}
apiVersion: flux-token-refresher/v1alpha1
kind: Config
identities:
  {{- toYaml .Values.config.identities | nindent 2 }}
targets:
  {{- toYaml .Values.config.targets | nindent 2 }}
{{- with .Values.config.refresh }}
refresh:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .Values.events.enabled }}
events:
  senders:
    - name: flux
      hmacKeyFile: /etc/flux-token-refresher-events/token
      namespaces:
        {{- toYaml .Values.events.namespaces | nindent 8 }}
{{- end }}
election:
  {{- merge (dict) .Values.config.election (dict "lease" (printf "%s/%s" .Release.Namespace (include "name" .))) | toYaml | nindent 2 }}
{{- end }}

{{/* The types of the identities, as a JSON object. */}}
{{- define "types" -}}
{{- $types := dict }}
{{- range .Values.config.identities }}
{{- $_ := set $types .type true }}
{{- end }}
{{- toJson $types }}
{{- end }}

{{/* Refuses what the schema cannot: what has to agree. */}}
{{- define "check" -}}
{{- $identities := dict }}
{{- range $i, $identity := .Values.config.identities }}
{{- if hasKey $identities .name }}
{{- fail (printf "config.identities[%d].name: there is an identity %s already" $i .name) }}
{{- end }}
{{- $_ := set $identities .name true }}
{{- if and (eq .type "workloadIdentity") (not .clientID) (not .serviceAccount) (not $.Values.workloadIdentity.clientID) }}
{{- fail (printf "workloadIdentity.clientID: set it to the client id of the managed identity, or give config.identities[%d] (%s) a clientID" $i .name) }}
{{- end }}
{{- end }}
{{- $secrets := dict }}
{{- range $i, $target := .Values.config.targets }}
{{- if hasKey $secrets .secret }}
{{- fail (printf "config.targets[%d].secret: %s is a target already" $i .secret) }}
{{- end }}
{{- $_ := set $secrets .secret true }}
{{- if not (hasKey $identities .identity) }}
{{- fail (printf "config.targets[%d].identity: there is no identity %s; there are: %s" $i .identity (keys $identities | sortAlpha | join ", ")) }}
{{- end }}
{{- end }}
{{- if and .Values.flux.notifications (not .Values.events.enabled) }}
{{- fail "flux.notifications: nobody would listen; set events.enabled too" }}
{{- end }}
{{- end }}
