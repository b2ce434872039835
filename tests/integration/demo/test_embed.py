"""`tandem embed` through the service that runs on this machine."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tandem import VLLMClient, VLLMConfig

from ...client.suite import near
from ..conftest import TANDEM, Service, clean_environment, command

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


def test_a_file_through_the_running_service(demo: Service, tmp_path: Path) -> None:
    """It is found by its run folder; a text longer than the model takes is listed with its line; vectors are ours."""
    texts = [f"text number {i} " + "and more " * (i % 9) for i in range(300)]
    source, out, bad = tmp_path / "in.jsonl", tmp_path / "out.parquet", tmp_path / "bad.jsonl"
    lines = [json.dumps({"key": f"k{i}", "body": text}) for i, text in enumerate(texts)]
    lines[123] = json.dumps({"key": "long", "body": "word " * 2000})
    source.write_text("\n".join(lines))
    options = ("--run-dir", str(demo.run_dir.path), "--field", "body", "--id", "key", "--with-text", "--normalize")
    refused = command("embed", str(source), str(out), *options)
    assert refused.returncode == 1
    assert "in.jsonl, line 124: " in refused.stderr
    assert 'field "body"' in refused.stderr or "maximum context length" in refused.stderr
    ran = command("embed", str(source), str(out), *options, "--skip-bad", str(bad))
    assert ran.returncode == 0, ran.stderr
    assert f"299 vectors are in {out}; 1 bad rows are in {bad}." in ran.stdout
    assert json.loads(bad.read_text())["line"] == 124
    found = pq.read_table(out)
    assert found.schema.metadata[b"tandem.weights"] == b"all-MiniLM-L6-v2"
    kept = [i for i in range(300) if i != 123]
    assert found.column("id").to_pylist() == [f"k{i}" for i in kept]
    vectors = found.column("vector").combine_chunks().flatten().to_numpy().reshape(299, 384)
    with VLLMClient(VLLMConfig(base_url=f"{demo.address}/v1", model="embedding", normalize=True)) as client:
        near(vectors, client.embed_chunks([texts[i] for i in kept]))


def test_standard_input(demo: Service, tmp_path: Path) -> None:
    """Lines from a pipe into an array."""
    out = tmp_path / "out.npy"
    ran = subprocess.run(
        [TANDEM, "embed", "-", out, "--format", "lines", "--base-url", demo.address, "--model", "all-MiniLM-L6-v2"],
        input="a text\nanother\n",
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    assert np.load(out).shape == (2, 384)
