"""What one engine is, and how it is started: all that its life is lived by."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tandem.engines.footprints import Seen
from tandem.engines.launch import Launch
from tandem.fleet import Engine
from tandem.logfile import Rotation
from tandem.settings import SupervisionSettings


@dataclass(frozen=True)
class Spec:
    """What one engine is, and how it is started.

    Attributes:
        engine: its first snapshot, with name, kind, model, aliases, address.
        launch: its command line, and the environment on top of ``inherited``.
        log: the file its output goes to.
        tmp: the folder for its sockets and temporary files, emptied when it ends.
        drain_timeout: seconds that requests in flight get when it is told to stop.
        cards: the cards it may see, by index; empty where there is but one, or none.
        sized: whether it is told how large its KV cache is, and does not measure.
        memory: bytes that it was planned to take, on each of its cards or of RAM; 0 where that is not known.
        remember: called once it is ready, with its process, what its log said of its memory, and the seconds that its
            start took.
        took: seconds that its last start took; 0 where that is not known.
        rotation: of its log.
        supervision: what is done when it dies.
        room: whether there is room for it, asked before it is started again; None where that is not known.
    """

    engine: Engine
    launch: Launch
    inherited: Mapping[str, str]
    log: Path
    tmp: Path
    drain_timeout: float
    cards: tuple[int, ...] = ()
    sized: bool = False
    memory: int = 0
    remember: Callable[[int, Seen, float], None] | None = None
    took: float = 0.0
    rotation: Rotation = field(default_factory=Rotation)
    supervision: SupervisionSettings = field(default_factory=SupervisionSettings)
    room: Callable[[], bool] | None = None
