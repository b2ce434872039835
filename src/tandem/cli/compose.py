"""`tandem compose`: a Compose file, and the router's Dockerfile."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tandem.deploy.compose import Container, Front
    from tandem.engines.hardware import Hardware
    from tandem.engines.spec import Spec
    from tandem.engines.weights import Cache
    from tandem.settings import Settings

_IMAGE = "vllm/vllm-openai"
_PARALLEL = "--tensor-parallel-size"
_SECRET = re.compile(r"key|token|secret|passw|auth|credential", re.IGNORECASE)
# What is said otherwise in a container, or is about this machine.
_LEFT_OUT = ("TMPDIR", "VLLM_RPC_BASE_PATH", "VLLM_HOST_IP", "PYTHONSAFEPATH", "CUDA_VISIBLE_DEVICES", "LD_PRELOAD")


def compose(
    folder: Annotated[Path, typer.Argument(help="Where to write compose.yaml and Dockerfile.")] = Path(),
    card_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="What the GPU has, such as 24GiB, where this machine has none."),
    ] = None,
    vllm: Annotated[str | None, typer.Option(metavar="VERSION", help="Release of the vLLM image.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Write a Compose file with the router and a container for each engine, and what the router is made of."""
    import os

    from tandem import __version__, settings
    from tandem.deploy import compose as files
    from tandem.engines import hardware, install, weights
    from tandem.errors import SetupError
    from tandem.service import plans

    machine = _with_card(hardware.detect(), card_memory)
    loaded = settings.load(gpu=True)
    found = loaded.settings
    of_router = _settings(found)
    # Every engine has a container, and so an address, of its own.
    engines = {name: engine.model_copy(update={"port": None}) for name, engine in found.engines.items()}
    cache = weights.Cache.find(found.hf_home, os.environ)
    by_name = weights.find_all((engine.model for engine in engines.values()), cache).all()
    models = {name: by_name[engine.model] for name, engine in engines.items()}
    release = vllm or install.pinned("cuda")
    build = install.Vllm(Path("python3"), install.parse_version(release), "cuda")
    plan = plans.prepare(loaded.with_engines(engines), machine, build, models, cache, starting=False)
    text = files.compose(
        [_container(spec, cache) for spec in plan.specs],
        _front(found),
        image=f"{_IMAGE}:v{release}",
    )
    written = {
        folder / "compose.yaml": text,
        folder / files.SETTINGS: files.settings(of_router),
        folder / "Dockerfile": files.dockerfile(__version__),
    }
    for path in written:
        if path.exists() and not force:
            raise SetupError(f"{path} is there already", "Name another folder, or replace it with --force")
    for path, content in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        typer.echo(f"Wrote {path}")
    typer.echo("Start it with `docker compose up --build -d`.")


def _with_card(machine: "Hardware", memory: str | None) -> "Hardware":
    from dataclasses import replace

    from tandem.engines.hardware import Card
    from tandem.errors import SettingsError
    from tandem.settings import Memory

    if memory is None:
        if not machine.gpu:
            raise SettingsError(
                "this machine has no NVIDIA GPU to plan for", "Say what the GPU has, such as --card-memory 24GiB"
            )
        return machine
    try:
        size = Memory.parse(memory).bytes
    except ValueError:
        size = None
    if size is None:
        raise SettingsError(f"--card-memory {memory} is no amount", "Write it as 24GiB")
    return replace(machine, cards=(Card(0, "GPU", size, size, ""),))


def _container(spec: "Spec", cache: "Cache") -> "Container":
    from tandem.deploy.compose import Container

    model = Path(spec.engine.tokenizer)
    # A model in the cache is links into a folder beside it.
    mount = model.parent.parent if cache.hub in model.parents else model
    argv = spec.launch.argv
    parallel = int(argv[argv.index(_PARALLEL) + 1]) if _PARALLEL in argv else 1
    visible = spec.launch.env.get("CUDA_VISIBLE_DEVICES")
    environment = {
        # Whoever may read the file need not read secrets: Compose takes them from its own environment.
        name: f"${{{name}}}" if _SECRET.search(name) else value.replace("$", "$$")
        for name, value in spec.launch.env.items()
        if name not in _LEFT_OUT and not name.startswith(("HF_", "HUGGINGFACE_"))
    }
    return Container(
        name=spec.engine.name,
        argv=argv,
        model=model,
        mount=mount,
        environment=environment,
        cards=visible.split(",") if visible else [str(card) for card in range(parallel)],
        tokenizer=spec.engine.kind == "embedding" and (model / "tokenizer.json").is_file(),
    )


def _front(found: "Settings") -> "Front":
    from tandem.deploy.compose import Front

    router = found.router
    keys = router.api_keys_file.absolute() if router.api_keys_file else None
    # A secret keeps its owner and mode in the container.
    owner = keys.stat() if keys else None
    user = {"user": f"{owner.st_uid}:{owner.st_gid}"} if owner and owner.st_uid else {}
    return Front(
        host=router.host,
        port=router.port,
        keys=keys,
        guarded=router.keys,
        drain_timeout=router.drain_timeout,
        environment={"TANDEM_API_KEY": router.api_key} if router.api_key else {},  # its hash
        **user,
    )


def _settings(found: "Settings") -> dict[str, dict[str, object]]:
    """All that the router heeds and the Compose file does not say."""
    from tandem.errors import SettingsError

    if found.router.tls_cert:
        raise SettingsError(
            "router.tls_cert does not go into a container", "Unset it, and have a proxy in front of the router end TLS"
        )
    said = {"host", "port", "insecure", "api_key", "api_keys_file"}
    top = found.model_dump(mode="json", exclude_defaults=True, include={"log_level", "log_format"})
    router = found.router.model_dump(mode="json", exclude_defaults=True, exclude=said)
    return {"": top, "router": router, "api": found.api.model_dump(mode="json", exclude_defaults=True)}
