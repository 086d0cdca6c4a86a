"""``/docs``: the OpenAPI description as one plain page, made here: no script, nothing fetched from elsewhere."""

from __future__ import annotations

import html
from typing import Any

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #8886; }
section { margin: 1.5rem 0; }
code { font-family: ui-monospace, monospace; }
h3 code { background: #8882; padding: .15rem .4rem; border-radius: .3rem; }
table { border-collapse: collapse; width: 100%; display: block; overflow-x: auto; }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; border-top: 1px solid #8883; }
"""


def docs_page(openapi: dict[str, Any]) -> str:
    """HTML of an OpenAPI 3.1 description: every route with its fields, then every type."""
    info = openapi["info"]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f'<title>{_text(info["title"])}: HTTP interface</title><link rel="stylesheet" href="docs.css"></head><body>',
        f"<h1>{_text(info['title'])} {_text(info['version'])}: HTTP interface</h1><p>{_text(info.get('description', ''))}</p>",
        '<p>The same for machines: <a href="openapi.json">openapi.json</a>. Where the server asks for a token, send '
        "<code>Authorization: Bearer TOKEN</code>.</p>",
    ]
    tags: dict[str, list[str]] = {}
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            tag = (operation.get("tags") or ["other"])[0]
            tags.setdefault(tag, []).append(_route(method, path, operation))
    for tag, routes in tags.items():
        parts += [f"<h2>{_text(tag.capitalize())}</h2>", *routes]
    parts.append("<h2>Types</h2>")
    for name, schema in sorted(openapi.get("components", {}).get("schemas", {}).items()):
        if "properties" in schema:
            parts.append(f'<section id="{_text(name)}"><h3>{_text(name)}</h3>{_fields(schema)}</section>')
    parts.append("</body></html>\n")
    return "\n".join(parts)


def _route(method: str, path: str, operation: dict[str, Any]) -> str:
    parts = [f"<section><h3><code>{_text(method.upper())} {_text(path)}</code></h3>"]
    parts.append(f"<p>{_text(operation.get('description') or operation.get('summary', ''))}</p>")
    parts += [
        f"<p><code>{_text(parameter['name'])}</code> ({_text(parameter['in'])}): {_kind(parameter['schema'])}</p>"
        for parameter in operation.get("parameters", [])
    ]
    for media, body in operation.get("requestBody", {}).get("content", {}).items():
        schema = body.get("schema", {})
        inside = _fields(schema) if "properties" in schema else f"<p>{_kind(schema)}</p>"
        parts.append(f"<h4>Body, {_text(media)}</h4>{inside}")
    for status, answer in operation.get("responses", {}).items():
        for media, body in answer.get("content", {}).items():
            if status.startswith("2"):
                parts.append(f"<p>Answer, {_text(media)}: {_kind(body.get('schema', {})) or 'the file'}</p>")
    return "".join([*parts, "</section>"])


def _fields(schema: dict[str, Any]) -> str:
    needed = set(schema.get("required", []))
    rows = "".join(
        f"<tr><td><code>{_text(name)}</code></td><td>{_kind(value)}{'' if name in needed else ', optional'}</td>"
        f"<td>{_text(value.get('description', ''))}</td></tr>"
        for name, value in schema["properties"].items()
    )
    about = f"<p>{_text(schema['description'])}</p>" if schema.get("description") else ""
    return f"{about}<table><tr><th>field</th><th>type</th><th>meaning</th></tr>{rows}</table>"


def _kind(schema: dict[str, Any]) -> str:
    """A schema in a few words; types of ours link to where they stand."""
    if "$ref" in schema:
        name = _text(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_kind(option) for option in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " or ".join(f"<code>{_text(value)}</code>" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {})) or 'anything'}"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_kind(schema['additionalProperties'])}"
    kind = "file" if schema.get("format") == "binary" else str(schema.get("type", ""))
    bounds = [
        f"{words} {schema[key]}"
        for key, words in (("minimum", "from"), ("maximum", "to"), ("maxLength", "at most characters:"))
        if key in schema
    ]
    return _text(" ".join([kind, *bounds]))


def _text(value: object) -> str:
    return html.escape(str(value))
