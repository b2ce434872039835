"""`tandem serve`: one model alone, behind the same router."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tandem.cli import options


class Kind(StrEnum):
    EMBEDDING = "embedding"
    GENERATION = "generation"


def serve(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="Repository id, folder or hub cache folder.", show_default=False),
    ] = None,
    model_option: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="The same as an option [default: $VLLM_MODEL]."),
    ] = None,
    kind: Annotated[Kind, typer.Option(help="What the model does.")] = Kind.EMBEDDING,
    base_url: Annotated[
        str | None, typer.Option(help="Where clients reach it [default: $VLLM_URL].", show_default=False)
    ] = None,
    host: Annotated[str | None, typer.Option(help="Where to listen [default: the base URL's host].")] = None,
    port: Annotated[int | None, typer.Option(help="The port [default: the base URL's].")] = None,
    hf_cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Root of Hugging Face's cache [default: $HF_HOME].")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline/--no-offline", help="Whether the model hub is never asked.")
    ] = True,
    tensor_parallel_size: Annotated[int, typer.Option(min=1, help="GPUs for the model.")] = 1,
    gpu_memory_utilization: Annotated[float, typer.Option(min=0.01, max=1.0, help="Share of the card.")] = 0.9,
    max_num_batched_tokens: Annotated[int, typer.Option(min=1, help="Tokens in one step.")] = 65536,
    served_model_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="The name that callers use [default: the model].")
    ] = None,
    insecure: options.Insecure = None,
    run_dir: options.RunDir = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Whether to stay until it is ready, and then attached.")
    ] = True,
    print_cmd: Annotated[
        bool, typer.Option("--print-cmd/--no-print-cmd", help="Whether to print the engine's command line.")
    ] = True,
) -> None:
    """Serve one model, an embedding model by default, until Ctrl-C."""
    import os

    from tandem.cli import start
    from tandem.engines import hardware
    from tandem.errors import SettingsError

    if model and model_option and model != model_option:
        raise SettingsError(f"two models are named: {model} and --model {model_option}", "Name one")
    machine_has_gpu = hardware.detect().gpu
    flags = {
        "engines": {
            kind.value: {
                "kind": kind.value,
                "model": model or model_option or os.environ.get("VLLM_MODEL") or start.SERVED_MODEL,
                "served_model_name": served_model_name,
                "memory": gpu_memory_utilization if machine_has_gpu else None,
                "tensor_parallel_size": tensor_parallel_size,
                "max_num_batched_tokens": max_num_batched_tokens,
            }
        },
        "router": start.at_url(base_url or os.environ.get("VLLM_URL") or start.SERVED_URL, host, port)
        | {"insecure": insecure},
        "run_dir": run_dir,
        "hf_home": hf_cache,
        "offline": offline,
    }
    start.start(flags, only={kind.value}, download=not offline, detach=not wait, wait=wait, print_commands=print_cmd)
