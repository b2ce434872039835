"""Fake engines in the test's own folder."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tandem.engines.spec import Spec

from .fakes import fake_spec

MakeSpec = Callable[..., Spec]


@pytest.fixture
def make_spec(tmp_path: Path) -> MakeSpec:
    """Specs of fake engines."""
    return partial(fake_spec, tmp_path)
