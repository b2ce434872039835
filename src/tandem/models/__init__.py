"""The shapes of the API: what callers send and what they get. Never weights."""
