"""llama.cpp's own server, as the whole of a process.

In: one line of JSON on stdin, the arguments of `start_llama_cpp_server`. Out: one line of JSON on stdout, its `address`
or the `error` why there is none. Always: it ends when its stdin does, so it outlives nobody, however that one ended.

A process of its own, because a library that is loaded beside it, such as torch, shares its OpenMP runtime: more threads
than cores then, which sleep at every barrier, and answers come at half the speed. And where llama.cpp aborts, only this
process does.
"""

import json
import os
import signal
import sys
from typing import Any

SILENT = -1


def main() -> None:
    # Ctrl-C reaches every process of the terminal; whoever started this one decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    settings = json.loads(sys.stdin.readline())
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as answers:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # llama.cpp writes there too.
        try:
            server = open_server(**settings)
        except (RuntimeError, ValueError) as error:
            answers.write(json.dumps({"error": str(error)}) + "\n")
            return
        answers.write(json.dumps({"address": str(server.listening_address)}) + "\n")
    sys.stdin.read()


def open_server(
    gguf_path: str, n_ctx: int, port: int, alias: str, api_key: str | None, chat_template: str | None
) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = gguf_path
    params.model_alias = {alias}
    params.hostnames = ["127.0.0.1"]
    params.port, params.n_ctx, params.n_parallel = port, n_ctx, 1
    params.warmup, params.verbosity, params.use_jinja = False, SILENT, True
    threads = min(os.cpu_count() or 1, 8)
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads = threads
        cpu.poll = 0  # Spinning threads starve everything else on a machine whose cores are all in use.
    if api_key:
        params.api_keys = [api_key]
    if chat_template:
        params.chat_template = chat_template
    return xllamacpp.Server(params)


if __name__ == "__main__":
    main()
