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
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "labels" -}}
{{ include "selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | replace "+" "_" | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
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
  {{- if .Values.events.tlsSecret }}
  tls:
    certFile: /etc/flux-token-refresher-events-tls/tls.crt
    keyFile: /etc/flux-token-refresher-events-tls/tls.key
  {{- end }}
  senders:
    - name: flux
      hmacKeyFile: /etc/flux-token-refresher-events/token
      namespaces:
        {{- toYaml .Values.events.namespaces | nindent 8 }}
{{- end }}
election:
  {{- merge (dict) (.Values.config.election | default dict) (dict "lease" (printf "%s/%s" .Release.Namespace (include "name" .))) | toYaml | nindent 2 }}
{{- end }}

{{/* The types of the identities, as a JSON object. */}}
{{- define "types" -}}
{{- $types := dict }}
{{- range .Values.config.identities }}
{{- $_ := set $types .type true }}
{{- end }}
{{- toJson $types }}
{{- end }}

{{/* Refuses what the schema cannot: what has to agree. Of config it is what the program would refuse at its start, when it is late. */}}
{{- define "check" -}}
{{- include "checkIdentities" . }}
{{- include "checkTargets" . }}
{{- include "checkDurations" . }}
{{- if and .Values.events.enabled (not (regexMatch "^[a-z][-a-z0-9]*$" (include "name" .))) }}
{{- fail (printf "the release's name %s: with events.enabled it names a Service, which begins with a letter and has no dot" .Release.Name) }}
{{- end }}
{{- if and .Values.flux.notifications (not .Values.events.enabled) }}
{{- fail "flux.notifications: nobody would listen; set events.enabled too" }}
{{- end }}
{{- $limit := include "bytes" (dig "limits" "memory" "" (.Values.resources | default dict)) }}
{{- if and $limit (gt (float64 (include "bytes" .Values.goMemLimit)) (float64 $limit)) }}
{{- fail (printf "goMemLimit: %s is more than resources.limits.memory; three quarters of it leave room for what is not the heap" .Values.goMemLimit) }}
{{- end }}
{{- end }}

{{- define "checkIdentities" -}}
{{- $anywhere := list "workloadIdentity" "clientSecret" "clientCertificate" }}
{{- $belongs := dict "clientID" (append $anywhere "managedIdentity") "serviceAccount" (list "workloadIdentity") "tokenFile" (list "workloadIdentity") }}
{{- $_ := set $belongs "resourceID" (list "managedIdentity") }}
{{- $_ := set $belongs "credentialSecret" (list "clientSecret" "clientCertificate") }}
{{- range list "tenantID" "cloud" "authorityHost" "caFile" }}
{{- $_ := set $belongs . $anywhere }}
{{- end }}
{{- $names := dict }}
{{- range $i, $identity := .Values.config.identities }}
{{- $at := printf "config.identities[%d]" $i }}
{{- if hasKey $names .name }}
{{- fail (printf "%s.name: there is an identity %s already" $at .name) }}
{{- end }}
{{- $_ := set $names .name true }}
{{- range $field := keys $identity | sortAlpha }}
{{- $types := get $belongs $field }}
{{- if and $types (not (has $identity.type $types)) }}
{{- fail (printf "%s.%s: belongs to the type %s; leave it out" $at $field (join ", " $types)) }}
{{- end }}
{{- end }}
{{- range list (list "authorityHost" "cloud") (list "clientID" "resourceID") (list "serviceAccount" "tokenFile") }}
{{- if eq (len (pick $identity (first .) (last .))) 2 }}
{{- fail (printf "%s.%s: stands beside %s; keep one of the two" $at (last .) (first .)) }}
{{- end }}
{{- end }}
{{- if and (eq .type "workloadIdentity") (not .clientID) (not .serviceAccount) (not $.Values.workloadIdentity.clientID) }}
{{- fail (printf "workloadIdentity.clientID: set it to the client id of the managed identity, or give %s (%s) a clientID" $at .name) }}
{{- end }}
{{- if .credentialSecret }}
{{- range $field, $variable := dict "tenantID" "AZURE_TENANT_ID" "clientID" "AZURE_CLIENT_ID" }}
{{- if not (or (hasKey $identity $field) (hasKey (include "environment" $ | fromJson) $variable)) }}
{{- fail (printf "%s.%s: is missing; write it" $at $field) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* The variables AZURE_*_ID that pods have, as a JSON object: those of extraEnv, and what the webhook gives to workload identities. */}}
{{- define "environment" -}}
{{- $variables := dict }}
{{- range .Values.extraEnv }}
{{- $_ := set $variables .name true }}
{{- end }}
{{- if hasKey (include "types" . | fromJson) "workloadIdentity" }}
{{- $_ := set $variables "AZURE_TENANT_ID" true }}
{{- if .Values.workloadIdentity.clientID }}
{{- $_ := set $variables "AZURE_CLIENT_ID" true }}
{{- end }}
{{- end }}
{{- toJson $variables }}
{{- end }}

{{- define "checkTargets" -}}
{{- $identities := list }}
{{- $credentials := dict }}
{{- range .Values.config.identities }}
{{- $identities = append $identities .name }}
{{- if .credentialSecret }}
{{- $_ := set $credentials .credentialSecret .name }}
{{- end }}
{{- end }}
{{- $secrets := dict }}
{{- range $i, $target := .Values.config.targets }}
{{- $at := printf "config.targets[%d]" $i }}
{{- if hasKey $secrets .secret }}
{{- fail (printf "%s.secret: %s is a target already" $at .secret) }}
{{- end }}
{{- $_ := set $secrets .secret true }}
{{- with get $credentials .secret }}
{{- fail (printf "%s.secret: is the credentialSecret of the identity %s; name another Secret" $at .) }}
{{- end }}
{{- if not (has .identity $identities) }}
{{- fail (printf "%s.identity: there is no identity %s; there are: %s" $at .identity (sortAlpha $identities | join ", ")) }}
{{- end }}
{{- range $field, $format := dict "username" "basicAuth" "template" "template" }}
{{- if and (hasKey $target $field) (ne ($target.format | default "bearerToken") $format) }}
{{- fail (printf "%s.%s: belongs to format: %s; leave it out" $at $field $format) }}
{{- end }}
{{- end }}
{{- if and .template (not (regexMatch "\\.Token\\b" (values .template | join " "))) }}
{{- fail (printf "%s.template: no key uses {{ .Token }}" $at) }}
{{- end }}
{{- if and .labels (not .create) }}
{{- fail (printf "%s.labels: only a Secret that is created here gets labels; write create: true or leave them out" $at) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "checkDurations" -}}
{{- $epoch := toDate "2006" "2000" }}
{{- $of := dict }}
{{- range $name, $value := merge (dict) (.Values.config.election | default dict) (pick (.Values.config.refresh | default dict) "cooldown") (dict "leaseDuration" "15s" "renewDeadline" "10s" "retryPeriod" "2s" "cooldown" "30s") }}
{{- if ne $name "lease" }}
{{- $_ := set $of $name ((dateModify $value $epoch).Sub $epoch).Milliseconds }}
{{- end }}
{{- end }}
{{- if or (le $of.cooldown 0) (gt $of.cooldown 900000) }}
{{- fail "config.refresh.cooldown: write a duration of more than 0s and at most 15m" }}
{{- end }}
{{- if or (lt $of.leaseDuration 1000) (gt $of.leaseDuration 3600000) (mod $of.leaseDuration 1000) }}
{{- fail "config.election.leaseDuration: write whole seconds, from 1s to 1h" }}
{{- end }}
{{- if le $of.leaseDuration $of.renewDeadline }}
{{- fail "config.election.leaseDuration: it has to be longer than renewDeadline" }}
{{- end }}
{{- if le $of.retryPeriod 0 }}
{{- fail "config.election.retryPeriod: write a duration of more than 0s" }}
{{- end }}
{{- if le (mul 5 $of.renewDeadline) (mul 6 $of.retryPeriod) }}
{{- fail "config.election.renewDeadline: it has to be longer than 1.2 times retryPeriod" }}
{{- end }}
{{- end }}

{{/* What an amount of memory like 64Mi or 48MiB is in bytes; nothing for one of another form. */}}
{{- define "bytes" -}}
{{- $number := regexFind "^[0-9]+" (. | toString) }}
{{- $unit := . | toString | trimPrefix $number | trimSuffix "B" }}
{{- $factors := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 }}
{{- if and $number (hasKey $factors $unit) }}
{{- mul (int64 $number) (get $factors $unit) }}
{{- end }}
{{- end }}
