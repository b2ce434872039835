"""The client: texts in, float32 vectors out, over HTTP or from an engine in this process."""
