"""One demo service for all of this folder's tests."""

from collections.abc import Iterator

import httpx2
import pytest

from ..conftest import Service, running


@pytest.fixture(scope="package")
def demo() -> Iterator[Service]:
    """`tandem up --demo`, ready; stopped with Ctrl-C at the end, when nothing of it may be left."""
    with running("up", "--demo") as service:
        service.until_said("Ctrl-C stops it.")
        yield service
        assert service.stop() == 0
        assert service.said.endswith("Stopped.\n")


@pytest.fixture
def http(demo: Service) -> Iterator[httpx2.Client]:
    """Plain HTTP to the demo."""
    with httpx2.Client(base_url=demo.address, trust_env=False, timeout=60) as client:
        yield client
