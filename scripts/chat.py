"""What `ftjax chat` does: see ftjax/commands/chat.py."""

import sys

from ftjax.command import run

run("chat", sys.argv)
