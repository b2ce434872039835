"""Settings come from every source, in order, and say where a wrong one was set."""

from pathlib import Path

import pytest

from tandem.errors import SettingsError
from tandem.settings import (
    VARIABLES,
    ApiSettings,
    EngineSettings,
    Memory,
    RouterSettings,
    Settings,
    SupervisionSettings,
    engine_environment,
    load,
)

ROOT = Path(__file__).parents[1]


def test_defaults_serve_one_model_of_each_kind(tmp_path: Path) -> None:
    """With nothing set there are two engines; without a GPU the smaller language model."""
    engines = load(gpu=False, environ={}, folder=tmp_path).settings.engines
    assert [(name, e.kind, e.model, e.port) for name, e in engines.items()] == [
        ("embedding", "embedding", "Qwen/Qwen3-Embedding-0.6B", 8100),
        ("generation", "generation", "Qwen/Qwen3-0.6B", 8101),
    ]
    assert load(gpu=True, environ={}, folder=tmp_path).settings.engines["generation"].model == "Qwen/Qwen3-8B-FP8"


def test_flags_win_over_environment_over_dotenv_over_toml(tmp_path: Path) -> None:
    """Each source overrides the next, and the origin of each value is known."""
    (tmp_path / "tandem.toml").write_text("[router]\nhost = '0.0.0.0'\nport = 1\ntimeout = 1\ndrain_timeout = 1\n")
    (tmp_path / ".env").write_text("TANDEM_PORT=2\nTANDEM_TIMEOUT=2\nTANDEM_DRAIN_TIMEOUT=2\n")
    environ = {"TANDEM_TIMEOUT": "3", "TANDEM_DRAIN_TIMEOUT": "3"}
    flags = {"router": {"drain_timeout": 4, "port": None}}
    loaded = load(flags, gpu=False, environ=environ, folder=tmp_path)
    router = loaded.settings.router
    assert (router.host, router.port, router.timeout, router.drain_timeout) == ("0.0.0.0", 2, 3, 4)
    assert {path[1]: origin for path, origin in loaded.origins.items()} == {
        "host": "router.host in tandem.toml",
        "port": "TANDEM_PORT in .env",
        "timeout": "TANDEM_TIMEOUT",
        "drain_timeout": "router.drain_timeout in the command line",
    }


@pytest.mark.parametrize("variable", [v for v in VARIABLES if v.legacy], ids=lambda v: v.legacy)
def test_names_people_already_have_are_read_too(variable: object, tmp_path: Path) -> None:
    """Each legacy name gives the same setting as Tandem's own, which wins where both are set."""
    values = {"model": "m", "port": "81", "memory": "0.5", "max_num_seqs": "7", "timeout": "9", "offline": "1"}
    value = values.get(variable.path[-1], "debug" if variable.path[-1] == "log_level" else str(tmp_path))
    by_legacy = load(gpu=False, environ={variable.legacy: value}, folder=tmp_path)
    by_name = load(gpu=False, environ={variable.name: value, variable.legacy: "x"}, folder=tmp_path)
    assert by_legacy.settings == by_name.settings != load(gpu=False, environ={}, folder=tmp_path).settings
    assert by_legacy.origins[variable.path] == variable.legacy


def test_toml_lists_the_engines(tmp_path: Path) -> None:
    """Where tandem.toml lists engines, there are just those; a default engine's name gives its kind."""
    (tmp_path / "tandem.toml").write_text(
        "[engines.code]\nkind = 'embedding'\nmodel = 'a/b'\n[engines.generation]\nmodel = 'c/d'\n"
    )
    loaded = load(gpu=False, environ={}, folder=tmp_path)
    assert {n: (e.kind, e.port) for n, e in loaded.settings.engines.items()} == {
        "code": ("embedding", None),
        "generation": ("generation", 8101),
    }
    assert loaded.models_configured
    assert not load(gpu=False, environ={"TANDEM_PORT": "1"}, folder=tmp_path / "none").models_configured


@pytest.mark.parametrize(
    ("toml", "environ", "complaint"),
    [
        (
            "",
            {"TANDEM_PROT": "1"},
            "TANDEM_PROT in the environment is no setting of Tandem's. Did you mean TANDEM_PORT?",
        ),
        ("", {"ROUTER_PORT": "http"}, "ROUTER_PORT: input should be a valid integer"),
        ("", {"VLLM_GEN_PORT": "70000"}, "VLLM_GEN_PORT: input should be less than or equal to 65535, not '70000'"),
        ("[router]\nhots = '::'", {}, "router.hots in tandem.toml: no such setting. Did you mean host?"),
        ("[engines.a]\nkind = 'embedding'", {}, "engines.a.model: field required"),
        ("[engines.a]\nkind = 'x'\nmodel = 'm'", {}, "engines.a.kind in tandem.toml: input should be"),
        ("[engines.A]\nkind = 'embedding'\nmodel = 'm'", {}, "'A' is no name for an engine"),
        ("[engines.a]\nkind = 'embedding'\nmodel = 'm'\nmemory = '8 apples'", {}, "such as 8GiB, not '8 apples'"),
        ("[engines]\nembedding = 3", {}, "engines.embedding must be a table"),
        ("engines = 3", {}, "engines must be tables"),
        ("port = ", {}, "is not valid TOML"),
        ("a = '\udce9'", {}, "is not valid TOML"),
        ("", {"TANDEM_CONFIG": "other.toml"}, "other.toml cannot be read: No such file"),
    ],
)
def test_a_wrong_setting_names_its_place(toml: str, environ: dict[str, str], complaint: str, tmp_path: Path) -> None:
    """The error says what is wrong, where it was set, and what was given."""
    (tmp_path / "tandem.toml").write_bytes(toml.encode(errors="surrogateescape"))
    with pytest.raises(SettingsError) as caught:
        load(gpu=False, environ=environ, folder=tmp_path)
    assert complaint in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("given", "share", "size"),
    [("0.3", 0.3, None), (1, 1.0, None), (".5", 0.5, None), ("8GiB", None, 8 * 2**30), ("1.5 GB", None, 1_500_000_000)],
)
def test_memory_is_a_share_or_an_amount(given: object, share: float | None, size: int | None) -> None:
    assert Memory.parse(given) == Memory(share, size)


@pytest.mark.parametrize("given", ["0", "1.1", "-1", "8", "8 KiB", "GiB", ""])
def test_other_memory_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match=r"such as 0.3"):
        Memory.parse(given)


def test_engines_do_not_see_what_only_tandem_reads() -> None:
    """Of VLLM_*, just Tandem's own names are withheld: VLLM_API_KEY would lock the engine, the rest is vLLM's."""
    environ = {
        "VLLM_API_KEY": "s",
        "VLLM_EMBED_PORT": "1",
        "TANDEM_PORT": "1",
        "VLLM_LOGGING_LEVEL": "DEBUG",
        "HF_TOKEN": "t",
        "PATH": "/bin",
        "ROUTER_PORT": "1",
    }
    assert set(engine_environment(environ)) == {"VLLM_LOGGING_LEVEL", "HF_TOKEN", "PATH", "ROUTER_PORT"}


def test_the_example_files_are_valid_and_complete(tmp_path: Path) -> None:
    """tandem.example.toml and .env.example load, and .env.example names every variable."""
    text = (ROOT / "tandem.example.toml").read_text()
    (tmp_path / "tandem.toml").write_text(text)
    loaded = load(gpu=True, environ={}, folder=tmp_path)
    assert set(loaded.settings.engines) == {"embedding", "generation", "code"}
    for table in (RouterSettings, ApiSettings, SupervisionSettings, EngineSettings):
        assert all(f"{name} = " in text for name in table.model_fields), table
    assert all(f"{name} = " in text or f"[{name}" in text for name in Settings.model_fields)
    # What is not commented out there is what holds without it.
    assert loaded.settings.router == RouterSettings()
    assert loaded.settings.supervision == SupervisionSettings()
    uncommented = (ROOT / ".env.example").read_text().replace("# TANDEM_", "TANDEM_")
    (tmp_path / "tandem.toml").unlink()
    (tmp_path / ".env").write_text(uncommented)
    loaded = load(gpu=True, environ={}, folder=tmp_path)
    assert {origin.removesuffix(" in .env") for origin in loaded.origins.values()} == {v.name for v in VARIABLES}


def test_the_size_of_logs_is_an_amount(tmp_path: Path) -> None:
    """With a unit or in bytes; not a share, and not next to nothing."""
    for written, size in (("5MiB", 5 * 2**20), ("100000", 100_000)):
        environ = {"TANDEM_LOG_SIZE": written}
        assert load(gpu=False, environ=environ, folder=tmp_path).settings.log_size == size
    for written in ("0.5", "much", "1"):
        with pytest.raises(SettingsError, match="TANDEM_LOG_SIZE"):
            load(gpu=False, environ={"TANDEM_LOG_SIZE": written}, folder=tmp_path)
