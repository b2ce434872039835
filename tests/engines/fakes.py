"""A fake engine as a real child process, and whether anything of it is left."""

import asyncio
import os
import sys
from pathlib import Path

from tandem.engines.launch import Launch
from tandem.engines.process import free_port
from tandem.engines.spec import Spec
from tandem.fleet import Engine, Kind

FAKE = Path(__file__).with_name("fake_vllm.py")


def alive(pid: int) -> bool:
    """Whether ``pid`` runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def gone(*pids: int) -> bool:
    """Whether all of ``pids`` end within a few seconds."""
    for _ in range(200):
        if not any(alive(pid) for pid in pids):
            return True
        await asyncio.sleep(0.02)
    return False


def fake_spec(folder: Path, name: str = "embedding", *flags: str, kind: Kind = "embedding") -> Spec:
    """A fake engine that keeps its files in ``folder``."""
    port = free_port()
    tmp = folder / "tmp" / name
    return Spec(
        engine=Engine(name=name, kind=kind, model="fake", url=f"http://127.0.0.1:{port}"),
        launch=Launch((sys.executable, str(FAKE), "--port", str(port), *flags), {"TMPDIR": str(tmp)}),
        inherited=dict(os.environ),
        log=folder / f"{name}.log",
        tmp=tmp,
        drain_timeout=5,
    )
