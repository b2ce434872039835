"""A child process that behaves like vLLM's server, and misbehaves on command. Run as a script; standard library only.

Like vLLM it starts a grandchild that outlives it when it is killed, and shares memory with it. Flags: ``--port N``,
``--fail TEXT`` (print it and exit 1 before listening), ``--refuse`` (healthy, but every request is a 500),
``--slow-stop S`` (take that long over SIGTERM), ``--one-session`` (the grandchild in the server's own session),
``--slow-start S`` (listen that much later), ``--die-after S`` (of SIGKILL, that long after),
``--map FILE`` (as weights are mapped), ``--busy`` (the grandchild computes). On SIGUSR1 it answers no request any more,
though its health stays good.
"""

import argparse
import http.server
import itertools
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

GRANDCHILD = """
import mmap, sys, time
file = open(sys.argv[1], "r+b")
mapped = mmap.mmap(file.fileno(), 4096)
print("mapped", flush=True)
while "--busy" in sys.argv:
    pass
time.sleep(600)
"""


COMPLETION = b"""{"id": "1", "object": "text_completion", "created": 1, "model": "fake",
"choices": [{"index": 0, "text": "a", "logprobs": null, "finish_reason": "length"}],
"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}"""


METRICS = b"""vllm:prompt_tokens_total{engine="0",model_name="fake"} %d.0
vllm:generation_tokens_total{engine="0",model_name="fake"} 0.0
vllm:request_success_total{engine="0",finished_reason="stop",model_name="fake"} %d.0
vllm:request_success_total{engine="0",finished_reason="abort",model_name="fake"} 7.0
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--fail")
    parser.add_argument("--refuse", action="store_true")
    parser.add_argument("--one-session", action="store_true")
    parser.add_argument("--slow-start", type=float, default=0)
    parser.add_argument("--deaf-start", action="store_true")  # while it loads, it does not end when it is told to
    parser.add_argument("--die-after", type=float)
    parser.add_argument("--map")
    parser.add_argument("--slow-stop", type=float, default=0)
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--deaf-end", action="store_true")  # told to end, it stops listening, and hangs
    asked = parser.parse_args()

    shared = Path(f"/dev/shm/psm_tandem_test_{os.getpid()}")
    with shared.open("w+b") as file:
        file.truncate(4096)
        mapped = mmap.mmap(file.fileno(), 4096)
    grandchild = subprocess.Popen(
        [sys.executable, "-c", GRANDCHILD, str(shared), *(["--busy"] if asked.busy else [])],
        start_new_session=not asked.one_session,
        stdout=subprocess.PIPE,
    )
    grandchild.stdout.readline()
    mark = Path(f"/dev/shm/__KMP_REGISTERED_LIB_{os.getpid()}_{os.getuid()}")  # as OpenMP leaves it, not mapped
    mark.touch()
    Path(os.environ["TMPDIR"], "socket").touch()
    if asked.map:
        with Path(asked.map).open("r+b") as file:
            weights = mmap.mmap(file.fileno(), 4096)  # noqa: F841 - mapped as long as it is referred to
    print(f"pids {os.getpid()} {grandchild.pid}")
    print("INFO Auto-fit max_model_len: reduced from 8 to 4 to fit")
    print("INFO Starting to load model x...", flush=True)
    if asked.fail:
        print(asked.fail, flush=True)
        shared.unlink()
        mark.unlink()
        sys.exit(1)

    going = threading.Event()
    going.set()
    signal.signal(signal.SIGUSR1, lambda *_: going.clear())
    finished = itertools.count()
    done = [next(finished)]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200, METRICS % (done[0], done[0]) if self.path == "/metrics" else b"{}")

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            going.wait()
            done[0] = next(finished)
            self.answer(500 if asked.refuse else 200, b'{"error": "broken"}' if asked.refuse else COMPLETION)

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    if asked.deaf_start:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(asked.slow_start)
    if asked.die_after is not None:
        threading.Timer(asked.die_after, os.kill, (os.getpid(), signal.SIGKILL)).start()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", asked.port), Handler)

    def stop(*_: object) -> None:
        print("stopping", flush=True)
        if asked.deaf_end:
            server.socket.shutdown(socket.SHUT_RDWR)
            return
        threading.Thread(target=lambda: (time.sleep(asked.slow_stop), server.shutdown())).start()

    signal.signal(signal.SIGTERM, stop)
    print("listening", flush=True)
    server.serve_forever(0.02)
    mapped.close()
    shared.unlink()
    mark.unlink()
    grandchild.kill()
    grandchild.wait()


if __name__ == "__main__":
    main()
