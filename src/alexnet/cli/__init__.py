"""The command line: a command each parses, calls `api`, prints. torch is imported by the commands that need it."""

from alexnet.cli import inside, look, make, use  # noqa: F401 - each adds its commands
from alexnet.cli.app import app, main

__all__ = ["app", "main"]
