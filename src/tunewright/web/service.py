"""`tunewright up`: one process, one port, one store.

It holds the store and has its port before it touches a job. When it is told to stop it ends every stream at once and is
gone within two seconds; jobs run on, and the next one finds them.
"""

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from tunewright.errors import UsageError
from tunewright.jobs.inbox import Inbox, validate_inbox
from tunewright.jobs.scheduler import RUN_COMMAND, SECONDS_BETWEEN_ROUNDS, Scheduler, gpu_slots, sole_service
from tunewright.jobs.store import Store
from tunewright.web.access import LOOPBACK, Access, hosts_of, read_token
from tunewright.web.api import guarded, make_app
from tunewright.web.ports import bind
from tunewright.web.runs import Runs
from tunewright.web.status import StatusBoard
from tunewright.web.streams import Streams
from tunewright.web.webhooks import Announcer, parse_webhook

MOST_CONNECTIONS = 1000
MOST_HEADER_BYTES = 1 << 15


@dataclass(frozen=True)
class Options:
    """What the service is told.

    Attributes:
        host: the address to listen on.
        names: further names under which it may be addressed.
        inbox: the directory to watch, if any, and
        recipe: by which its files are trained.
        command: what runs a job.
        slots: what one job takes as a whole; None for the GPUs of this machine.
        webhooks: whom to tell, as `parse_webhook` reads them.
    """

    store: Path
    host: str = "127.0.0.1"
    port: int = 7860
    names: list[str] = field(default_factory=list)
    inbox: Path | None = None
    recipe: Path | None = None
    command: Sequence[str] = RUN_COMMAND
    slots: Sequence[str] | None = None
    webhooks: Sequence[str] = ()

    @property
    def is_loopback(self) -> bool:
        return self.host in {*LOOPBACK, "::1"}


def validate_options(options: Options) -> None:
    """Refuse what could not work or would be open to others unnoticed.

    Raises:
        UsageError: an option is missing, or the recipe is broken.
    """
    for text in options.webhooks:
        parse_webhook(text)
    if (options.inbox is None) != (options.recipe is None):
        raise UsageError("tunewright up", "one of --inbox and --recipe was given", "both of them or neither")
    if options.inbox is not None and options.recipe is not None:
        validate_inbox(options.inbox, options.recipe)
    if not options.is_loopback and not options.names:
        raise UsageError(
            f"--host {options.host}",
            "other machines could reach the service there, and nothing encrypts what they send, the token included",
            mend="Put a proxy with TLS before it, and give the name that it is called by with --name.",
        )


def serve(options: Options, announce: Callable[[str, Path], None]) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        announce: called with the address and the file of the token once the service answers.

    Raises:
        JobError: the store is served already; the message names by whom.
        EnvironmentLackError: the port is taken; the message names the holder and the next free one.
    """
    validate_options(options)
    store = Store(options.store)
    with sole_service(store) as tell, contextlib.closing(bind(options.host, options.port)) as listener:
        port = listener.getsockname()[1]
        url = f"http://{'[::1]' if options.host == '::1' else options.host}:{port}"
        tell(url=url)
        token_path = store.private / "token"
        access = Access(read_token(token_path), hosts_of(port, options.names))
        slots = gpu_slots() if options.slots is None else options.slots
        scheduler = Scheduler(store, slots, options.command)
        inbox = Inbox(store, options.inbox, options.recipe) if options.inbox and options.recipe else None
        address = f"https://{options.names[0]}" if options.names else url
        announcer = Announcer(store, [parse_webhook(text) for text in options.webhooks], address)
        board = StatusBoard(scheduler, inbox, announcer)
        asyncio.run(answer(listener, access, board, lambda: announce(url, token_path)))


async def answer(listener: socket.socket, access: Access, board: StatusBoard, announce: Callable[[], None]) -> None:
    """Answer requests, and keep the jobs going in a thread beside it, until a signal comes."""
    store = board.scheduler.store
    runs = Runs(store.root)
    streams = Streams(store, runs)
    server = Server(
        uvicorn.Config(
            guarded(make_app(store, access, board, streams, runs), access),
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=1,
            limit_concurrency=MOST_CONNECTIONS,
            h11_max_incomplete_event_size=MOST_HEADER_BYTES,
        )
    )
    over = threading.Event()

    def stop() -> None:
        over.set()
        streams.close()
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    board.update()
    # The first look at ten thousand runs takes seconds, and should not wait for the first visitor.
    threading.Thread(target=runs.all, name="runs", daemon=True).start()
    rounds = threading.Thread(target=keep_going, args=(board, over), name="jobs", daemon=True)
    rounds.start()
    if board.announcer is not None and board.announcer.hooks:
        threading.Thread(target=board.announcer.run_until, args=(over,), name="webhooks", daemon=True).start()
    announce()
    await server.serve(sockets=[listener])
    over.set()
    await asyncio.to_thread(rounds.join, 1.0)


def keep_going(board: StatusBoard, over: threading.Event) -> None:
    """Round after round of the scheduler and the inbox."""
    while True:
        board.scheduler.tick()
        if board.inbox is not None:
            board.inbox.tick()
        board.update()
        if over.wait(SECONDS_BETWEEN_ROUNDS):
            return


class Server(uvicorn.Server):
    """uvicorn without its own ideas of signals."""

    capture_signals = contextlib.nullcontext  # type: ignore[assignment]
