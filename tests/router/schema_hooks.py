"""For schemathesis: names a model that is served, so that requests get further than the search for it."""

from typing import Any

import schemathesis


@schemathesis.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    if isinstance(body, dict) and isinstance(body.get("model"), str) and body["model"]:
        operation = context.operation
        body["model"] = "embedding" if operation is not None and "embeddings" in operation.path else "generation"
    return body
