"""A Compose file with the router and a container for each engine, the router's settings and its Dockerfile. Pure: text
out.

Sources: https://github.com/compose-spec/compose-spec, https://docs.vllm.ai/en/latest/deployment/docker/.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROUTER = "router"
PORT = 8000  # of each engine, on the network that only the router shares with it
UID = 10001
SETTINGS = "router.toml"  # beside the Compose file
_MODELS = "/models"
_STARTING = "30m"  # that an engine may take; what is asked of it meanwhile does not count against its health


@dataclass(frozen=True)
class Container:
    """One engine.

    Attributes:
        name: the engine's, and the container's.
        argv: its command line on a machine, the model's folder within (:mod:`tandem.engines.launch`).
        model: the model's folder.
        mount: the folder to mount for it: the model's own, or that of the cache that its links lead into.
        environment: what it needs of the environment.
        cards: the GPUs it may see, as NVIDIA counts them.
        tokenizer: whether the router merges requests for it, for which it needs the model's tokenizer.
    """

    name: str
    argv: Sequence[str]
    model: Path
    mount: Path
    environment: Mapping[str, str]
    cards: Sequence[str]
    tokenizer: bool

    @property
    def inside(self) -> str:
        """The model's folder as the containers see it."""
        return f"{_MODELS}/{self.name}/{self.model.relative_to(self.mount)}".removesuffix("/.")


@dataclass(frozen=True)
class Front:
    """The router.

    Attributes:
        host: where this machine listens for it.
        port: likewise.
        keys: the file with callers' keys, if there is one.
        guarded: whether callers need a key; else everyone is let in who reaches ``host``.
        drain_timeout: seconds that requests in flight get when it stops.
        environment: its settings that are secrets.
        user: whom it runs as.
    """

    host: str
    port: int
    keys: Path | None
    guarded: bool
    drain_timeout: float
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str = f"{UID}:{UID}"


def compose(engines: Sequence[Container], front: Front, *, image: str) -> str:
    """The Compose file.

    Args:
        image: the engines', such as ``vllm/vllm-openai:v0.32.0``.
    """
    services: dict[str, Any] = {}
    for number, engine in enumerate(engines):
        before = engines[number - 1].name if number else None
        services[engine.name] = _engine(engine, image, before, front.drain_timeout)
    services[ROUTER] = _router(engines, front)
    document = {
        "name": "tandem",
        "services": services,
        # Engines reach nothing but the router: they need no hub, and nobody else needs them.
        "networks": {"engines": {"internal": True}, "callers": {}},
        "volumes": {f"{engine.name}-cache": {} for engine in engines},
        **({"secrets": {"keys": {"file": str(front.keys)}}} if front.keys else {}),
    }
    body = yaml.safe_dump(document, sort_keys=False, width=120, default_flow_style=False)
    return f"{_HEAD}\n{body}"


def settings(tables: Mapping[str, Mapping[str, object]]) -> str:
    """The tandem.toml that the router reads, by tables; a table "" holds what stands before all others.

    Args:
        tables: of numbers, texts, truth values and lists of texts, whose JSON is TOML.
    """
    lines = ["# The router's settings, as far as they are not the defaults and compose.yaml does not say them."]
    for table, values in tables.items():
        lines += [f"[{table}]"] * bool(table and values)
        lines += [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
    return "\n".join(lines) + "\n"


def dockerfile(version: str) -> str:
    """The router's Dockerfile, which installs this release of Tandem unless it is told of another source."""
    return _DOCKERFILE.format(version=version, uid=UID)


def _engine(engine: Container, image: str, before: str | None, drain_timeout: float) -> dict[str, Any]:
    return {
        "image": image,
        "entrypoint": ["vllm", "serve"],
        "command": [_plain(word) for word in _in_container(engine)],
        "environment": {
            "HF_HUB_OFFLINE": "1",
            **engine.environment,
        },
        "volumes": [
            {"type": "bind", "source": str(engine.mount), "target": f"{_MODELS}/{engine.name}", "read_only": True},
            {"type": "volume", "source": f"{engine.name}-cache", "target": "/root/.cache"},  # what it compiles
        ],
        "networks": ["engines"],
        "shm_size": "2gb",
        "deploy": {
            "resources": {
                "reservations": {
                    "devices": [{"driver": "nvidia", "device_ids": list(engine.cards), "capabilities": ["gpu"]}]
                }
            }
        },
        "healthcheck": _health(f"http://127.0.0.1:{PORT}/health", "python3", start_period=_STARTING),
        # One after the other: engines that measure a card's memory together charge each other's to themselves.
        **({"depends_on": {before: {"condition": "service_healthy"}}} if before else {}),
        "restart": "unless-stopped",
        "stop_grace_period": f"{drain_timeout + 10:.0f}s",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
    }


def _router(engines: Sequence[Container], front: Front) -> dict[str, Any]:
    merged = [engine for engine in engines if engine.tokenizer]
    return {
        "build": {"context": "."},
        "command": [
            "router",
            *("--host", "0.0.0.0", "--port", str(front.port)),  # noqa: S104 - what is published below decides
            *(f"--engine={engine.name}=http://{engine.name}:{PORT}" for engine in engines),
            *(f"--tokenizer={engine.name}={engine.inside}" for engine in merged),
            # The address on which this machine listens guards it, or the keys do.
            *([] if front.guarded else ["--insecure"]),
        ],
        "environment": {
            "TANDEM_CONFIG": f"/etc/tandem/{SETTINGS}",
            **front.environment,
            **({"TANDEM_API_KEYS_FILE": "/run/secrets/keys"} if front.keys else {}),
        },
        "ports": [f"{front.host}:{front.port}:{front.port}"],
        "volumes": [
            {"type": "bind", "source": f"./{SETTINGS}", "target": f"/etc/tandem/{SETTINGS}", "read_only": True},
            *(
                {"type": "bind", "source": str(engine.mount), "target": f"{_MODELS}/{engine.name}", "read_only": True}
                for engine in merged
            ),
        ],
        **({"secrets": ["keys"]} if front.keys else {}),
        "networks": ["engines", "callers"],
        # It is there from the first moment, and tells callers how far the engines are.
        "depends_on": {engine.name: {"condition": "service_started"} for engine in engines},
        "healthcheck": _health(f"http://127.0.0.1:{front.port}/livez", "python", start_period="30s"),
        "restart": "unless-stopped",
        "stop_grace_period": f"{front.drain_timeout + 10:.0f}s",
        "user": front.user,
        "read_only": True,
        "tmpfs": ["/tmp"],  # noqa: S108 - the container's own
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
    }


def _health(url: str, python: str, *, start_period: str) -> dict[str, Any]:
    """Asked with the Python that is there anyway; small images have no curl."""
    ask = f"import urllib.request; urllib.request.urlopen('{url}', timeout=5)"
    return {
        "test": ["CMD", python, "-c", ask],
        "interval": "10s",
        "timeout": "10s",
        "retries": 3,
        "start_period": start_period,
        "start_interval": "2s",
    }


def _in_container(engine: Container) -> list[str]:
    """The command line behind `vllm serve`, with the model and the address as they are in the container."""
    after = list(engine.argv[list(engine.argv).index(str(engine.model)) + 1 :])
    for flag, value in {"--host": "0.0.0.0", "--port": str(PORT)}.items():  # noqa: S104 - a network of its own
        after[after.index(flag) + 1] = value
    return [engine.inside, *after]


def _plain(word: str) -> str:
    """Compose would replace what begins with ``$``."""
    return word.replace("$", "$$")


_HEAD = """\
# Tandem's router, and a vLLM server for each engine, on NVIDIA GPUs (the NVIDIA Container Toolkit makes them visible).
# Made by `tandem compose`, from the settings and the models of the machine it ran on: `docker compose up --build -d`.
"""

_DOCKERFILE = """\
# Tandem's router. In a clone: docker build --build-arg TANDEM="/context[server]" -t tandem-router .
# With a compiler, for what is installed from source.
FROM python:3.13 AS build
ARG TANDEM="vllm-tandem[server]=={version}"
# What only engines need is left out again.
RUN --mount=type=bind,target=/context,rw \\
    python -m venv /tandem \\
    && /tandem/bin/pip install --no-cache-dir "$TANDEM" \\
    && /tandem/bin/pip uninstall --yes uv pip

FROM python:3.13-slim
COPY --from=build /tandem /tandem
ENV PATH=/tandem/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
WORKDIR /tmp
# It writes nothing, and needs no rights: run it with --read-only and --cap-drop=ALL.
USER {uid}:{uid}
EXPOSE 8200
ENTRYPOINT ["tandem"]
CMD ["router", "--help"]
"""
