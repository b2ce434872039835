"""The Compose file against the specification's own schema, and what it says."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from tandem import __version__
from tandem.deploy.compose import Container, Front, compose, dockerfile

BIN = Path(sys.executable).parent
HUB = Path("/data/hub/models--Qwen--Qwen3-Embedding-0.6B")
EMBEDDING = Container(
    name="embedding",
    argv=(
        *("python3", "-m", "vllm.entrypoints.cli.main", "serve", f"{HUB}/snapshots/abc"),
        *("--served-model-name", "a $b", "--host", "127.0.0.1", "--port", "8100", "--runner", "pooling"),
    ),
    model=HUB / "snapshots" / "abc",
    mount=HUB,
    environment={"VLLM_NO_USAGE_STATS": "1", "HF_TOKEN": "${HF_TOKEN}"},
    cards=["0"],
    tokenizer=True,
)
GENERATION = Container(
    name="generation",
    argv=("python3", "-m", "x", "serve", "/models/big", "--host", "127.0.0.1", "--port", "8101"),
    model=Path("/models/big"),
    mount=Path("/models/big"),
    environment={},
    cards=["0", "1"],
    tokenizer=False,
)
FRONT = Front("127.0.0.1", 8200, keys=None, guarded=False, drain_timeout=20)
GUARDED = replace(FRONT, host="0.0.0.0", keys=Path("/etc/tandem/keys"), guarded=True)


def services(front: Front = FRONT) -> dict[str, Any]:
    text = compose([EMBEDDING, GENERATION], front, image="vllm/vllm-openai:v0.32.0")
    return dict(yaml.safe_load(text)["services"])


def checked(path: Path) -> subprocess.CompletedProcess[str]:
    """Against the schema of the compose-spec project, which comes with check-jsonschema."""
    command = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", path]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.process
@pytest.mark.parametrize("front", [FRONT, GUARDED], ids=["open", "guarded"])
def test_it_is_what_the_specification_says(front: Front, tmp_path: Path) -> None:
    path = tmp_path / "compose.yaml"
    path.write_text(compose([EMBEDDING, GENERATION], front, image="vllm/vllm-openai:v0.32.0"))
    ran = checked(path)
    assert ran.returncode == 0, ran.stdout
    path.write_text(path.read_text().replace("shm_size:", "shmsize:"))
    assert checked(path).returncode == 1


def test_engines_have_their_cards_memory_and_turn() -> None:
    """Reserved GPUs, shared memory, a health check; the second waits until the first is healthy."""
    first, second, _ = services().values()
    (device,) = second["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "device_ids": ["0", "1"], "capabilities": ["gpu"]}
    assert first["shm_size"] == "2gb"
    assert "http://127.0.0.1:8000/health" in first["healthcheck"]["test"][-1]
    assert "depends_on" not in first
    assert second["depends_on"] == {"embedding": {"condition": "service_healthy"}}
    assert first["networks"] == ["engines"]
    assert "ports" not in first


def test_an_engine_s_command_is_the_machine_s() -> None:
    """Except for the model's folder and the address; and no word of it is taken for a variable."""
    engine = services()["embedding"]
    assert engine["entrypoint"] == ["vllm", "serve"]
    assert engine["command"] == [
        *("/models/embedding/snapshots/abc", "--served-model-name", "a $$b"),
        *("--host", "0.0.0.0", "--port", "8000", "--runner", "pooling"),
    ]
    assert engine["volumes"][0] == {
        "type": "bind",
        "source": str(HUB),
        "target": "/models/embedding",
        "read_only": True,
    }
    assert engine["environment"]["HF_TOKEN"] == "${HF_TOKEN}"
    assert services()["generation"]["command"][0] == "/models/generation"


def test_the_router_can_do_nothing_else() -> None:
    """It writes nothing, has no rights, and listens where the settings say; keys are a secret."""
    router = services()["router"]
    assert (router["read_only"], router["cap_drop"], router["user"]) == (True, ["ALL"], "10001:10001")
    assert router["ports"] == ["127.0.0.1:8200:8200"]
    assert "--insecure" in router["command"]
    guarded = services(GUARDED)["router"]
    assert guarded["ports"] == ["0.0.0.0:8200:8200"]
    assert "--insecure" not in guarded["command"]
    assert guarded["environment"]["TANDEM_API_KEYS_FILE"] == "/run/secrets/keys"


@pytest.mark.process
def test_the_router_s_command_is_one_that_it_takes(free_port: int, tmp_path: Path) -> None:
    """Run as it stands, in front of engines that are not there yet; its health check finds it alive."""
    router = services(replace(FRONT, port=free_port))["router"]
    arguments = [word for word in router["command"] if not word.startswith("--tokenizer")]
    with subprocess.Popen([BIN / "tandem", *arguments], cwd=tmp_path, env={}) as process:
        try:
            deadline = time.monotonic() + 30
            while True:
                try:
                    assert httpx2.get(f"http://127.0.0.1:{free_port}/livez", trust_env=False).status_code == 200
                    break
                except httpx2.TransportError:
                    assert process.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            probe = [sys.executable, *router["healthcheck"]["test"][2:]]
            assert subprocess.run(probe, env={}).returncode == 0
        finally:
            process.terminate()
    assert subprocess.run(probe, env={}, stderr=subprocess.DEVNULL).returncode == 1


def test_the_repository_s_dockerfile_is_this_release_s() -> None:
    """The one that `tandem compose` writes."""
    assert (Path(__file__).parents[2] / "Dockerfile").read_text() == dockerfile(__version__)


@pytest.mark.process
def test_the_dockerfile_is_clean(tmp_path: Path) -> None:
    """As hadolint sees it; and that sees what is not."""
    path = tmp_path / "Dockerfile"
    path.write_text(dockerfile(__version__))
    ran = subprocess.run([BIN / "hadolint", path], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "")
    path.write_text("FROM python\nRUN sudo cd /\n")
    assert subprocess.run([BIN / "hadolint", path], capture_output=True).returncode == 1
    assert "USER 10001:10001" in dockerfile(__version__)
