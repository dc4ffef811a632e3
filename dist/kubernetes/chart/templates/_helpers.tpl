{{- define "flowgate.labels" -}}
app.kubernetes.io/name: flowgate
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "flowgate.name" -}}
{{ printf "%s-flowgate" .Release.Name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- define "flowgate.namespace" -}}
{{ .Values.backend.namespace | default .Release.Namespace }}
{{- end }}
{{- define "flowgate.discover" -}}
image: "{{ .Values.image.discover }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- include "flowgate.locked" . | nindent 2 }}
resources:
  {{- toYaml .Values.discoverResources | nindent 2 }}
volumeMounts:
  - name: backends
    mountPath: /run/backends
  - name: token
    mountPath: /var/run/secrets/kubernetes.io/serviceaccount
    readOnly: true
{{- end }}
{{- define "flowgate.what" -}}
{{ .Values.backend.service }}{{ with .Values.backend.port }}:{{ . }}{{ end }}=/run/backends/backends.json
{{- end }}
{{- define "flowgate.locked" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: ["ALL"]
{{- end }}
