"""The command line: a command each parses, calls `api`, prints. torch is imported by the commands that need it."""

from alexnet.cli import info, inspect, predict, train  # noqa: F401
from alexnet.cli.app import app, main

__all__ = ["app", "main"]
