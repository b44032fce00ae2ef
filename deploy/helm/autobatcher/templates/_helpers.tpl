{{- define "autobatcher.name" -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "autobatcher.selector" -}}
app.kubernetes.io/name: autobatcher
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "autobatcher.labels" -}}
{{ include "autobatcher.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- /* Settings that contradict each other fail here, and not in the cluster. */ -}}
{{- define "autobatcher.check" -}}
{{- if and (gt (int .Values.replicas) 1) (ne .Values.journal.kind "postgres") -}}
{{- fail "replicas is more than 1: set journal.kind to postgres, so that the replicas share a journal" -}}
{{- end -}}
{{- if and (eq .Values.journal.kind "postgres") (not .Values.journal.postgres.secretName) -}}
{{- fail "journal.kind is postgres: set journal.postgres.secretName to a Secret with the URL of the database" -}}
{{- end -}}
{{- if and (or .Values.secret.apiKey .Values.secret.clientKey .Values.secret.pageKey) (not .Values.secret.name) -}}
{{- fail "secret.name is empty: name a Secret, or set secret.apiKey, secret.clientKey and secret.pageKey to \"\"" -}}
{{- end -}}
{{- if not (or .Values.secret.clientKey (hasKey .Values.env "AUTOBATCHER_FORWARD_KEY") (hasKey .Values.env "AUTOBATCHER_ALLOW_ANONYMOUS")) -}}
{{- fail "nothing says who may call: set secret.clientKey, or AUTOBATCHER_FORWARD_KEY or AUTOBATCHER_ALLOW_ANONYMOUS in env" -}}
{{- end -}}
{{- if hasKey .Values.env "OPENAI_API_KEY" -}}
{{- fail "env.OPENAI_API_KEY would be readable in the Deployment: put the key into the Secret that secret.name names" -}}
{{- end -}}
{{- range tuple "OPENAI_BASE_URL" "AUTOBATCHER_HOST" "AUTOBATCHER_PORT" "AUTOBATCHER_JOURNAL" "AUTOBATCHER_GRACE" "AUTOBATCHER_API_KEY_FILE" "AUTOBATCHER_CLIENT_KEY" "AUTOBATCHER_PAGE_KEY" "AUTOBATCHER_KEEP_ACTIVE_BATCHES_ON_CLOSE" -}}
{{- if hasKey $.Values.env . -}}
{{- fail (printf "env.%s: the chart sets this variable; use the value of the chart instead" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
