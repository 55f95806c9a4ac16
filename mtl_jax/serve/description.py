"""API description, as OpenAPI and as an HTML page."""

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
    "400": "the client disconnected during the upload",
    "408": "the upload took too long",
    "413": "the file is too long, or the image has too many pixels",
    "415": "the body is neither an image nor a form",
    "422": "the image cannot be read, or a setting is invalid",
    "503": "too many requests wait already, or the response took too long",
}
RESPONSE_FIELDS = {
    "width": ("integer", "width of the upright image, px"),
    "height": ("integer", "height of the upright image, px"),
    "tasks": ("object", "predictions by task, at the resolution of the image; maps are PNG files in data URLs"),
    "ms": (
        "object",
        "durations of decode (of the image), encode (of the response), and of the forward pass of each task",
    ),
    "overlay": ("string", "a PNG file in a data URL, if requested"),
}


def openapi(model: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """Returns the OpenAPI description.

    Args:
        model: from `inference.describe_model`.
        limits: limits of a request.
    """
    names = list(model["tasks"])
    binary = {"schema": {"type": "string", "format": "binary"}}
    form = {"schema": {"type": "object", "properties": {"image": {"type": "string", "format": "binary"}}}}
    error_content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    errors = {status: {"description": text, "content": error_content} for status, text in ERRORS.items()}
    properties = {name: {"type": kind, "description": text} for name, (kind, text) in RESPONSE_FIELDS.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": f"mtl_jax: {model['name']}", "version": mtl_jax.__version__},
        "paths": {
            "/predict": {
                "post": {
                    "summary": "Predictions for one image",
                    "description": f"At most {limits.upload_mb:g} MB and {limits.megapixels:g} megapixels; "
                    f"{limits.seconds:g} s for the upload and again for the response. Images are not stored.",
                    "parameters": _parameters(names),
                    "requestBody": {"required": True, "content": {"image/*": binary, FORM: form}},
                    "responses": {
                        "200": {
                            "description": "predictions",
                            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Predictions"}}},
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
                "Predictions": {"type": "object", "properties": properties},
                "Error": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]},
            }
        },
    }


def _parameters(names: list[str]) -> list[dict[str, Any]]:
    parameters: dict[str, tuple[dict[str, Any], str]] = {
        "tasks": ({"type": "string", "default": "all"}, f"all, or some of {', '.join(names)}, separated by commas"),
        "threshold": (
            {"type": "number", "minimum": 0, "maximum": 1},
            "lowest score of boxes and tags; default: as calibrated",
        ),
        "overlay": ({"type": "boolean", "default": False}, "include the image with its predictions drawn over it"),
        "shades": (
            {"type": "boolean", "default": False},
            "include depths as 8-bit images, from the nearest point to the farthest",
        ),
    }
    return [
        {"name": name, "in": "query", "required": False, "schema": schema, "description": text}
        for name, (schema, text) in parameters.items()
    ]


def page(spec: Mapping[str, Any]) -> str:
    """Renders the OpenAPI description as an HTML page without scripts."""
    operation = spec["paths"]["/predict"]["post"]
    rows = [(entry["name"], entry["schema"]["type"], entry["description"]) for entry in operation["parameters"]]
    fields = [(name, kind, text) for name, (kind, text) in RESPONSE_FIELDS.items()]
    statuses = [(status, entry["description"]) for status, entry in operation["responses"].items()]
    example = EXAMPLE.format("http://127.0.0.1:8000", "all")
    body = "\n".join(
        [
            f"<h1>{escape(spec['info']['title'])}</h1>",
            html_page.section(
                "POST /predict",
                f"<p>{escape(operation['summary'])}. {escape(operation['description'])}</p>\n"
                + f"<pre>{escape(example)}</pre>\n"
                + html_page.table(("query", "type", "meaning"), rows),
                lead="The body is an image file, or a form with one file.",
            ),
            html_page.section("Response", html_page.table(("field", "type", "meaning"), fields)),
            html_page.section(
                "Status", html_page.table(("status", "meaning"), statuses), lead='Errors are {"error": …}.'
            ),
            '<p><a href="openapi.json">openapi.json</a> · <a href="model">model</a> · <a href="./">web page</a></p>',
            html_page.folded("OpenAPI", f"<pre>{escape(json.dumps(spec, indent=1))}</pre>"),
        ]
    )
    return html_page.page(spec["info"]["title"], body)
