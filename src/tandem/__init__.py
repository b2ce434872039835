"""Tandem serves an embedding model and a language model side by side, behind one OpenAI-compatible address."""

__version__ = "0.1.0"
