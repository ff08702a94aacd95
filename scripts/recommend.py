"""What `ftjax recommend` does: see ftjax/commands/recommend.py."""

import sys

from ftjax.command import run

run("recommend", sys.argv)
