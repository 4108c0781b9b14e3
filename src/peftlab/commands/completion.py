"""``peftlab completion bash|zsh``: the script that lets a shell complete commands, groups, keys and values."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from peftlab.completion import SCRIPTS, script

DESCRIPTION = """\
Print the script with which a shell completes commands, options, groups, their files, keys and values. For this shell:
eval "$(peftlab completion bash)"; for all to come, the same line in ~/.bashrc, or with zsh in ~/.zshrc."""


def main(arguments: Sequence[str]) -> int:
    """Print it.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser("peftlab completion", description=DESCRIPTION)
    parser.add_argument("shell", metavar="SHELL", help=f"one of {', '.join(SCRIPTS)}")
    print(script(parser.parse_args(list(arguments)).shell), end="")
    return 0
