"""What `ftjax import_weights` does: see ftjax/commands/import_weights.py."""

import sys

from ftjax.command import run

run("import_weights", sys.argv)
