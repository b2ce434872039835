"""Starting and ending: by every signal, at every moment, nothing is left."""

import json
import os
import pty
import select
import signal
import subprocess
import time
from pathlib import Path

import httpx2
import pytest

from tandem.engines.process import free_port
from tandem.rundir import RunDir

from .conftest import TANDEM, clean_environment, command, running, state_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


def test_an_engine_that_exits_during_start_ends_the_service(minilm: Path) -> None:
    """One line with the cause and the mend, exit code 1, and nothing left."""
    config = f"[engines.embedding]\nmodel = '{minilm}'\nargs = ['--no-such-flag']\n"
    with running("up", files={"tandem.toml": config}) as service:
        service.until(lambda: service.process.poll() is not None, "its end")
        assert service.process.returncode == 1
        assert service.said.splitlines()[-1] == (
            "error: embedding: this vLLM does not know the argument --no-such-flag. Mend the engine's args. "
            f"Its log is {service.run_dir.log('embedding')}; `tandem doctor` checks the machine"
        )
        service.check_gone()


def test_ctrl_c_during_the_start_ends_it(minilm: Path, short_path: Path) -> None:
    """On a terminal: a live table while it starts, and Ctrl-C ends it at once."""
    run_dir = RunDir(short_path / "run")
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(short_path)
        arguments = ["up", "--demo", "--port", str(free_port()), "--run-dir", str(run_dir.path)]
        os.execve(TANDEM, ["tandem", *arguments], {**clean_environment(), "TERM": "xterm", "COLUMNS": "120"})
    said = b""
    try:
        while b"starting Python and vLLM" not in said:
            assert select.select([terminal], [], [], 60)[0], said
            said += os.read(terminal, 4096)
        assert b"waiting" not in said  # on a CPU sizes are known before
        os.write(terminal, b"\x03")
        while select.select([terminal], [], [], 60)[0]:
            try:
                said += os.read(terminal, 4096)
            except OSError:  # the terminal's end
                break
        code, pid = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(terminal)
    assert code == 0
    assert b"Stopped." in said
    assert not run_dir.socket.exists()
    assert not run_dir.alive()


def test_serve_from_start_to_kill(minilm: Path, tmp_path: Path) -> None:
    """`tandem serve` of a hub cache folder: in the background, base URL, both health routes, command without secrets;
    then the supervisor is killed, and nothing of the engine or the router outlives it."""
    cached = tmp_path / "models--sentence-transformers--all-MiniLM-L6-v2"
    (cached / "snapshots").mkdir(parents=True)
    (cached / "snapshots" / "abc").symlink_to(minilm)
    with running("serve", str(cached), "--no-wait", "--hf-cache", str(tmp_path / "hf")) as service:
        assert service.process.wait(60) == 0
        assert "--served-model-name sentence-transformers/all-MiniLM-L6-v2 --host 127.0.0.1" in service.said
        assert (
            f"HF_HUB_CACHE={tmp_path}/hf/hub HUGGINGFACE_HUB_CACHE={tmp_path}/hf/hub HF_HUB_OFFLINE=1" in service.said
        )
        assert "--max-num-batched-tokens 65536" in service.said
        assert "tandem stop --run-dir" in service.said
        with httpx2.Client(base_url=service.address, trust_env=False, timeout=60) as http:
            early = http.post("/v1/embeddings", json={"model": "embedding", "input": "a"})
            assert (early.status_code, early.json()["error"]["code"]) == (503, "model_not_ready")
            assert int(early.headers["retry-after"]) > 0
            assert command("status", "--run-dir", str(service.run_dir.path)).returncode == 3
            service.until(lambda: http.get("/health").status_code == 200, "health")
            assert http.get("/v1/health").status_code == 200
            model = "sentence-transformers/all-MiniLM-L6-v2"
            got = http.post("/v1/embeddings", json={"model": model, "input": "a"}).json()
            assert (got["model"], len(got["data"][0]["embedding"])) == (model, 384)
        supervisor = service.run_dir.pid()
        assert supervisor is not None
        service.pids()
        os.kill(supervisor, signal.SIGKILL)
        service.until(lambda: not service._alive(), "the end of all its processes", 10)
        assert service.run_dir.alive() is False


def test_detached_until_stopped(minilm: Path) -> None:
    """`tandem up -d` returns once all is ready; requests in flight finish when `tandem stop` comes."""
    config = f"[engines.embedding]\nmodel = '{minilm}'\nserved_model_name = 'mini'\n"
    with running("up", "-d", files={"tandem.toml": config}) as service:
        assert service.process.wait(300) == 0
        assert f"Ready on {service.address}/v1 (embedding: mini)" in service.said
        assert state_of(service.run_dir.pid() or 0) not in ("", "Z")
        texts = ["some longer text to embed " * 8] * 400
        with subprocess.Popen(
            [
                *("curl", "--silent", "--max-time", "60", f"{service.address}/v1/embeddings"),
                *("-H", "Content-Type: application/json", "-d", json.dumps({"model": "mini", "input": texts})),
            ],
            stdout=subprocess.PIPE,
        ) as asking:
            time.sleep(0.5)
            stopped = command("stop", "--run-dir", str(service.run_dir.path), timeout=90)
            assert stopped.returncode == 0
            assert asking.stdout is not None
            assert len(json.loads(asking.stdout.read())["data"]) == 400
        service.check_gone()


def test_a_detached_start_that_fails_says_why(minilm: Path) -> None:
    config = f"[engines.embedding]\nmodel = '{minilm}'\nmax_model_len = 100000\n"
    with running("up", "-d", files={"tandem.toml": config}) as service:
        assert service.process.wait(300) == 1
        assert service.said.splitlines()[-1] == (
            "error: embedding: max_model_len 100000 is more than the model's own 256. Lower or drop max_model_len. "
            f"Its log is {service.run_dir.log('embedding')}; `tandem doctor` checks the machine"
        )
        service.check_gone()
