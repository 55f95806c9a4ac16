"""The API in OpenAPI's terms, and the same as a page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

import mtl_jax
from mtl_jax.report import html_page
from mtl_jax.serve.uploads import FORM, Limits

EXAMPLE = "curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' '{}/predict?tasks={}'"
ERRORS = {
    "400": "the client went away before the image was there",
    "408": "the upload took too long",
    "413": "the file is too long, or the image has too many pixels",
    "415": "neither an image nor a form",
    "422": "no image that can be read, or a setting that is none",
    "503": "too many wait already, or the answer took too long",
}
ANSWER = {
    "width": ("integer", "of the image, upright, px"),
    "height": ("integer", "likewise"),
    "tasks": ("object", "by task what it says, at the image's own resolution; maps are PNG files in data URLs"),
    "ms": ("object", "decode, answer, and by task the pass of the network that it was part of"),
    "overlay": ("string", "a PNG file in a data URL, where it was asked for"),
}


def openapi(model: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """Returns the description of the API.

    Args:
        model: from `answering.described`.
        limits: of each request.
    """
    names = list(model["tasks"])
    binary = {"schema": {"type": "string", "format": "binary"}}
    form = {"schema": {"type": "object", "properties": {"image": {"type": "string", "format": "binary"}}}}
    refusal = {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}}
    errors = {status: {"description": text, "content": refusal} for status, text in ERRORS.items()}
    properties = {name: {"type": kind, "description": text} for name, (kind, text) in ANSWER.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": f"mtl_jax: {model['name']}", "version": mtl_jax.__version__},
        "paths": {
            "/predict": {
                "post": {
                    "summary": "What the network sees in one image",
                    "description": f"At most {limits.upload_mb:g} MB and {limits.megapixels:g} megapixels; "
                    f"{limits.seconds:g} s for the upload and again for the answer. Nothing is kept.",
                    "parameters": _parameters(names),
                    "requestBody": {"required": True, "content": {"image/*": binary, FORM: form}},
                    "responses": {
                        "200": {
                            "description": "the answer",
                            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Answer"}}},
                        },
                        **errors,
                    },
                }
            },
            "/model": {
                "get": {"summary": "Tasks, classes and thresholds", "responses": {"200": {"description": "JSON"}}}
            },
        },
        "components": {
            "schemas": {
                "Answer": {"type": "object", "properties": properties},
                "Refusal": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]},
            }
        },
    }


def _parameters(names: list[str]) -> list[dict[str, Any]]:
    parameters: dict[str, tuple[dict[str, Any], str]] = {
        "tasks": ({"type": "string", "default": "all"}, f"all, or some of {', '.join(names)}, separated by commas"),
        "threshold": (
            {"type": "number", "minimum": 0, "maximum": 1},
            "least score of boxes and tags; else as calibrated",
        ),
        "overlay": ({"type": "boolean", "default": False}, "also the image with the answers drawn over it"),
        "shades": (
            {"type": "boolean", "default": False},
            "also depths as 8 bits, from the nearest point to the farthest",
        ),
    }
    return [
        {"name": name, "in": "query", "required": False, "schema": schema, "description": text}
        for name, (schema, text) in parameters.items()
    ]


def page(spec: Mapping[str, Any]) -> str:
    """Returns the description as a page that needs no script."""
    about = spec["paths"]["/predict"]["post"]
    rows = [(entry["name"], entry["schema"]["type"], entry["description"]) for entry in about["parameters"]]
    rows_of_outputs = [(name, kind, text) for name, (kind, text) in ANSWER.items()]
    statuses = [(status, entry["description"]) for status, entry in about["responses"].items()]
    example = EXAMPLE.format("http://127.0.0.1:8000", "all")
    body = "\n".join(
        [
            f"<h1>{escape(spec['info']['title'])}</h1>",
            html_page.section(
                "POST /predict",
                f"<p>{escape(about['summary'])}. {escape(about['description'])}</p>\n<pre>{escape(example)}</pre>\n"
                + html_page.table(("query", "type", "meaning"), rows),
                lead="The body is the image's file, or a form with one file.",
            ),
            html_page.section("The answer", html_page.table(("field", "type", "meaning"), rows_of_outputs)),
            html_page.section(
                "Status", html_page.table(("status", "meaning"), statuses), lead='Errors are {"error": …}.'
            ),
            '<p><a href="openapi.json">openapi.json</a> · <a href="model">model</a> · <a href="./">the page</a></p>',
            html_page.folded("OpenAPI", f"<pre>{escape(json.dumps(spec, indent=1))}</pre>"),
        ]
    )
    return html_page.page(spec["info"]["title"], body)
