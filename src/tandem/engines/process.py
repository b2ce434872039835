"""One child process under its keeper, and the pump that carries what it prints. Knows nothing of who runs it."""

import asyncio
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

from tandem.engines import keeper
from tandem.logfile import Lines, RotatingLog, Rotation

_KEPT_LINES = 2000
_LAST_LINES = 5.0  # seconds for the last lines, once nothing is left that could write any


class EngineProcess:
    """A running engine: a keeper with vLLM's API server below it. Made by :meth:`start`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        printed: BinaryIO,
        log: RotatingLog,
        on_line: Callable[[str], None],
        tmp: str,
    ) -> None:
        self._process = process
        self._tmp = tmp
        self._on_line = on_line
        self.lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._pump = asyncio.create_task(self._carry(printed, log))

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        log: Path,
        rotation: Rotation,
        on_line: Callable[[str], None],
    ) -> "EngineProcess":
        """Start ``argv`` under a keeper, in a session of its own, so that a terminal's Ctrl-C does not reach it.

        Args:
            env: its whole environment.
            log: appended to with everything it prints, and rotated as ``rotation`` says.
            on_line: called with each line it prints.
        """
        output = RotatingLog(log, rotation)
        # A pipe of its own: asyncio's wait for a process waits for the pipes that it made, too.
        reading, writing = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(keeper.__file__), *argv),
                env=dict(env),
                stdin=asyncio.subprocess.PIPE,  # its end, however it comes, tells the keeper to kill
                stdout=writing,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except BaseException:
            os.close(reading)
            output.close()
            raise
        finally:
            os.close(writing)
        return cls(process, os.fdopen(reading, "rb", buffering=0), output, on_line, env.get("TMPDIR", ""))

    @property
    def pid(self) -> int | None:
        """The API server's process; None before it runs and after it ended."""
        try:
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        except OSError:
            return None
        return int(children.split()[0]) if children.split() else None

    def terminate(self) -> None:
        """Ask the API server to finish its requests and end."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Have the keeper kill every process of the engine at once."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    async def wait(self) -> int:
        """Wait until nothing of the engine is left; its exit code, above 128 the signal that ended it."""
        code = await self._process.wait()
        if code < 0:
            keeper.kill_session(self._process.pid, self._tmp)
        await asyncio.wait({self._pump}, timeout=_LAST_LINES)
        if self._pump.cancel():  # whatever a killed keeper left may hold the other end
            await asyncio.wait({self._pump})
        return code if code >= 0 else 128 - code

    async def stop(self, grace: float) -> int:
        """:meth:`terminate`, and after ``grace`` seconds :meth:`kill`; returns as :meth:`wait` does."""
        self.terminate()
        try:
            async with asyncio.timeout(grace):
                return await self.wait()
        except TimeoutError:
            self.kill()
            return await self.wait()

    async def _carry(self, printed: BinaryIO, log: RotatingLog) -> None:
        reader, lines = asyncio.StreamReader(), Lines()
        loop = asyncio.get_running_loop()
        with closing(log):
            transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), printed)
            with closing(transport):
                while chunk := await reader.read(2**16):
                    log.write(chunk)
                    self._keep(lines.split(chunk))
                self._keep(lines.last())

    def _keep(self, lines: list[str]) -> None:
        for line in lines:
            self.lines.append(line)
            self._on_line(line)


def free_port() -> int:
    """A port on loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(inherited: Mapping[str, str], added: Mapping[str, str]) -> dict[str, str]:
    """``inherited`` with ``added`` on top; what is preloaded already stays so, after what is added."""
    merged = {**inherited, **added}
    if "LD_PRELOAD" in inherited and "LD_PRELOAD" in added:
        merged["LD_PRELOAD"] = os.pathsep.join((added["LD_PRELOAD"], inherited["LD_PRELOAD"]))
    return merged
