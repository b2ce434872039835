"""What a client may be told, and from where."""

from typing import Any

import pytest

from tandem import SettingsError, VLLMConfig


def test_the_defaults_are_those_of_the_design() -> None:
    """A config without arguments asks nomic-embed-code on port 8001, as `tandem serve` serves it."""
    config = VLLMConfig()
    assert (config.base_url, config.model) == ("http://127.0.0.1:8001/v1", "nomic-ai/nomic-embed-code")
    assert (config.mode, config.batch_size, config.timeout_s, config.embedding_dim) == ("http", 64, 120, 3584)
    assert config.prefix("query") == "Represent this query for searching relevant code: "
    assert config.prefix("document") == ""


def test_other_models_have_no_size_and_no_prefix() -> None:
    """Only what is known of nomic-embed-code is filled in, and only where nobody set it."""
    other = VLLMConfig(model="org/other")
    assert (other.embedding_dim, other.prefix("query")) == (None, "")
    mine = VLLMConfig(query_prefix="q: ", embedding_dim=768)
    assert (mine.embedding_dim, mine.prefix("query")) == (768, "q: ")
    assert VLLMConfig(dimensions=256).embedding_dim == 256


def test_the_environment_is_read() -> None:
    """Each name of the design sets its value, empty ones set nothing, and arguments win."""
    environ = {
        "VLLM_URL": "http://gpu:9000/v1/",
        "VLLM_MODEL": "embedding",
        "VLLM_API_KEY": "",
        "OPENAI_API_KEY": "sk-1",
        "VLLM_BATCH_SIZE": "32",
        "VLLM_TIMEOUT_S": "7.5",
        "VLLM_EMBED_DIM": "384",
    }
    config = VLLMConfig.from_env(environ, batch_size=16)
    assert (config.base_url, config.model, config.api_key) == ("http://gpu:9000/v1", "embedding", "sk-1")
    assert (config.batch_size, config.timeout_s, config.embedding_dim) == (16, 7.5, 384)
    assert VLLMConfig.from_env({**environ, "VLLM_API_KEY": "sk-2"}).api_key == "sk-2"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("http://h", "http://h/v1"),
        ("http://h/", "http://h/v1"),
        ("https://h:8200/v1/", "https://h:8200/v1"),
        ("http://h/tenant/v1", "http://h/tenant/v1"),
        ("unix:///run/api.sock", "unix:///run/api.sock"),
    ],
)
def test_addresses_are_completed(given: str, told: str) -> None:
    """Without a path `/v1` is meant, and a slash at the end changes nothing."""
    assert VLLMConfig(base_url=given).base_url == told


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"base_url": "localhost:8001"}, "base_url"),
        ({"base_url": "http://h:99999/v1"}, "base_url"),
        ({"base_url": "ftp://h/v1"}, "base_url"),
        ({"base_url": "unix://relative.sock"}, "base_url"),
        ({"model": " "}, "model"),
        ({"mode": "grpc"}, "mode"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"batch_size": "64"}, "batch_size"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": float("inf")}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
        ({"embedding_dim": 0}, "embedding_dim"),
        ({"dimensions": -1}, "dimensions"),
        ({"dimensions": 128, "embedding_dim": 256}, "dimensions"),
        ({"retries": -1}, "retries"),
        ({"max_concurrent_requests": 0}, "max_concurrent_requests"),
        ({"normalize": "yes"}, "normalize"),
        ({"query_prefix": 3}, "query_prefix"),
        ({"api_key": "sk-1\n"}, "api_key"),
    ],
)
def test_what_is_wrong_is_named(wrong: dict[str, Any], named: str) -> None:
    """A config that could not work cannot be made, and the error says which value it is."""
    with pytest.raises(SettingsError, match=named):
        VLLMConfig(**wrong)


@pytest.mark.parametrize("name", ["VLLM_BATCH_SIZE", "VLLM_TIMEOUT_S", "VLLM_EMBED_DIM"])
def test_a_variable_that_is_no_number_is_named(name: str) -> None:
    """Whoever set the environment is told which variable to mend."""
    with pytest.raises(SettingsError, match=name):
        VLLMConfig.from_env({name: "many"})


def test_unknown_arguments_and_kinds_are_named() -> None:
    """A typing error in a name is no silent default."""
    with pytest.raises(SettingsError, match="batchsize"):
        VLLMConfig.from_env({}, batchsize=3)
    with pytest.raises(SettingsError, match="kind"):
        VLLMConfig().prefix("passage")  # type: ignore[arg-type]


def test_the_key_is_not_shown() -> None:
    """Neither a config's nor a client's text holds the key."""
    assert "sk-secret" not in repr(VLLMConfig(api_key="sk-secret"))
