"""`kodolly`: one command, one subcommand a process. Only the chosen one is imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from kodolly import __version__
from kodolly.errors import KodollyError
from kodolly.extras import not_installed
from kodolly.logs import escape_lines

# name -> (module with a `main(argv) -> int`, one line for --help)
COMMANDS: Mapping[str, tuple[str, str]] = {
    "up": (
        "kodolly.supervisor.app",
        "start everything on this machine: controller, workers, API, page",
    ),
    "controller": ("kodolly.controller.app", "start the controller: the table of workers"),
    "worker": ("kodolly.worker.app", "start a worker: one engine, and the agent that watches it"),
    "api": ("kodolly.api.main", "start the OpenAI-compatible API"),
    "web": ("kodolly.web.main", "start the chat page"),
    "top": ("kodolly.top.command", "show workers and models, live in the terminal"),
    "store": ("kodolly.store_command", "back up, restore or upgrade the store of responses"),
    "config": ("kodolly.show_config", "show every option, its value and where it came from"),
    "doctor": ("kodolly.doctor", "check this machine: what is missing, and what to do"),
}
# The making side registers its commands as entry points: this side never imports that one.
PLUGIN_GROUP = "kodolly.commands"
PLUGIN_HELP = {
    "convert": "convert public Korean data sets to Dolly rows",
    "fetch": "write the model directory of an embedded model",
    "plan": "estimate memory, time and cost of a training recipe",
    "train": "tune a model on Dolly rows, as a recipe says",
    "merge": "merge a LoRA adapter into its base model",
}
# The extra that each command needs. For `up` and `worker` it depends on the engine.
EXTRAS = {
    "web": "web",
    "convert": "data",
    "fetch": "transformers",
    "plan": "train",
    "train": "train",
    "merge": "train",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `kodolly COMMAND ...` and returns the exit code: 0 done, 1 failed, 2 bad usage."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if args else 2
    if args[0] in ("-V", "--version"):
        print(f"kodolly {__version__}")
        return 0
    try:
        return _run(args[0], args[1:])
    except KodollyError as error:
        print(f"kodolly {args[0]}: {escape_lines(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `kodolly config | head`: nobody reads on, and nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def usage() -> str:
    """The text of `kodolly --help`."""
    rows = {name: line for name, (_, line) in COMMANDS.items()} | PLUGIN_HELP
    lines = [f"  {name:<15}{line}" for name, line in rows.items()]
    head, foot = "usage: kodolly COMMAND [options]", "`kodolly COMMAND --help` lists its options."
    return "\n".join([head, "", "commands:", *lines, "", foot])


def _run(name: str, args: list[str]) -> int:
    try:
        command = _command(name)
        if command is not None:
            return int(command(args))
    except ModuleNotFoundError as error:
        if name not in EXTRAS or (error.name or "").startswith("kodolly"):
            raise
        raise KodollyError(not_installed([str(error.name)], [EXTRAS[name]])) from error
    print(f"kodolly: no command {name!r}\n\n{usage()}", file=sys.stderr)
    return 2


def _command(name: str) -> Callable[[list[str]], Any] | None:
    """The function that runs a command; None if there is no such command."""
    if name in COMMANDS:
        main: Callable[[list[str]], Any] = import_module(COMMANDS[name][0]).main
        return main
    plugins = list(entry_points(group=PLUGIN_GROUP, name=name))
    return plugins[0].load() if plugins else None
