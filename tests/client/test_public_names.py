"""The names that the package promises: where they can be had, and that the guide has them all."""

import ast
import dataclasses
import inspect
import re
from pathlib import Path

import pytest

import tandem
import tandem.client
from tandem import InprocessVLLMEmbedder, Step, VLLMClient, VLLMConfig
from tandem.telemetry import embedding_metrics

GUIDE = (Path(__file__).parents[2] / "docs" / "client.md").read_text()
NAMES = [name for name in tandem.__all__ if name != "__version__"]


def test_they_are_had_from_the_client_too() -> None:
    """The same objects, also by a star, and no others."""
    for name in NAMES:
        assert getattr(tandem.client, name) is getattr(tandem, name)
        assert name in dir(tandem.client)
    assert sorted(tandem.client.__all__) == sorted(NAMES)
    with pytest.raises(AttributeError, match="VLLMKlient"):
        _ = tandem.client.VLLMKlient  # type: ignore[attr-defined]


def test_type_checkers_are_told_of_all() -> None:
    """In both places: what they see is a list of its own."""
    for package in (tandem, tandem.client):
        assert package.__file__ is not None
        tree = ast.parse(Path(package.__file__).read_text())
        (told,) = (node for node in tree.body if isinstance(node, ast.If))
        names = [alias.name for node in told.body if isinstance(node, ast.ImportFrom) for alias in node.names]
        assert sorted(names) == sorted(NAMES)


def members(kind: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(kind, callable) if not name.startswith("_")}


def test_the_guide_has_them() -> None:
    """Each public name, each method, each setting, each field of a step, both histograms."""
    words = set(re.findall(r"\w+", GUIDE))
    wanted = {*NAMES, *members(VLLMClient), *members(InprocessVLLMEmbedder) - {"submit"}, "dimension"}
    wanted |= {field.name for kind in (VLLMConfig, Step) for field in dataclasses.fields(kind)}
    wanted |= {name for name in vars(embedding_metrics) if name.isupper()}
    assert wanted - words == set()


def test_they_are_documented() -> None:
    """Each has a docstring of its own; so has each method."""
    for name in NAMES:
        value = getattr(tandem, name)
        assert value.__doc__, name
        for member in members(value) if value in (VLLMClient, InprocessVLLMEmbedder) else ():
            assert getattr(value, member).__doc__, f"{name}.{member}"
