"""``peftlab COMMAND …``: thin; a command's module is imported only when that command is called."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import TextIO, cast

from peftlab.allowed import with_config_dir
from peftlab.errors import PeftlabError, nearest
from peftlab.outliving import Outliving
from peftlab.process import uncollected
from peftlab.signals import CTRL_C, Interrupted
from peftlab.terminal import fitted, half_character, printable, say
from peftlab.version import __version__

COMMANDS = {
    "train": "fine-tune: compose a config from groups and key=value, run it, leave a record",
    "sweep": "run a declared sweep (sweeps/*.yaml) and make its table and pictures",
    "submit": "submit one train, or the jobs of train -m, to a Slurm cluster",
    "status": "say how the runs of a folder stand, local or on a cluster",
    "runs": "list runs: what tells them apart, their figures, the best",
    "diff": "say in what two runs differ: config, circumstances, results",
    "remove": "remove runs that nothing else needs",
    "report": "make tables, statistics, figures and a page of the records in a folder",
    "evaluate": "test a finished run again, on its own data or on other data",
    "predict": "label texts with a finished run",
    "explain": "explain a group, an option or a key of the config",
    "methods": "list the PEFT methods, or explain one",
    "allow": "say once which modules of yours may be imported in this folder",
    "completion": "print the script that lets bash or zsh complete all of this",
    "export": "write a finished run as a folder of HF peft, or of transformers with --merged",
    "inspect": "measure the rank and size of a run's weight updates, and what two runs share",
    "table": "compute a table of published figures again",
    "bundle": "pack runs into one archive that verify reads anywhere",
    "verify": "check finished runs, or a bundle of them, against their own records",
    "reproduce": "run a record again and compare",
    "wandb-sync": "replay records into Weights & Biases",
    "estimate": "say how much memory and time a run will take, before it runs",
    "check": "compose and check a config or a sweep; run nothing",
}

HYDRAS_COMPLETION = ("-sc", "--shell-completion")
"""How Hydra's applications are asked for it."""

USAGE = """peftlab {version}: a laboratory for parameter-efficient fine-tuning

usage: peftlab COMMAND [arguments]

{commands}

peftlab COMMAND --help explains a command.    PEFTLAB_DEBUG=1 shows tracebacks."""


def usage() -> str:
    """What ``peftlab --help`` prints."""
    commands = "\n".join(f"  {command:<11}{text}" for command, text in COMMANDS.items())
    return fitted(USAGE.format(version=__version__, commands=commands), hanging=11).rstrip("\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        exit status: 0 done, 1 a run failed, 2 something given cannot be used,
        85 asked by a signal to end, and resumable, 130 the same by Ctrl-C.
    """
    if arguments is None:  # the process is ours
        atexit.register(gc.freeze)  # all of it ends at once, without a search for garbage among torch's objects
        sys.stdout = cast(TextIO, Outliving(sys.stdout))  # what is begun is done, whoever still reads what it says
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if given else 2
    if given[0] in ("-V", "--version"):
        print(f"peftlab {__version__}")
        return 0
    for word in given:
        if half_character(word):
            _say(
                f"peftlab: '{printable(word)}' is no UTF-8, and could not be written into a record or a table. Give "
                "words and names of files in UTF-8."
            )
            return 2
    command, rest = given[0], given[1:]
    if command == "__complete":
        from peftlab.completion import answer

        print(answer(rest, COMMANDS))
        return 0
    if command not in (*COMMANDS, *HYDRAS_COMPLETION):
        _say(
            f"peftlab: unknown command '{command}'.{nearest(command, COMMANDS)} "
            f"The commands are: {', '.join(COMMANDS)}."
        )
        return 2
    try:
        if command in HYDRAS_COMPLETION or (command == "train" and set(HYDRAS_COMPLETION) & set(rest)):
            from peftlab.completion import as_hydra_asks

            print(as_hydra_asks([word for word in rest if word not in HYDRAS_COMPLETION]), end="")
            return 0
        (_, *rest), config_dir = with_config_dir(given)
        if config_dir is not None:
            from peftlab.training.ranks import Ranks

            if Ranks.here().rank == 0:  # of several, under srun and torchrun, one says it
                allowed = f"--config-dir {config_dir}, as you have allowed in this folder (peftlab allow)"
                _say(f"peftlab {command}: {allowed}")
            if arguments is None:  # Lightning starts other ranks by these words
                sys.argv[1:] = [command, *rest]
        with uncollected():
            module = importlib.import_module(f"peftlab.commands.{command.replace('-', '_')}")
        status: int = module.main(rest)
        return status
    except PeftlabError as error:
        return _report(command, error)
    except OSError as error:  # a full disk, a folder that may not be written
        return _report(command, error, status=1)
    except KeyboardInterrupt as error:
        if arguments is None:  # the process ends anyway: once more would interrupt its leaving
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        _say(f"peftlab {command}: {str(error) or 'interrupted.'}")
        return error.status if isinstance(error, Interrupted) else CTRL_C


def _report(command: str, error: Exception, status: int = 2) -> int:
    if os.environ.get("PEFTLAB_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    _say(f"peftlab {command}: {error}")
    return status


def _say(text: str) -> None:
    """On standard error, without escape sequences of others."""
    say(printable(text), file=sys.stderr)
