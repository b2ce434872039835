"""How fast the demo's embedding model is on a CPU: plain transformers, a stock vLLM server, and `tandem serve`.

All three in one run, one at a time: the same texts of twelve words, none of them twice. Transformers computes batches
of 64 in the engines' environment, in the number format that the processor is fast in; vLLM's own server has its
defaults, Tandem's is out of the box. Both are asked in two ways, for as long. Usage:
``python benchmarks/cpu_speed.py [SECONDS]``.
"""

import asyncio
import itertools
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import report
from bring_up import TANDEM, end, start, until_healthy

from tandem.bench.connection import Address, Connection
from tandem.engines import hardware, install
from tandem.engines.process import free_port

WORDS = 12
BATCH = 64
DIMENSIONS = 384
# Clients, and texts in each of their requests.
LOADS = {"64 clients, 1 text each": (64, 1), "2 clients, 64 texts each": (2, BATCH)}
WARM_UP = 2.0
TIMEOUT = 120.0
AIM_STOCK, AIM_TRANSFORMERS = 8.0, 0.75

# Run by the engines' interpreter: Tandem's own has neither torch nor transformers.
PLAIN = """
import json, sys, time
import torch
from transformers import AutoModel, AutoTokenizer
folder, dtype, seconds = sys.argv[1], getattr(torch, sys.argv[2]), float(sys.argv[3])
texts = json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModel.from_pretrained(folder, dtype=dtype).eval()

@torch.inference_mode()
def embed(batch):
    tokens = tokenizer(batch, padding=True, truncation=True, return_tensors="pt")
    hidden = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).float().tolist()

embed(texts[:64])
done, began = 0, time.monotonic()
while (taken := time.monotonic() - began) < seconds:
    at = done % (len(texts) - 64)
    embed(texts[at:at + 64])
    done += 64
print(done / taken)
"""


def main() -> None:
    """Measure the three, one after the other, and print the table and what it says of the aims."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 15.0
    machine = hardware.detect()
    vllm = install.find(None)
    if vllm.build != "cpu" or vllm.demo is None:
        raise SystemExit("This measures vLLM's CPU build with the demo's model: run `tandem install` without a GPU")
    plain = transformers(vllm, machine.fast_cpu_dtype, seconds)
    stock = with_server(stock_command(vllm), seconds, environment={"VLLM_CPU_KVCACHE_SPACE": "1"})
    ours = with_server(tandem_command(vllm), seconds)
    print(f"{vllm} on {machine}; {platform.machine()}, {os.cpu_count()} cores; {seconds:g} s each")
    print(table(plain, stock, ours))
    print(verdict(plain, stock, ours))


def texts(seed: int) -> Iterator[str]:
    """Texts of twelve words without end, no two the same."""
    chance = random.Random(seed)  # noqa: S311 - it guards nothing
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(40)]
    common = ["time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school"]
    for number in itertools.count():
        yield " ".join([*chance.choices(common, k=WORDS - 2), words[number % 40], str(number % 10_000)])


def transformers(vllm: install.Vllm, dtype: str, seconds: float) -> float:
    """Texts/s of plain transformers in batches of 64."""
    given = json.dumps(list(itertools.islice(texts(0), 20_000)))
    command = [str(vllm.python), "-c", PLAIN, str(vllm.demo), dtype, str(seconds)]
    ran = subprocess.run(command, input=given, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"transformers failed: {ran.stderr[-2000:]}")
    return float(ran.stdout)


def stock_command(vllm: install.Vllm) -> list[str]:
    """vLLM's own server with its defaults, as far as a CPU lets it start with them."""
    server = [str(vllm.python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(vllm.demo)]
    return [*server, "--served-model-name", "minilm", "--runner", "pooling", "--convert", "embed"]


def tandem_command(vllm: install.Vllm) -> list[str]:
    """The embedding model alone, out of the box."""
    return [str(TANDEM), "serve", str(vllm.demo), "--served-model-name", "minilm"]


def with_server(command: list[str], seconds: float, environment: dict[str, str] | None = None) -> dict[str, float]:
    """Texts/s under each load, of a server that is started for it and ended after it."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="tandem-") as folder:
        flags = ["--host", "127.0.0.1", "--port", str(port)]
        if command[0] == str(TANDEM):
            flags += ["--run-dir", str(Path(folder) / "run")]
        running = start([*command, *flags], {**os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})})
        try:
            until_healthy(f"http://127.0.0.1:{port}/health", running)
            return {name: asyncio.run(rate(port, *load, seconds)) for name, load in LOADS.items()}
        finally:
            end([running])


async def rate(port: int, clients: int, size: int, seconds: float) -> float:
    """Texts/s of so many clients that each ask for ``size`` texts, again once they are answered."""
    address = Address(f"http://127.0.0.1:{port}/v1")
    begin = time.monotonic() + WARM_UP
    over = begin + seconds
    done = 0

    async def client(number: int) -> None:
        nonlocal done
        mine = texts(number + 1)
        connection: Connection | None = None
        while time.monotonic() < over:
            if connection is None or not connection.reusable:
                _, connection = await asyncio.get_running_loop().create_connection(
                    Connection, address.host, address.port
                )
            asked = {"model": "minilm", "input": list(itertools.islice(mine, size)), "encoding_format": "base64"}
            answer = await connection.ask(address.message("POST", "/embeddings", json.dumps(asked).encode()), TIMEOUT)
            if answer.status != 200:
                raise SystemExit(f"an answer was {answer.status}: {answer.body[:300]!r} {answer.failure or ''}")
            check(answer.body, size)
            if begin <= time.monotonic() < over:
                done += size

    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(client(number))
    return done / seconds


def check(body: bytes, size: int) -> None:
    """End the run over an answer without as many whole vectors as texts."""
    whole = -(-DIMENSIONS * 4 // 3) * 4  # base64 of float32
    vectors = body.count(b'"embedding":"') or body.count(b'"embedding": "')
    if vectors != size or len(body) < size * whole:
        raise SystemExit(f"{vectors} vectors for {size} texts in {len(body)} bytes: {body[:300]!r}")


def table(plain: float, stock: dict[str, float], ours: dict[str, float]) -> str:
    """Texts/s, and Tandem's as multiples of the others'."""
    rows = [
        [
            name,
            f"{stock[name]:,.0f}",
            f"{ours[name]:,.0f}",
            f"{ours[name] / stock[name]:.1f}",
            f"{ours[name] / plain:.2f}",
        ]
        for name in stock
    ]
    rows.append([f"transformers, batches of {BATCH}", "", f"{plain:,.0f}", "", "1.00"])
    return report.table(["texts/s", "stock vLLM", "tandem serve", "to stock", "to transformers"], rows)


def verdict(plain: float, stock: dict[str, float], ours: dict[str, float]) -> str:
    """Whether the aims are met: by the better way of asking Tandem, against the same way and against transformers."""
    best = max(ours, key=lambda name: ours[name])
    to_stock, to_plain = ours[best] / stock[best], ours[best] / plain
    met = to_stock >= AIM_STOCK and to_plain >= AIM_TRANSFORMERS
    return (
        f"{best}: {to_stock:.1f} times stock vLLM (aim {AIM_STOCK:g}), {to_plain:.2f} of transformers "
        f"(aim {AIM_TRANSFORMERS:g}): {'met' if met else 'not met'}"
    )


if __name__ == "__main__":
    main()
