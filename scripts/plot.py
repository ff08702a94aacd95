"""What `ftjax plot` does: see ftjax/commands/plot.py."""

import sys

from ftjax.command import run

run("plot", sys.argv)
