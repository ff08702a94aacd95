"""What `ftjax predict` does: see ftjax/commands/predict.py."""

import sys

from ftjax.command import run

run("predict", sys.argv)
