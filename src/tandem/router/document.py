"""The API's OpenAPI document: FastAPI's routes, and the hot ones, which it does not know, from their models."""

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from tandem.models.requests import ChatCompletionRequest, CompletionRequest, EmbeddingRequest
from tandem.models.responses import (
    ChatCompletion,
    Completion,
    EmbeddingResponse,
    ErrorResponse,
    Health,
    Model,
    ModelList,
)
from tandem.router import line
from tandem.router.relay import CHAT, COMPLETIONS


def document(api: FastAPI) -> dict[str, Any]:
    """The OpenAPI document: FastAPI's routes, and the hot ones from their models."""
    if api.openapi_schema:
        return api.openapi_schema
    made = get_openapi(title=api.title, version=api.version, routes=api.routes)
    reference = "#/components/schemas/{model}"
    requests: list[tuple[type[BaseModel], JsonSchemaMode]] = [
        (EmbeddingRequest, "validation"),
        (CompletionRequest, "validation"),
        (ChatCompletionRequest, "validation"),
    ]
    _, schemas = models_json_schema([*requests], ref_template=reference)
    responses = (EmbeddingResponse, Completion, ChatCompletion, ErrorResponse, Model, ModelList, Health)
    refs, components = msgspec.json.schema_components(responses, ref_template=reference.format(model="{name}"))
    embedding, completion, chat, error, one_model, all_models, state = refs
    made.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"] | components)
    for path, request, answer, streams in (
        (line.PATH, EmbeddingRequest, embedding, False),
        (COMPLETIONS.path, CompletionRequest, completion, True),
        (CHAT.path, ChatCompletionRequest, chat, True),
    ):
        content = {"application/json": {"schema": answer}}
        if streams:
            content["text/event-stream"] = {"schema": {"type": "string"}}
        made["paths"][path] = {
            "post": {
                "tags": ["OpenAI"],
                "summary": (request.__doc__ or path).splitlines()[0],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": reference.format(model=request.__name__)}}},
                },
                "responses": {"200": {"description": "The answer", "content": content}},
            }
        }
    for path, schema in (("/v1/models", all_models), ("/v1/models/{model}", one_model), ("/health", state)):
        made["paths"][path]["get"]["responses"]["200"] = _described("The answer", schema)
    made["paths"]["/health"]["get"]["responses"]["503"] = _described("Not every part is healthy", state)
    status = {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]}
    made["paths"]["/readyz"]["get"]["responses"]["503"] = _described("Not ready", status)
    text = {"text/plain": {"schema": {"type": "string"}}}
    made["paths"]["/metrics"]["get"]["responses"]["200"] = {
        "description": "Prometheus' text format",
        "content": text,
    }
    for operations in made["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # FastAPI's own form of error, which nobody gets
            operation["responses"].setdefault("default", _described("An error", error))
    for name in ("HTTPValidationError", "ValidationError"):
        made["components"]["schemas"].pop(name, None)
    api.openapi_schema = made
    return made


def _described(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
