"""The Typer application, and its entry point `main`."""

import errno
import io
import os
import sys
from typing import Annotated

import typer

import alexnet
from alexnet.cli.help import Group
from alexnet.errors import AlexNetError, Interrupted, printable
from alexnet.progress import output_disabled

HELP = """
Train an image classifier on your own photos, see what it learned, predict with it.

Run alexnet COMMAND --help for the options of a command.

Examples:
    alexnet train photos/ --minutes 10 --out runs/photos
    alexnet evaluate runs/photos
    alexnet predict runs/photos cat.jpg
"""

app = typer.Typer(
    name="alexnet",
    cls=Group,
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def group(name: str, panel: str, text: str, *examples: str) -> typer.Typer:
    """Add a group of commands to the application and return it; `text` and `examples` are its help."""
    inner = typer.Typer(cls=Group, no_args_is_help=True, help="\n".join([f"{text}\n\nExamples:", *examples]))
    app.add_typer(inner, name=name, rich_help_panel=panel)
    return inner


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Declare the global options, which `main` handles."""


def main() -> None:
    """Run the command line; print an `AlexNetError` as one line and exit with code 1."""
    # Threads that wait for others sleep. By default they keep running, and take the cores from those they wait for if other
    # processes are busy: steps took several times as long (docs/log.md). OpenMP reads this when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names need not be UTF-8; the escapes are valid JSON
            stream.reconfigure(errors="backslashreplace")
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    if arguments == ["--version"]:
        print(f"alexnet {alexnet.__version__}")
        return
    try:
        app(args=arguments, prog_name="alexnet")
    except AlexNetError as error:
        if debug:
            raise
        if not output_disabled():  # the main process prints it
            print(printable(f"alexnet: {error}"), file=sys.stderr)
        sys.exit(error.code if isinstance(error, Interrupted) else 1)
    except OSError as error:
        if debug or error.errno != errno.ENOSPC:  # any other is a bug
            raise
        print(f"alexnet: cannot write all of the output: {error.strerror}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("alexnet: interrupted", file=sys.stderr)
        sys.exit(130)
