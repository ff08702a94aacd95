"""What `ftjax train` does: see ftjax/commands/train.py."""

import sys

from ftjax.command import run

run("train", sys.argv)
