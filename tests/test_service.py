"""The supervisor's process with fake engines and a real router: whatever happens, it ends, and nothing is left."""

import asyncio
import json
import os
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import httpx2
import msgspec
import pytest

from tandem import control, service
from tandem.engines import engine as engine_module
from tandem.engines.engine import Spec
from tandem.engines.footprints import Seen
from tandem.engines.hardware import Card, Hardware
from tandem.engines.install import Vllm
from tandem.engines.keeper import descendants
from tandem.engines.planning.needs import Parts
from tandem.engines.planning.shares import Share
from tandem.engines.weights import Cache, Model
from tandem.errors import EngineError, SettingsError, SetupError
from tandem.fleet import Fleet, Kind, State
from tandem.rundir import RunDir
from tandem.service import Plan
from tandem.settings import ApiSettings, RouterSettings, load

from .engines.fakes import fake_spec, gone
from .engines.test_orphans import left_behind

pytestmark = pytest.mark.process


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_POLL", 0.01)


@pytest.fixture
def folder(short_path: Path) -> Iterator[Path]:
    """The run folder; after the test there may be nothing in it but logs."""
    yield short_path / "run"
    assert {path.name for path in (short_path / "run").iterdir()} <= {"logs"}


def plan(folder: Path, port: int, *flags: str, kind: Kind = "embedding") -> Plan:
    run_dir = RunDir(folder)
    router = RouterSettings(port=port, drain_timeout=2)
    return Plan(
        (fake_spec(folder.parent, "embedding", *flags, kind=kind),),
        router,
        ApiSettings(),
        run_dir,
        "info",
        "console",
        Path("/no/python"),
    )


async def nothing() -> None:
    pass


@asynccontextmanager
async def running(wanted: Plan, fleet: Fleet) -> AsyncIterator[asyncio.Task[None]]:
    """The service, once its engine is ready."""
    task = asyncio.create_task(service.run(wanted, fleet, nothing))
    async with asyncio.timeout(20):
        async for snapshot in fleet.snapshots():
            if snapshot.ready:
                break
    yield task


def command_of(file: Path) -> bytes:
    """A command line from /proc; empty when the process is gone."""
    try:
        return file.read_bytes()
    except OSError:
        return b""


async def healthy(client: httpx2.AsyncClient, status: int = 200) -> None:
    """Wait until the router says so."""
    async with asyncio.timeout(20):
        while True:
            try:
                if (await client.get("/health")).status_code == status:
                    return
            except httpx2.TransportError:
                pass
            await asyncio.sleep(0.05)


async def test_it_serves_until_it_is_told_to_stop(folder: Path, free_port: int) -> None:
    """By `tandem stop`'s own words; engine and router are gone, the port is free."""
    fleet = Fleet()
    wanted = plan(folder, free_port)
    async with running(wanted, fleet) as serving, httpx2.AsyncClient(base_url=wanted.address) as client:
        await healthy(client)
        pid = fleet.now.engines[0].pid
        async with control.ask(wanted.run_dir, "stop") as conversation:
            states = [snapshot.engines[0].state async for snapshot in conversation.snapshots()]
        await asyncio.wait_for(serving, 20)
    assert states[-1] is State.STOPPED
    assert pid is not None
    assert await gone(pid)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", free_port)) != 0


async def test_systemd_hears_of_it(folder: Path, free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """That it lives, is ready, and stops, in this order."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(folder.parent / "notify"))
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(folder.parent / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "100000")
        fleet = Fleet()
        wanted = plan(folder, free_port)
        async with running(wanted, fleet) as serving, control.ask(wanted.run_dir, "stop") as conversation:
            async for _ in conversation.snapshots():
                pass
            await asyncio.wait_for(serving, 20)
        heard = []
        with suppress(BlockingIOError):
            while True:
                heard.append(manager.recv(4096).decode().split("\n")[0])
    said = [message for message in dict.fromkeys(heard) if not message.startswith("STATUS")]
    assert said == ["WATCHDOG=1", "READY=1", "STOPPING=1"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_is_heeded_even_while_readiness_is_announced(number: int, folder: Path, free_port: int) -> None:
    """Whatever the announcement waits for."""
    announced = asyncio.Event()

    async def forever() -> None:
        announced.set()
        await asyncio.Event().wait()

    serving = asyncio.create_task(service.run(plan(folder, free_port), Fleet(), forever))
    await asyncio.wait_for(announced.wait(), 20)
    os.kill(os.getpid(), number)
    await asyncio.wait_for(serving, 20)


async def test_the_second_signal_ends_it_at_once(folder: Path, free_port: int) -> None:
    """An engine that takes its time to stop is killed."""
    async with running(plan(folder, free_port, "--slow-stop", "60"), Fleet()) as serving:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(serving, 10)


async def test_the_port_is_open_while_engines_start(folder: Path, free_port: int) -> None:
    """Health says what they are at; the port on which an engine will listen is nobody else's."""
    wanted = plan(folder, free_port, "--slow-start", "60")
    serving = asyncio.create_task(service.run(wanted, Fleet(), nothing))
    async with httpx2.AsyncClient(base_url=wanted.address) as client:
        await healthy(client, 503)
        told = (await client.get("/health")).json()["services"]["embedding"]
        assert told["status"] in {"starting", "loading"}
        engines_port = httpx2.URL(wanted.specs[0].engine.url).port
        assert engines_port
        assert service._port(engines_port, "another", (), asked=False) != engines_port
        refused = await client.post("/v1/embeddings", json={"model": "embedding", "input": "a"})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    async with control.ask(wanted.run_dir, "stop"):
        await asyncio.wait_for(serving, 20)


async def test_callers_are_told_when_to_come_again_by_the_last_start(folder: Path, free_port: int) -> None:
    """Health has the phase, the time since the start began, what the last one took, and the last line."""
    wanted = plan(folder, free_port, "--slow-start", "60")
    wanted = replace(wanted, specs=(replace(wanted.specs[0], took=45.0),))
    serving = asyncio.create_task(service.run(wanted, Fleet(), nothing))
    async with httpx2.AsyncClient(base_url=wanted.address) as client:
        await healthy(client, 503)
        async with asyncio.timeout(20):
            while "last_line" not in (told := (await client.get("/health")).json()["services"]["embedding"]):
                await asyncio.sleep(0.1)
        assert (told["status"], told["detail"], told["estimate"]) == ("loading", "loading weights", 45.0)
        assert told["last_line"] == "INFO Starting to load model x..."
        assert 0 < told["elapsed"] < 45
        refused = await client.post("/v1/embeddings", json={"model": "embedding", "input": "a"})
        assert refused.status_code == 503
        assert 30 < int(refused.headers["retry-after"]) <= 45
    async with control.ask(wanted.run_dir, "stop"):
        await asyncio.wait_for(serving, 20)


async def test_a_failed_start_ends_it(folder: Path, free_port: int) -> None:
    with pytest.raises(EngineError, match=r"embedding: ValueError: bad luck\. Its log is "):
        await asyncio.wait_for(
            service.run(plan(folder, free_port, "--fail", "ValueError: bad luck"), Fleet(), nothing), 20
        )


async def test_the_next_start_clears_what_a_killed_service_left(
    folder: Path, free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Supervisor and keeper were killed together: of the engine its grandchild lives on until then."""
    (server, grandchild), engine = await left_behind(RunDir(folder))
    wanted = plan(folder, free_port)
    async with running(wanted, Fleet()) as serving:
        assert await gone(server, grandchild)
        assert f"cleared 1 processes that an earlier service on {folder} left behind" in caplog.text
        async with control.ask(wanted.run_dir, "stop"):
            await asyncio.wait_for(serving, 20)
    await asyncio.wait_for(engine.wait(), 10)
    (folder / "embedding.log").unlink()


async def test_a_taken_port_ends_it_before_anything_starts(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SetupError, match=f"port {port} on 127.0.0.1 is taken"):
            await service.run(plan(folder, port), Fleet(), nothing)


async def test_a_router_that_cannot_run_ends_it(folder: Path, free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its last words; one death alone is mended (shown with real engines)."""
    monkeypatch.setattr(service, "_ROUTER", ("-c", "raise SystemExit('no luck today')"))
    with pytest.raises(SetupError, match="the router ended 5 times in a row; its last words: no luck today"):
        await asyncio.wait_for(service.run(plan(folder, free_port), Fleet(), nothing), 30)


async def test_a_killed_router_is_replaced_by_one_that_was_loaded_before(
    folder: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a spare one that was killed, by one that is loaded then; in the end none of them is left."""
    monkeypatch.setattr(service, "_ROUTER_SETTLED", 0.0)
    wanted = plan(folder, free_port)

    async def routers(count: int) -> list[int]:
        """The oldest of them serves."""
        async with asyncio.timeout(20):
            while True:
                living = [(pid, Path(f"/proc/{pid}/cmdline")) for pid in descendants(os.getpid())]
                found = [pid for pid, command in living if b"tandem.router" in command_of(command)]
                if len(found) == count:
                    return found
                await asyncio.sleep(0.02)

    async with running(wanted, Fleet()) as serving, httpx2.AsyncClient(base_url=wanted.address) as client:
        await healthy(client)
        first, spare = await routers(2)
        os.kill(first, signal.SIGKILL)
        await healthy(client)
        now, _ = await routers(2)
        assert now == spare
        os.kill((await routers(2))[1], signal.SIGKILL)
        assert (await routers(1)) == [now]
        os.kill(now, signal.SIGKILL)
        await healthy(client)
        last = await routers(2)
        async with control.ask(wanted.run_dir, "stop"):
            await asyncio.wait_for(serving, 20)
    assert await gone(first, spare, now, *last)


async def changed(wanted: Plan, verb: control.Verb, engine: str = "") -> tuple[str, ...] | None:
    """What the running service said of it, once it was done."""
    async with control.ask(wanted.run_dir, verb, engine) as conversation:
        async for _ in conversation.snapshots():
            pass
        return conversation.said


async def test_a_restart_of_replicas_under_load_drops_nothing(folder: Path, free_port: int) -> None:
    """Callers who ask all the while get an answer each; one replica alone can be named, too."""
    first = plan(folder, free_port, kind="generation")
    (spec,) = first.specs
    other = fake_spec(folder.parent, "embedding-2", kind="generation")
    other = replace(other, engine=msgspec.structs.replace(other.engine, replica_of="embedding"), sized=True)
    wanted = replace(first, specs=(replace(spec, sized=True), other))
    fleet, statuses = Fleet(), Counter[int]()
    async with running(wanted, fleet) as serving, httpx2.AsyncClient(base_url=wanted.address, timeout=30) as client:
        await healthy(client)
        done = asyncio.Event()

        async def asking() -> None:
            while not done.is_set():
                got = await client.post("/v1/completions", json={"model": "embedding", "prompt": "a"})
                statuses[got.status_code] += 1

        async with asyncio.TaskGroup() as tasks:
            for _ in range(4):
                tasks.create_task(asking())
            assert await changed(wanted, "restart", "embedding") == ("embedding was started anew and is ready.",)
            assert await changed(wanted, "restart", "embedding-2") is not None
            done.set()
        assert set(statuses) == {200}
        async with control.ask(wanted.run_dir, "stop"):
            await asyncio.wait_for(serving, 20)


async def test_a_reload_replaces_what_changed_and_its_requests_wait(folder: Path, free_port: int) -> None:
    """A request that comes while its engine is away is answered by the new one; the other engine sees nothing; the
    router has its new settings, and answers all the time."""
    one = plan(folder, free_port, kind="generation")
    wanted = replace(one, specs=(*one.specs, fake_spec(folder.parent, "other", kind="generation")))
    new = fake_spec(folder.parent, "embedding", "--slow-start", "1", kind="generation")
    router = wanted.router.model_copy(update={"api_key": "sha256:" + "0" * 64})
    after = replace(
        wanted, specs=(new, wanted.specs[1]), kept=frozenset({"other"}), router=router, waiting=("run_dir",)
    )
    fleet, asked = Fleet(), list[service.Running]()

    def again(running: service.Running) -> Plan:
        asked.append(running)
        return after

    serving = asyncio.create_task(service.run(wanted, fleet, nothing, again))
    async with asyncio.timeout(20):
        async for snapshot in fleet.snapshots():
            if snapshot.ready:
                break
    async with httpx2.AsyncClient(base_url=wanted.address, timeout=30) as client:
        await healthy(client)
        before = fleet.now.engines
        reloading = asyncio.create_task(changed(wanted, "reload"))
        async with asyncio.timeout(20):
            async for snapshot in fleet.snapshots():
                if snapshot.engines[0].state is State.STARTING:
                    break
        waiting = client.post("/v1/completions", json={"model": "embedding", "prompt": "a"})
        other = client.post("/v1/completions", json={"model": "other", "prompt": "a"})
        assert [got.status_code for got in await asyncio.gather(waiting, other)] == [200, 200]
        assert await reloading == (
            "Started anew: embedding.",
            "Left alone: other.",
            "The router has its new settings.",
            "Only a restart of the service changes run_dir (`tandem stop`, then `tandem up`).",
        )
        assert fleet.now.engines[1] == before[1]
        assert asked[0].pids == {engine.name: engine.pid for engine in before}
        async with asyncio.timeout(20):
            while (await client.post("/v1/completions", json={"model": "other", "prompt": "a"})).status_code != 401:
                await asyncio.sleep(0.05)
    async with control.ask(wanted.run_dir, "stop"):
        await asyncio.wait_for(serving, 20)


async def test_a_reload_of_wrong_settings_changes_nothing(folder: Path, free_port: int) -> None:
    """And says why, with the exit code for wrong settings."""

    def again(_: service.Running) -> Plan:
        raise SettingsError("router.port in tandem.toml: no", "Mend it")

    wanted, fleet = plan(folder, free_port), Fleet()
    serving = asyncio.create_task(service.run(wanted, fleet, nothing, again))
    async with asyncio.timeout(20):
        async for snapshot in fleet.snapshots():
            if snapshot.ready:
                break
    before = fleet.now
    with pytest.raises(SetupError, match=r"router\.port in tandem\.toml: no\. Mend it") as raised:
        await changed(wanted, "reload")
    assert raised.value.exit_code == 2
    assert fleet.now == before
    async with control.ask(wanted.run_dir, "stop"):
        await asyncio.wait_for(serving, 20)


async def test_what_does_not_fit_the_machine_is_said_first(tmp_path: Path) -> None:
    """The CUDA build without a card."""
    loaded = load(gpu=False, environ={}, folder=tmp_path)
    machine = Hardware((), 2, 2**34, frozenset())
    with pytest.raises(SetupError, match="needs an NVIDIA GPU, and none is to be seen"):
        service.prepare(loaded, machine, Vllm(Path("/p"), (0, 32), "cuda"), {}, Cache.find(tmp_path, {}))


def prepared(tmp_path: Path, toml: str, running: service.Running | None = None) -> Plan:
    """What would be started for ``toml`` and one small model, on a machine without a card."""
    config = {"model_type": "bert", "architectures": ["BertModel"], "max_position_embeddings": 512}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tandem.toml").write_text(toml)
    loaded = load(gpu=False, environ={}, folder=tmp_path)
    machine = Hardware((), 4, 2**35, frozenset())
    models = {name: Model(tmp_path, "org/m", config) for name in loaded.settings.engines}
    vllm = Vllm(Path("/p"), (0, 32), "cpu")
    return service.prepare(loaded, machine, vllm, models, Cache.find(tmp_path, {}), running=running)


ENGINE = "[engines.embedding]\nmodel = 'org/m'\n"


def test_replicas_are_engines_of_their_own(tmp_path: Path) -> None:
    """With ports of their own, for the same model, the first under the name that was given."""
    made = prepared(tmp_path, ENGINE + "replicas = 3\n").specs
    assert [(spec.engine.name, spec.engine.replica_of) for spec in made] == [
        ("embedding", ""),
        ("embedding-2", "embedding"),
        ("embedding-3", "embedding"),
    ]
    assert {spec.engine.model for spec in made} == {"org/m"}
    assert len({spec.engine.url for spec in made}) == 3


CODE = "[engines.code]\nkind = 'embedding'\nmodel = 'org/m'\n"


@pytest.mark.parametrize(
    ("toml", "kept"),
    [
        (ENGINE + CODE, {"embedding", "code"}),
        (ENGINE + "aliases = ['also']\n" + CODE, {"embedding", "code"}),
        (ENGINE + CODE + "[router]\nmax_queue = 7\n", {"embedding", "code"}),
        (ENGINE + "max_model_len = 128\n" + CODE, {"code"}),
        (ENGINE + "memory = '2GiB'\n" + CODE, {"code"}),
        (ENGINE + "env = {A = 'b'}\n" + CODE, {"code"}),
        (ENGINE + "replicas = 2\n" + CODE, {"embedding", "code"}),
        (CODE, {"code"}),
        (CODE + ENGINE.replace("embedding", "another") + "kind = 'embedding'\n", {"code"}),
    ],
    ids=["nothing", "alias", "router", "length", "memory", "environment", "replica", "removed", "other"],
)
def test_of_a_running_service_only_what_changed_is_planned_anew(toml: str, kept: set[str], tmp_path: Path) -> None:
    """What is kept has its command line, its port and its part of the machine, whatever the others get; even though
    what it used is known by now, and would give another plan."""
    before = prepared(tmp_path, ENGINE + CODE)
    for spec in before.specs:
        assert spec.remember is not None
        spec.remember(os.getpid(), Seen(), 7.5)
    after = prepared(tmp_path, toml, service.Running(before, {}))
    assert after.kept == kept
    for name in kept:
        assert after.spec(name).launch == before.spec(name).launch
        assert after.shares[name] == before.shares[name]
    assert len({spec.engine.url for spec in after.specs}) == len(after.specs)


def test_a_renamed_engine_may_keep_its_port(tmp_path: Path) -> None:
    """Though the one that has it still listens there."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        (spec,) = prepared(tmp_path, ENGINE).specs
        taken = replace(spec, engine=msgspec.structs.replace(spec.engine, url=f"http://127.0.0.1:{port}"))
        before = replace(prepared(tmp_path, ENGINE), specs=(taken,))
        toml = f"[engines.renamed]\nkind = 'embedding'\nmodel = 'org/m'\nport = {port}\n"
        after = prepared(tmp_path, toml, service.Running(before, {}))
    assert after.specs[0].engine.url == taken.engine.url


def test_what_only_a_restart_changes_is_named_and_stays(tmp_path: Path) -> None:
    before = prepared(tmp_path, ENGINE)
    toml = "log_files = 1\nrun_dir = '/tmp/x'\n[router]\nport = 8999\ndrain_timeout = 3.0\nmax_queue = 7\n" + ENGINE
    after = prepared(tmp_path, toml, service.Running(before, {}))
    assert after.waiting == ("router.port", "router.drain_timeout", "run_dir", "log_size, log_files")
    assert after.router == before.router.model_copy(update={"max_queue": 7})
    assert (after.run_dir, after.rotation, after.kept) == (before.run_dir, before.rotation, {"embedding"})


def test_what_a_changed_engine_holds_counts_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kept one holds does not; nor are its threads there for others."""
    before = prepared(tmp_path, ENGINE + CODE)
    monkeypatch.setattr(service, "resident", lambda pid: pid)
    held = service.Running(before, {"embedding": 5 * 2**30, "code": 7 * 2**30})
    left = held.left(Hardware((), 4, 2**35, frozenset(), unused=2**30), {"code"})
    assert (left.free, left.cores) == (6 * 2**30, 4 - before.shares["code"].threads)


def test_a_card_s_memory_comes_back_from_engines_that_go() -> None:
    """As much as they were planned to take, and no more than the card has."""
    parts = Parts(weights=2 * 2**30)
    shares = {"a": Share(cards=(0,), gpu_memory=0.5, parts=parts), "b": Share(cards=(1,), gpu_memory=0.5, parts=parts)}
    cards = tuple(Card(index, "L4", 24 * 2**30, 2**30, "580") for index in (0, 1))
    before = Plan((), RouterSettings(), ApiSettings(), RunDir(Path("/r")), "info", "json", Path("/p"), shares=shares)
    left = service.Running(before, {}).left(Hardware(cards, 4, 2**35, frozenset()), {"b"})
    assert [card.free for card in left.cards] == [3 * 2**30, 2**30]


def test_a_replica_s_name_must_be_free(tmp_path: Path) -> None:
    other = "[engines.embedding-2]\nkind = 'embedding'\nmodel = 'org/m'\n"
    with pytest.raises(SettingsError, match=r"engines\.embedding-2 has the name of a replica of engines\.embedding"):
        prepared(tmp_path, ENGINE + "replicas = 2\n" + other)


def test_an_address_that_others_reach_is_refused_without_keys(tmp_path: Path) -> None:
    """Before anything is started; a key, or the word that none shall be needed, opens it."""
    with pytest.raises(SettingsError, match=r"0\.0\.0\.0 can be reached from other machines"):
        prepared(tmp_path, ENGINE + "[router]\nhost = '0.0.0.0'\n")
    plan = prepared(tmp_path, ENGINE + "[router]\nhost = '0.0.0.0'\napi_key = 'k'\n")
    assert plan.address == "http://127.0.0.1:8200"
    assert "'k'" not in repr(plan)
    assert prepared(tmp_path, ENGINE + "[router]\nhost = '0.0.0.0'\ninsecure = true\n").router.insecure


def test_what_an_engine_used_is_in_the_next_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is handed on when it is ready is remembered under what it was, and found again."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(service, "resident", lambda _: 3 * 2**30)
    (spec,) = prepared(tmp_path, ENGINE).specs
    assert spec.sized
    assert spec.took == 0
    assert spec.remember is not None
    spec.remember(1, Seen(), 7.5)
    assert prepared(tmp_path, ENGINE).specs[0].took == 7.5
    share = prepared(tmp_path, ENGINE).shares["embedding"]
    assert share.parts is not None
    assert (share.measured, share.parts.beside) == (True, 3 * 2**30)
    other = prepared(tmp_path, ENGINE + "max_num_batched_tokens = 4096\n").shares["embedding"]
    assert not other.measured


def test_a_state_folder_that_cannot_be_written_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next plan has estimates then."""
    (tmp_path / "state").write_text("in the way")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (spec,) = prepared(tmp_path, ENGINE).specs
    assert spec.remember is not None
    spec.remember(os.getpid(), Seen(), 7.5)
    assert not prepared(tmp_path, ENGINE).shares["embedding"].measured


def test_five_starts_on_a_card_are_told_what_the_first_one_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first measures by itself; its log says how much, and from then on the command line does, five times alike."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    config = {
        "model_type": "qwen3",
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "max_position_embeddings": 40960,
        "vocab_size": 151936,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(2**20))
    (tmp_path / "tandem.toml").write_text("[engines.generation]\nmodel = 'org/m'\nmemory = 0.5\n")
    models = {"generation": Model(tmp_path, "org/m", config)}

    def planned(free: int) -> Spec:
        card = Card(0, "NVIDIA L4", 24564 * 2**20, free * 2**20, "580")
        loaded = load(gpu=True, environ={}, folder=tmp_path)
        machine = Hardware((card,), 4, 2**35, frozenset())
        vllm = Vllm(Path("/p"), (0, 32), "cuda")
        (spec,) = service.prepare(loaded, machine, vllm, models, Cache.find(tmp_path, {})).specs
        return spec

    first = planned(24_000)
    assert "--kv-cache-memory-bytes" not in first.launch.argv
    assert not first.sized
    assert first.remember is not None
    # 5,000 blocks of 16 tokens of 112 KiB are 8.54 GiB.
    first.remember(1, Seen(weights=2**30, cache=round(8.54 * 2**30), tokens=80_000), 7.5)
    told = []
    for free in (24_000, 23_900, 24_300, 24_100, 22_000):
        spec = planned(free)
        assert spec.sized
        told.append(spec.launch.argv[spec.launch.argv.index("--kv-cache-memory-bytes") + 1])
        assert spec.remember is not None
        spec.remember(1, Seen(weights=2**30, cache=round(8.54 * 2**30), tokens=80_000, told=True), 7.5)
    assert set(told) == {str(80_000 * 28 * 2 * 8 * 128 * 2)}
