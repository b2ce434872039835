"""The address that callers use: OpenAI's API in front of engines, which it knows only as fleet snapshots."""
