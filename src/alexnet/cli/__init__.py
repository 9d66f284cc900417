"""The command line. Each command parses its arguments, calls `api` and prints the result; torch is imported only if needed."""

from alexnet.cli import convert, info, inspect, predict, train  # noqa: F401
from alexnet.cli.app import app, main

__all__ = ["app", "main"]
