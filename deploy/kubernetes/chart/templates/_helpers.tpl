{{- define "leakmon.name" -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}{{ if not (contains "leakmon" .Release.Name) }}-leakmon{{ end }}
{{- end }}
{{- define "leakmon.selector" -}}
app.kubernetes.io/name: leakmon
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "leakmon.labels" -}}
{{ include "leakmon.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}
{{- define "leakmon.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "leakmon.name" .) }}
{{- end }}
