"""What `ftjax export` does: see ftjax/commands/export.py."""

import sys

from ftjax.command import run

run("export", sys.argv)
