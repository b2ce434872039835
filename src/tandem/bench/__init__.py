"""How fast a service with OpenAI's API is, how that compares with another, and whether its memory stays flat."""
