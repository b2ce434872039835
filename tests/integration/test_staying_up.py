"""One real engine through all that may befall it: full load, freezing, killing, other settings, a killed service."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tandem.engines.keeper import descendants

from .conftest import SHARED_MEMORY, Service, command, engines, name_of, running, state_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

STALL = 3  # seconds
CONFIG = """
[supervision]
stall_timeout = {stall}
first_pause = 0.5
[engines.embedding]
model = '{model}'
served_model_name = 'mini'
"""


@pytest.fixture(scope="module")
def service(minilm: Path) -> Iterator[Service]:
    """A service with all-MiniLM-L6-v2; each test leaves it ready."""
    with running("up", files={"tandem.toml": CONFIG.format(stall=STALL, model=minilm)}) as service:
        service.until_said("Ready on")
        yield service


def ask(service: Service, texts: int = 1) -> httpx2.Response:
    body = {"model": "mini", "input": ["some longer text to embed " * 20] * texts}
    return httpx2.post(f"{service.address}/v1/embeddings", json=body, trust_env=False, timeout=300)


def ready(service: Service) -> bool:
    return httpx2.get(f"{service.address}/health", trust_env=False, timeout=60).status_code == 200


def processes(service: Service) -> dict[str, int]:
    """Of the engine: the keeper, the API server and EngineCore."""
    server = int(engines(service)["embedding"]["pid"])
    keeper = int(Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[1])
    core = next(pid for pid in descendants(server) if "VLLM::EngineCore" in name_of(pid))
    return {"keeper": keeper, "server": server, "core": core}


def gone(pids: list[int]) -> bool:
    return all(state_of(pid) in ("", "Z") for pid in pids)


def test_a_saturated_engine_is_left_alone(service: Service) -> None:
    """For several times its grace it has more to do than it can; each of its callers gets an answer."""
    with ThreadPoolExecutor(8) as threads:
        asking = [threads.submit(ask, service, 60) for _ in range(8)]
        table = command("status", "--run-dir", str(service.run_dir.path))
        assert {asked.result().status_code for asked in asking} == {200}
    assert table.returncode == 0
    head, row = table.stdout.splitlines()[1:3]
    assert head.split("  ")[0] == "ENGINE"
    assert " GiB " in row
    assert " CPU " in row
    told = engines(service)["embedding"]
    assert (told["restarts"], told["error"]) == (0, "")
    assert told["requests"] > 0


def test_a_frozen_engine_is_replaced_and_who_waited_is_answered(service: Service) -> None:
    """SIGSTOP of EngineCore: vLLM's own health check stays well, and nothing moves."""
    before = processes(service)
    old = [before["server"], *descendants(before["server"])]
    with ThreadPoolExecutor(1) as threads:
        os.kill(before["core"], signal.SIGSTOP)
        asking: Future[httpx2.Response] = threads.submit(ask, service)
        service.until(lambda: engines(service)["embedding"]["restarts"] == 1, "its restart", 60)
        told = engines(service)["embedding"]
        assert "nothing of it has moved" in told["error"]
        assert gone(old)
        assert asking.result().status_code == 200
    service.until(lambda: ready(service), "its return")


def test_a_reload_that_is_refused_or_changes_nothing_leaves_all_as_it_is(service: Service) -> None:
    """Nonsense is named, with the exit code for wrong settings."""
    config = service.output.parent / "tandem.toml"
    good, before = config.read_text(), engines(service)["embedding"]["pid"]
    config.write_text(good + "nonsense = 1\n")
    refused = command("reload", "--run-dir", str(service.run_dir.path))
    assert refused.returncode == 2
    assert "engines.embedding.nonsense in tandem.toml: no such setting" in refused.stderr
    config.write_text(good)
    same = command("reload", "--run-dir", str(service.run_dir.path))
    assert (same.returncode, same.stdout.splitlines()[-1]) == (0, "Left alone: embedding.")
    assert engines(service)["embedding"]["pid"] == before


def test_a_killed_api_server_takes_all_of_its_engine_along_and_a_reload_has_it_back_as_it_is_to_be(
    service: Service,
) -> None:
    """EngineCore and its workers are gone within ten seconds, and what they shared; it is started again by itself, and
    by a reload at once with its new settings. Who asks meanwhile is answered."""
    before = processes(service)
    old = [before["server"], *descendants(before["server"])]
    os.kill(before["server"], signal.SIGKILL)
    service.until(lambda: gone(old), "the end of its engine", 10)
    assert not [path for path in SHARED_MEMORY.iterdir() if str(before["server"]) in path.name]
    service.until(lambda: engines(service)["embedding"]["state"] in {"starting", "loading"}, "its new start", 20)
    config = service.output.parent / "tandem.toml"
    config.write_text(config.read_text() + "max_num_seqs = 8\n")
    with ThreadPoolExecutor(1) as threads:
        reloading = threads.submit(command, "reload", "--run-dir", str(service.run_dir.path), timeout=200)
        service.until(lambda: engines(service)["embedding"]["renewed"], "the reload", 60)
        assert ask(service).status_code == 200
        assert reloading.result().stdout.splitlines()[-1] == "Started anew: embedding."
    assert "--max-num-seqs 8" in name_of(engines(service)["embedding"]["pid"])


def test_what_a_killed_service_and_keeper_leave_is_cleared_by_the_next_start(service: Service) -> None:
    """EngineCore lives on until then."""
    found = processes(service)
    old = [found["server"], *descendants(found["server"])]
    supervisor = service.process.pid
    for pid in (found["keeper"], supervisor):
        os.kill(pid, signal.SIGSTOP)  # so that neither can do anything about the other's end
    for pid in (found["keeper"], supervisor):
        os.kill(pid, signal.SIGKILL)
    service.process.wait(10)
    assert not gone([found["core"]])
    again = Service(service.output.parent, "up", port=service.port)
    try:
        again.until(lambda: gone(old), "the end of the orphans", 60)
        again.until_said("embedding: starting")
        assert again.stop() == 0
    finally:
        again.close()
