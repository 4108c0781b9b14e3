"""``peftlab reproduce RECORD``: run a record again and compare the results to the bit."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from peftlab.audit.compare import Compared, compare, compare_adapters
from peftlab.audit.reproduce import Reproduction, environment, prepare, write_config_file
from peftlab.composition import parse
from peftlab.config import from_plain
from peftlab.errors import PeftlabError, RunError
from peftlab.report.render.terminal import console, print_hanging
from peftlab.terminal import printable, say, say_command

DESCRIPTION = """\
Run a record again, in a folder of its own, and compare the results to the bit. Says first which command that is, and
what is other here than in the record: packages, machine, code. Exit status 1 if a result differs."""


def main(arguments: Sequence[str]) -> int:
    """Say the command and what is other here, run it, compare.

    Returns:
        0 if every metric, every epoch and the adapter have the same bits, else 1.
    """
    parser = argparse.ArgumentParser("peftlab reproduce", description=DESCRIPTION)
    parser.add_argument("record", metavar="RECORD", help="a run folder, or a record.json copied from anywhere")
    parser.add_argument(
        "places",
        nargs="*",
        metavar="KEY=VALUE",
        help="where things lie here: data.path=…, backbone.from_run=…",
    )
    parser.add_argument("--print", action="store_true", help="print the command and the differences; run nothing")
    parser.add_argument(
        "--to", metavar="FOLDER", default="outputs/reproduced", help="the new run's output_dir (%(default)s)"
    )
    parser.add_argument("--check-data", action="store_true", help="read the data before and compare their hash")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end, the rest on stderr")
    given = parser.parse_intermixed_args(list(arguments))
    parse(given.places)
    reproduction = prepare(given.record, Path(given.to), given.places)
    write_config_file(reproduction)
    said = before(reproduction, check_data=given.check_data)
    stream = sys.stderr if given.json else sys.stdout
    for line in said:
        say(printable(line), file=stream)
    if given.print:
        say_command(printable(reproduction.command))
        return 0
    if reproduction.record["config"]["trainer"]["num_nodes"] != 1:
        raise RunError("the run needs several nodes: take its command from --print and start it with your launcher.")
    say_command(printable(reproduction.command), first="$ ", file=stream)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "peftlab", "train", *reproduction.arguments],
        check=False,
        stdout=stream.fileno() if given.json else None,
        env=environment(),
    )
    if done.returncode:
        say(f"peftlab reproduce: the run ended with exit status {done.returncode}; see above.", file=sys.stderr)
        return 1
    found = results(reproduction)
    if given.json:
        _print_json(reproduction, found)
    else:
        _print(reproduction, found)
    return 0 if all(one.identical for one in found) else 1


def before(reproduction: Reproduction, *, check_data: bool) -> list[str]:
    """What is to be known before it runs: what is other here than in the record."""
    from peftlab.audit.changes import changes

    record = reproduction.record
    lines = [f"run {record['key']} ({record['name']}), recorded {record.get('ended_at')}", *reproduction.notes]
    others = changes(record)
    lines.append("other here than in the record:" if others else "packages, machine and code are as in the record")
    lines += [f"  {line}" for line in others]
    lines += _devices(record["config"]["trainer"])
    if check_data:
        lines.append(_data(reproduction))
    return lines


def _devices(trainer: dict[str, object]) -> list[str]:
    import torch

    wanted = trainer["devices"]
    if trainer["accelerator"] in ("gpu", "cuda") and isinstance(wanted, int) and torch.cuda.device_count() < wanted:
        return [f"the run asks for {wanted} GPUs; this machine has {torch.cuda.device_count()}: it will be refused"]
    return []


def _data(reproduction: Reproduction) -> str:
    from peftlab.audit.verify_again import DataHashes

    try:
        found = DataHashes().of(from_plain(reproduction.config.plain()).data)
    except PeftlabError as error:
        return f"the data cannot be read here: {error}"
    recorded = reproduction.record["data"]["hash"]
    if found == recorded:
        return f"the data are those of the record (hash {found[:12]}…)"
    return f"the data have changed: hash {found[:12]}… here, {recorded[:12]}… in the record"


def results(reproduction: Reproduction) -> list[Compared]:
    """The new run's results beside the record's.

    Raises:
        RunError: if the run has left no record.
    """
    record, folder = reproduction.record, reproduction.folder
    now = folder.read_record()
    if now is None or now["status"] != "finished":
        raise RunError(f"{folder.path} has no record of a finished run: the command did not leave what it should.")
    adapter = record["files"]["adapter.safetensors"]
    return [*compare(record, now), *compare_adapters(reproduction.original.adapter, adapter, folder.adapter)]


def _print(reproduction: Reproduction, found: list[Compared]) -> None:
    out = console()
    width = max(len(one.name) for one in found)
    for one in found:
        mark = ("same  ", "green") if one.identical else ("OTHER ", "red")
        print_hanging(out, f"{one.name:<{width}}  {one.said}", then=" " * (len(mark[0]) + 2), first=mark)
    others = sum(not one.identical for one in found)
    say(
        f"{reproduction.folder.path}: "
        + (f"{others} of {len(found)} results differ" if others else "the same bits in every result")
    )


def _print_json(reproduction: Reproduction, found: list[Compared]) -> None:
    content = {
        "run": str(reproduction.original.path),
        "key": reproduction.record["key"],
        "command": reproduction.command,
        "reproduced": str(reproduction.folder.path),
        "identical": all(one.identical for one in found),
        "results": [{"name": one.name, "identical": one.identical, "said": one.said} for one in found],
    }
    print(json.dumps(content, ensure_ascii=False))
