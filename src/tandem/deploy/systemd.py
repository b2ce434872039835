"""The systemd unit of a service. Pure: what it is to run in, text out.

Sources: systemd.exec(5), systemd.service(5), systemd.resource-control(5), sysusers.d(5).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

USER = "tandem"
UNIT = "tandem.service"
STATE = Path("/var/lib") / USER
_HOMES = (Path("/home"), Path("/root"), Path("/run/user"))
# The user, and its membership in the groups that GPU devices belong to on some systems.
SYSUSERS = f"""\
# The user that {UNIT} runs as. Those who are to use `tandem status` and `tandem stop` join its group.
u {USER} - "Tandem" {STATE}
m {USER} video
m {USER} render
"""


@dataclass(frozen=True)
class Service:
    """What the unit is to run.

    Attributes:
        command: the service's command line, such as ``/usr/local/lib/tandem/bin/tandem up``.
        environment: its environment; no secrets, since everyone can read a unit.
        drain_timeout: seconds that requests in flight get when it stops.
        gpu: whether it uses NVIDIA GPUs.
        loopback: whether only this machine calls it: then the network is closed to it.
        readable: folders it must read, wherever they are: command, interpreter, models, settings.
        user: whether it is a unit of a user's own manager.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    drain_timeout: float
    gpu: bool
    loopback: bool
    readable: Sequence[Path] = ()
    user: bool = False


def unit(service: Service) -> str:
    """The text of the unit file."""
    sections = {
        "Unit": _unit(service),
        "Service": [*_service(service), "", *_filters(service), *([] if service.user else _sandbox(service))],
        "Install": [f"WantedBy={'default.target' if service.user else 'multi-user.target'}"],
    }
    return "\n".join(f"[{name}]\n" + "\n".join(lines) + "\n" for name, lines in sections.items())


def _unit(service: Service) -> list[str]:
    return [
        "Description=Tandem: an embedding model and a language model behind one OpenAI-compatible address",
        *([] if service.user else ["After=network.target nvidia-persistenced.service"]),
        "# A start that fails again and again is given up.",
        "StartLimitIntervalSec=1h",
        "StartLimitBurst=5",
    ]


def _service(service: Service) -> list[str]:
    return [
        "# Ready once every engine has answered a request. Until then the service asks for more time as long as it",
        "# is alive, so a start may take as long as its models need.",
        "Type=notify",
        "NotifyAccess=main",
        f"ExecStart={_words(service.command)}",
        *(f"Environment={_quoted(f'{name}={value}')}" for name, value in service.environment.items()),
        *([] if service.user else ["# HF_TOKEN, TANDEM_API_KEY and the like; root's, mode 0600."]),
        *([] if service.user else [f"EnvironmentFile=-/etc/{USER}/environment"]),
        "",
        "Restart=on-failure",
        "RestartSec=10",
        "# Wrong settings stay wrong.",
        "RestartPreventExitStatus=2",
        "WatchdogSec=60",
        "# The service alone is told to stop: it lets requests in flight finish, and ends its engines itself.",
        "KillMode=mixed",
        f"TimeoutStopSec={2 * service.drain_timeout + 60:.0f}",
        "# An engine that the kernel kills for want of memory is started again by the service.",
        "OOMPolicy=continue",
        "# A limit: lower it where other programs need the memory.",
        "MemoryMax=90%",
        "LimitNOFILE=65536",
        "TasksMax=16384",
        "",
        "# The control socket and the logs, which stay when the service stops.",
        f"RuntimeDirectory={USER}",
        f"RuntimeDirectoryMode={'0700' if service.user else '0750'}",
        "RuntimeDirectoryPreserve=yes",
        *(
            []
            if service.user
            else [f"User={USER}", f"Group={USER}", f"StateDirectory={USER}", "StateDirectoryMode=0750"]
        ),
        *([] if service.user else [f"WorkingDirectory={STATE}", "UMask=0027"]),
    ]


def _filters(service: Service) -> list[str]:
    """What needs no name spaces, and so holds in a user's manager, too."""
    return [
        "NoNewPrivileges=yes",
        "LockPersonality=yes",
        "RestrictNamespaces=yes",
        "RestrictRealtime=yes",
        "RestrictSUIDSGID=yes",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
        "SystemCallArchitectures=native",
        *(["# pidfd_getfd is how CUDA shares memory between processes."] if service.gpu else []),
        f"SystemCallFilter=@system-service{' pidfd_getfd' if service.gpu else ''}",
        "SystemCallErrorNumber=EPERM",
    ]


def _sandbox(service: Service) -> list[str]:
    return [
        "CapabilityBoundingSet=",
        "AmbientCapabilities=",
        "ProtectSystem=strict",
        f"ProtectHome={'read-only' if any(map(_in_home, service.readable)) else 'yes'}",
        "PrivateTmp=yes",
        *_devices(gpu=service.gpu),
        "PrivateIPC=yes",
        "ProtectClock=yes",
        "ProtectControlGroups=yes",
        "ProtectHostname=yes",
        "ProtectKernelLogs=yes",
        "ProtectKernelModules=yes",
        "ProtectKernelTunables=yes",
        "ProtectProc=invisible",
        "RemoveIPC=yes",
        "# MemoryDenyWriteExecute is left out: torch compiles code as it runs.",
        *(["IPAddressDeny=any", "IPAddressAllow=localhost"] if service.loopback else []),
    ]


def _devices(*, gpu: bool) -> list[str]:
    if not gpu:
        return ["PrivateDevices=yes"]
    return [
        "# Of devices only NVIDIA's, and those that every program may use.",
        "PrivateDevices=no",
        "DevicePolicy=closed",
        "DeviceAllow=char-nvidia* rw",
    ]


def _in_home(path: Path) -> bool:
    return any(home in (path, *path.parents) for home in _HOMES)


def _words(command: Sequence[str]) -> str:
    """A command line: there, unlike elsewhere, ``$`` begins a variable (systemd.service(5))."""
    return " ".join(_quoted(word).replace("$", "$$") for word in command)


def _quoted(word: str) -> str:
    """A word as systemd.syntax(7) has it, without specifiers."""
    plain = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{plain}"' if not re.fullmatch(r"[\w./:=,@+-]+", word) else plain
