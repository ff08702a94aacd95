"""The programs, one per file; each is `ftjax <name>` and scripts/<name>.py."""
