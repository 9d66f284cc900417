"""How help looks: plain text for people, commands in panels, examples at the end, one to a line.

Typer's own puts types beside arguments (`DATA <str>`) and ranges beside options (`[x>=1]`); here a value out of range is told
when somebody gives one. Contexts and formatters are Click's, or Typer's own copy of Click: hence `Any`.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from typer import BadParameter
from typer.core import TyperCommand, TyperGroup

PANELS = MAKE, LOOK, USE, INSIDE, OTHERS = ("Make a run", "Look at runs", "Use a run", "See what there is", "Commands")


class Command(TyperCommand):
    """A command whose docstring may end in `Examples:`, a command line each."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.help, self.epilog = _text_and_examples(self.help)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse empty arguments: as a path, "" would mean the current folder."""
        if "" in args:
            raise BadParameter("an argument is empty: name what is meant (is a variable of the shell unset?)", ctx)
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return what stands behind the command's name: arguments, and options that must be given, as people write them."""
        params: list[Any] = self.get_params(ctx)
        arguments = [p.metavar if p.required else f"[{p.metavar}]" for p in params if p.param_type_name == "argument"]
        needed = [f"{p.opts[0]} {p.metavar}" for p in params if p.param_type_name == "option" and p.required]
        return [*arguments, *needed, "[OPTIONS]"]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options."""
        _write_parameters(self.get_params(ctx), formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples."""
        _write_examples(self.epilog, formatter)


class ProcessGroup(TyperGroup):
    """Commands, sorted by panel; its text may end in `Examples:`, too."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.help, self.epilog = _text_and_examples(self.help)
        self.commands = dict(sorted(self.commands.items(), key=lambda item: PANELS.index(_panel(item[1]))))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, then the options."""
        width = max(map(len, self.commands))
        room = formatter.width - width - 6
        for panel in dict.fromkeys(map(_panel, self.commands.values())):
            inside = [(name, command) for name, command in self.commands.items() if _panel(command) == panel]
            with formatter.section(panel):
                formatter.write_dl([(name.ljust(width), command.get_short_help_str(room)) for name, command in inside])
        _write_parameters(self.get_params(ctx), formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples."""
        _write_examples(self.epilog, formatter)


def _panel(command: Any) -> str:
    return next((panel for panel in PANELS if panel == command.rich_help_panel), OTHERS)


def _text_and_examples(text: str | None) -> tuple[str, str]:
    before, _, examples = (text or "").partition("Examples:\n")
    return before.rstrip(), "\n".join(line.strip() for line in examples.splitlines())


def _write_parameters(params: list[Any], formatter: Any) -> None:
    for title in ("Argument", "Option"):
        if rows := [_row(param) for param in params if param.param_type_name == title.lower()]:
            with formatter.section(f"{title}s"):
                formatter.write_dl(rows)


def _row(param: Any) -> tuple[str, str]:
    """Return a parameter's name, and what it does with its default, unless the text says that."""
    names = ", ".join(sorted(param.opts, key=len)) if param.param_type_name == "option" else ""
    default = param.default.value if isinstance(param.default, Enum) else param.default
    shown = "" if default is None or default is False else f"  [default: {default}]"
    return f"{names} {param.metavar or ''}".strip(), f"{param.help}{shown}"


def _write_examples(examples: str | None, formatter: Any) -> None:
    if examples:
        with formatter.section("Examples"):
            formatter.write("".join(f"{'':{formatter.current_indent}}{line}\n" for line in examples.splitlines()))
