"""Render an overlay as `kubectl kustomize` does, for the subset of kustomize that k8s/ uses. Other features are refused.

The subset: resources, namespace, configMapGenerator (literals, files), strategic merge patches by path, images by tag. A test compares
the result with kubectl's rendering if kubectl is installed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
KNOWN = {"apiVersion", "kind", "namespace", "resources", "configMapGenerator", "patches", "images"}
CLUSTER_WIDE = {"Namespace", "ClusterRole", "ClusterRoleBinding", "PersistentVolume", "ClusterIssuer", "PriorityClass"}
MERGED_BY = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
}
"""Lists that a patch merges, with the field that identifies their items, as in the API's patchMergeKey. Other lists are replaced."""


class RenderError(Exception):
    """An overlay can't be rendered; the text names the file and the reason."""


def render(folder: Path) -> list[Object]:
    """Renders all objects of the kustomization in a folder. Raises RenderError."""
    file = folder / "kustomization.yaml"
    given = yaml.safe_load(file.read_text())
    if unknown := set(given) - KNOWN:
        raise RenderError(f"{file}: {', '.join(sorted(unknown))} isn't in the supported subset of kustomize")
    objects: list[Object] = []
    for name in given.get("resources", ()):
        path = folder / name
        objects += render(path) if path.is_dir() else load(path)
    for generator in given.get("configMapGenerator", ()):
        objects.append(_config_map(folder, generator))
    for patch in given.get("patches", ()):
        for part in load(folder / patch["path"]):
            _apply(objects, part, file)
    for image in given.get("images", ()):
        _set_image(objects, image, file)
    if namespace := given.get("namespace"):
        for obj in objects:
            if obj["kind"] not in CLUSTER_WIDE:
                obj["metadata"]["namespace"] = namespace
    _name_by_hash(objects)
    return objects


def load(path: Path) -> list[Object]:
    """The objects of a YAML file. Raises RenderError if the file is absent or invalid, or has a key twice."""
    try:
        return [obj for obj in yaml.load_all(path.read_text(), _Strict) if obj]  # a SafeLoader
    except (OSError, yaml.YAMLError) as error:
        raise RenderError(f"{path}: {error}") from error


class _Strict(yaml.CSafeLoader):
    """YAML loader that refuses duplicate keys, of which YAML would silently use the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise yaml.constructor.ConstructorError(None, None, f"twice: {', '.join(twice)}", node.start_mark)
        return super().construct_mapping(node, deep)


def _config_map(folder: Path, generator: Object) -> Object:
    data = dict(literal.split("=", 1) for literal in generator.get("literals", ()))
    for name in generator.get("files", ()):
        try:
            data[Path(name).name] = (folder / name).read_text()
        except OSError as error:
            raise RenderError(f"{folder / name}: {error.strerror}") from error
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": generator["name"], "annotations": {_GENERATED: "true"}},
        "data": data,
    }


_GENERATED = "tandem/generated"


def _name_by_hash(objects: list[Object]) -> None:
    """Appends a content hash to the names of generated ConfigMaps, so that pods are replaced when the content changes."""
    names = {}
    for obj in objects:
        if obj["metadata"].get("annotations", {}).pop(_GENERATED, None):
            del obj["metadata"]["annotations"]
            name = obj["metadata"]["name"]
            names[name] = obj["metadata"]["name"] = f"{name}-{content_hash(obj['data'])}"
    for obj in objects:
        _rename(obj, names)


def content_hash(data: dict[str, str]) -> str:
    """kustomize's hash of a ConfigMap: ten characters of SHA-256 over Go's JSON of the content, without vowels and lookalikes."""
    text = json.dumps(
        {"data": data, "kind": "ConfigMap", "name": ""}, sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return hashlib.sha256(text.encode()).hexdigest()[:10].translate(str.maketrans("013ae", "ghkmt"))


def _rename(node: Any, names: dict[str, str]) -> None:
    if isinstance(node, list):
        for item in node:
            _rename(item, names)
    elif isinstance(node, dict):
        for key in ("configMap", "configMapRef", "configMapKeyRef"):
            if key in node and node[key].get("name") in names:
                node[key]["name"] = names[node[key]["name"]]
        for item in node.values():
            _rename(item, names)


def _apply(objects: list[Object], patch: Object, file: Path) -> None:
    key = (patch["kind"], patch["metadata"]["name"])
    matching = [obj for obj in objects if (obj["kind"], obj["metadata"]["name"]) == key]
    if len(matching) != 1:
        raise RenderError(f"{file}: a patch of {key[0]}/{key[1]} matches {len(matching)} objects, but must match 1")
    _merge(matching[0], patch)


def _merge(into: Object, patch: Object) -> None:
    for key, value in patch.items():
        if value is None:
            into.pop(key, None)
        elif isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        elif isinstance(value, list) and key in MERGED_BY and isinstance(into.get(key), list):
            for item in value:
                same = [old for old in into[key] if old.get(MERGED_BY[key]) == item.get(MERGED_BY[key])]
                if same:
                    _merge(same[0], item)
                else:
                    into[key].append(item)
        else:
            into[key] = value


def _set_image(objects: list[Object], image: Object, file: Path) -> None:
    if set(image) - {"name", "newName", "newTag", "digest"}:
        raise RenderError(f"{file}: image {image['name']}: unknown fields")
    end = f"@{image['digest']}" if "digest" in image else f":{image['newTag']}" if "newTag" in image else ""
    for obj in objects:
        for container in containers(obj):
            if str(container["image"]).partition("@")[0].partition(":")[0] == image["name"]:
                container["image"] = f"{image.get('newName') or image['name']}{end}"


def pod_of(obj: Object) -> Object | None:
    """The pod template of a workload; None for other objects."""
    spec = obj.get("spec")
    template = spec.get("template") if isinstance(spec, dict) else None
    return template if isinstance(template, dict) and "spec" in template else None


def containers(obj: Object) -> list[Object]:
    """All containers of a workload, including initContainers."""
    pod = pod_of(obj)
    return [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]] if pod else []
