"""What a service is to run, from settings and a machine; and what of it changes with other settings."""

import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from tandem.engines.footprints import Seen
from tandem.engines.hardware import Card, Hardware
from tandem.engines.install import Vllm
from tandem.engines.planning.needs import Parts
from tandem.engines.planning.shares import Share
from tandem.engines.spec import Spec
from tandem.engines.weights import Cache, Model
from tandem.errors import SettingsError, SetupError
from tandem.rundir import RunDir
from tandem.service import measured, plans
from tandem.service.plans import Plan
from tandem.settings import ApiSettings, RouterSettings, load


def test_what_does_not_fit_the_machine_is_said_first(tmp_path: Path) -> None:
    """The CUDA build without a card."""
    loaded = load(gpu=False, environ={}, folder=tmp_path)
    machine = Hardware((), 2, 2**34, frozenset())
    with pytest.raises(SetupError, match="needs an NVIDIA GPU, and none is to be seen"):
        plans.prepare(loaded, machine, Vllm(Path("/p"), (0, 32), "cuda"), {}, Cache.find(tmp_path, {}))


def prepared(tmp_path: Path, toml: str, running: plans.Running | None = None) -> Plan:
    """What would be started for ``toml`` and one small model, on a machine without a card."""
    config = {"model_type": "bert", "architectures": ["BertModel"], "max_position_embeddings": 512}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tandem.toml").write_text(toml)
    loaded = load(gpu=False, environ={}, folder=tmp_path)
    machine = Hardware((), 4, 2**35, frozenset())
    models = {name: Model(tmp_path, "org/m", config) for name in loaded.settings.engines}
    vllm = Vllm(Path("/p"), (0, 32), "cpu")
    return plans.prepare(loaded, machine, vllm, models, Cache.find(tmp_path, {}), running=running)


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
    after = prepared(tmp_path, toml, plans.Running(before, {}))
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
        after = prepared(tmp_path, toml, plans.Running(before, {}))
    assert after.specs[0].engine.url == taken.engine.url


def test_what_only_a_restart_changes_is_named_and_stays(tmp_path: Path) -> None:
    before = prepared(tmp_path, ENGINE)
    toml = "log_files = 1\nrun_dir = '/tmp/x'\n[router]\nport = 8999\ndrain_timeout = 3.0\nmax_queue = 7\n" + ENGINE
    after = prepared(tmp_path, toml, plans.Running(before, {}))
    assert after.waiting == ("router.port", "router.drain_timeout", "run_dir", "log_size, log_files")
    assert after.router == before.router.model_copy(update={"max_queue": 7})
    assert (after.run_dir, after.rotation, after.kept) == (before.run_dir, before.rotation, {"embedding"})


def test_what_a_changed_engine_holds_counts_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kept one holds does not; nor are its threads there for others."""
    before = prepared(tmp_path, ENGINE + CODE)
    monkeypatch.setattr(plans, "resident", lambda pid: pid)
    held = plans.Running(before, {"embedding": 5 * 2**30, "code": 7 * 2**30})
    left = held.left(Hardware((), 4, 2**35, frozenset(), unused=2**30), {"code"})
    assert (left.free, left.cores) == (6 * 2**30, 4 - before.shares["code"].threads)


def test_a_card_s_memory_comes_back_from_engines_that_go() -> None:
    """As much as they were planned to take, and no more than the card has."""
    parts = Parts(weights=2 * 2**30)
    shares = {"a": Share(cards=(0,), gpu_memory=0.5, parts=parts), "b": Share(cards=(1,), gpu_memory=0.5, parts=parts)}
    cards = tuple(Card(index, "L4", 24 * 2**30, 2**30, "580") for index in (0, 1))
    before = Plan((), RouterSettings(), ApiSettings(), RunDir(Path("/r")), "info", "json", Path("/p"), shares=shares)
    left = plans.Running(before, {}).left(Hardware(cards, 4, 2**35, frozenset()), {"b"})
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
    monkeypatch.setattr(measured, "resident", lambda _: 3 * 2**30)
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
        (spec,) = plans.prepare(loaded, machine, vllm, models, Cache.find(tmp_path, {})).specs
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
