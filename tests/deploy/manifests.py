# SPDX-License-Identifier: Apache-2.0
"""scripts/deploy/daemonset.yaml and Containerfile, read as Kubernetes and a builder read them. The
schema below has the fields that the manifest uses, with the types of the Kubernetes API (v1, apps/v1),
so that a misspelt field, which `kubectl` might drop, is an error here."""

import os
import re

import yaml
from relay import TOP

DAEMONSET = os.path.join(TOP, "scripts/deploy/daemonset.yaml")
CONTAINERFILE = os.path.join(TOP, "scripts/deploy/Containerfile")

# A dict: fields that may be there, "!" in front: must be. A list: of what it holds. A set: one of
# these. "map": strings by strings.
PROBE = {"!httpGet": {"!path": str, "!port": (str, int), "host": str, "scheme": {"HTTP", "HTTPS"}},
         "periodSeconds": int, "timeoutSeconds": int, "failureThreshold": int,
         "successThreshold": int, "initialDelaySeconds": int}  # fmt: skip
QUANTITIES = {"cpu": str, "memory": str}
CONTAINER = {
    "!name": str, "!image": str, "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "command": [str], "args": [str],
    "env": [{"!name": str, "value": str, "valueFrom": {"fieldRef": {"!fieldPath": str}}}],
    "ports": [{"name": str, "!containerPort": int, "hostPort": int, "protocol": {"TCP", "UDP"}}],
    "securityContext": {
        "privileged": bool, "allowPrivilegeEscalation": bool, "readOnlyRootFilesystem": bool,
        "runAsUser": int, "runAsGroup": int, "runAsNonRoot": bool,
        "capabilities": {"add": [str], "drop": [str]},
    },
    "livenessProbe": PROBE, "readinessProbe": PROBE, "startupProbe": PROBE,
    "resources": {"requests": QUANTITIES, "limits": QUANTITIES},
    "volumeMounts": [{"!name": str, "!mountPath": str, "readOnly": bool, "mountPropagation": str}],
}  # fmt: skip
POD = {
    "serviceAccountName": str, "automountServiceAccountToken": bool, "nodeSelector": "map",
    "tolerations": [{"key": str, "operator": {"Exists", "Equal"}, "value": str,
                     "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"}}],
    "priorityClassName": str, "hostNetwork": bool, "hostPID": bool,
    "dnsPolicy": {"ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"},
    "terminationGracePeriodSeconds": int,
    "securityContext": {"seccompProfile": {"!type": {"Unconfined", "RuntimeDefault", "Localhost"}},
                        "appArmorProfile": {"!type": {"Unconfined", "RuntimeDefault", "Localhost"}}},
    "!containers": [CONTAINER],
    "volumes": [{
        "!name": str, "configMap": {"!name": str},
        "hostPath": {"!path": str, "type": {"", "Directory", "DirectoryOrCreate", "Socket", "File"}},
        "secret": {"!secretName": str, "optional": bool, "defaultMode": int},
    }],
}  # fmt: skip
META = {"!name": str, "namespace": str, "labels": "map", "annotations": "map"}
KINDS = {
    ("v1", "Namespace"): {},
    ("v1", "ServiceAccount"): {"automountServiceAccountToken": bool},
    ("v1", "ConfigMap"): {"!data": "map"},
    ("apps/v1", "DaemonSet"): {"!spec": {
        "!selector": {"!matchLabels": "map"},
        "updateStrategy": {"type": {"RollingUpdate", "OnDelete"},
                           "rollingUpdate": {"maxUnavailable": (int, str), "maxSurge": (int, str)}},
        "!template": {"!metadata": {"labels": "map", "annotations": "map"}, "!spec": POD},
    }},
}  # fmt: skip


def check(value, schema, at):
    if isinstance(schema, dict):
        assert isinstance(value, dict), f"{at}: not an object"
        fields = {name.lstrip("!"): inner for name, inner in schema.items()}
        unknown = set(value) - set(fields)
        assert not unknown, f"{at}: unknown {unknown}"
        absent = {name[1:] for name in schema if name.startswith("!")} - set(value)
        assert not absent, f"{at}: without {absent}"
        for name, inner in value.items():
            check(inner, fields[name], f"{at}.{name}")
    elif isinstance(schema, list):
        assert isinstance(value, list) and value, f"{at}: not a list"
        for number, inner in enumerate(value):
            check(inner, schema[0], f"{at}[{number}]")
    elif isinstance(schema, set):
        assert value in schema, f"{at}: {value!r} is none of {schema}"
    elif schema == "map":
        assert isinstance(value, dict), f"{at}: not an object"
        assert all(isinstance(text, str) for pair in value.items() for text in pair), f"{at}: not strings"
    else:
        types = schema if isinstance(schema, tuple) else (schema,)
        assert type(value) in types, f"{at}: {value!r} is no {types}"


def documents():
    with open(DAEMONSET, encoding="utf-8") as f:
        return list(yaml.safe_load_all(f))


def of_kind(kind):
    (found,) = [d for d in documents() if d["kind"] == kind]
    return found


def settings():
    return of_kind("ConfigMap")["data"]["vsock-relayd.yaml"]


def pod():
    return of_kind("DaemonSet")["spec"]["template"]["spec"]


def capabilities():
    """What the pod may do, as CAP_ names."""
    (container,) = pod()["containers"]
    return [f"CAP_{name}" for name in container["securityContext"]["capabilities"]["add"]]


def fields_exist():
    for document in documents():
        kind = (document.pop("apiVersion"), document.pop("kind"))
        assert kind in KINDS, kind
        check(document.pop("metadata"), META, f"{kind[1]}.metadata")
        check(document, KINDS[kind], kind[1])


def parts_fit_together():
    """What a part names, another one has."""
    spec, inside = of_kind("DaemonSet")["spec"], pod()
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    namespace = of_kind("Namespace")["metadata"]["name"]
    assert all(d["metadata"].get("namespace") == namespace for d in documents() if d["kind"] != "Namespace")
    assert inside["serviceAccountName"] == of_kind("ServiceAccount")["metadata"]["name"]
    volumes = {volume["name"]: volume for volume in inside["volumes"]}
    (container,) = inside["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    assert volumes["config"]["configMap"]["name"] == of_kind("ConfigMap")["metadata"]["name"]
    (port,) = container["ports"]
    assert yaml.safe_load(settings())["metrics"]["listen"] == f":{port['containerPort']}"
    assert port["hostPort"] == port["containerPort"], "with hostNetwork"
    for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        assert container[probe]["httpGet"] == {"path": path, "port": port["name"]}


def pod_is_not_privileged():
    (container,) = pod()["containers"]
    context = container["securityContext"]
    assert context["privileged"] is False and context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True and context["capabilities"]["drop"] == ["ALL"]
    assert not {"SYS_ADMIN", "ALL", "SYS_PTRACE"} & set(context["capabilities"]["add"])
    assert pod()["automountServiceAccountToken"] is False
    limit = container["resources"]["limits"]["memory"]
    # What it may hold by its settings, twice what it does not count.
    assert limit == "1Gi", limit


def image_has_what_the_manifest_names():
    """Containerfile: instructions that exist, both stages from one base, the user's number."""
    with open(CONTAINERFILE, encoding="utf-8") as f:
        text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", f.read(), flags=re.M))
    steps = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    assert {word for word, _ in steps} <= {"ARG", "FROM", "RUN", "COPY", "WORKDIR", "ENTRYPOINT"}, steps
    assert [rest for word, rest in steps if word == "FROM"] == ["${BASE} AS build", "${BASE}"]
    user = yaml.safe_load(settings())["user"]
    assert f"--uid {user} " in text and f"--gid {user} " in text
    assert 'ENTRYPOINT ["/usr/sbin/vsock-relayd"]' in text


def run_all(tap):
    tap.run("daemonset.yaml: every field exists and has its type", fields_exist)
    tap.run("daemonset.yaml: what a part names, another one has", parts_fit_together)
    tap.run("daemonset.yaml: the pod is not privileged", pod_is_not_privileged)
    tap.run("Containerfile: well-formed, and fits the manifest", image_has_what_the_manifest_names)
