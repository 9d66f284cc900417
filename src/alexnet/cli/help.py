"""Format help as plain text: commands in panels, and examples at the end, one per line.

Typer's own format shows types beside arguments (`DATA <str>`) and ranges beside options (`[x>=1]`), and truncates names and
wraps examples on a narrow terminal. Contexts and formatters are those of Typer's own copy of Click, hence `Any`.
"""

from typing import Any

from typer import BadParameter
from typer.core import TyperCommand, TyperGroup

PANELS = MAKE, LOOK, USE, INSIDE, OTHERS = ("Make a run", "Look at runs", "Use a run", "Look things up", "Commands")


class _Help:
    """The help of a command or a group; its docstring may end in `Examples:`, with one command line each."""

    help: str | None
    epilog: str | None
    get_params: Any

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        text, _, examples = (self.help or "").partition("Examples:\n")
        self.help = text.rstrip()
        self.epilog = "\n".join(line.strip() for line in examples.splitlines())

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write commands, arguments and options."""
        commands: dict[str, Any] = getattr(self, "commands", {})
        width = max(map(len, commands), default=0)
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, command in commands.items():
            row = name.ljust(width), command.get_short_help_str(formatter.width - width - 6)
            sections.setdefault(_panel(command), []).append(row)
        for param in self.get_params(ctx):
            sections.setdefault(f"{param.param_type_name.title()}s", []).append(_row(param))
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples, which are not wrapped."""
        if self.epilog:
            with formatter.section("Examples"):
                formatter.write("".join(f"  {line}\n" for line in self.epilog.splitlines()))


class Command(_Help, TyperCommand):
    """A command; its docstring may end in `Examples:`, with one command line each."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reject empty arguments: as a path, "" would mean the current folder."""
        if "" in args:
            raise BadParameter("an argument is empty: name what is meant (is a variable of the shell unset?)", ctx)
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return what follows the command's name: arguments and required options as users type them."""
        params: list[Any] = self.get_params(ctx)
        arguments = [p.metavar if p.required else f"[{p.metavar}]" for p in params if p.param_type_name == "argument"]
        required = [f"{p.opts[0]} {p.metavar}" for p in params if p.param_type_name == "option" and p.required]
        return [*arguments, *required, "[OPTIONS]"]


class Group(_Help, TyperGroup):
    """Commands, sorted by panel; the help may end in `Examples:`, too."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.commands = dict(sorted(self.commands.items(), key=lambda item: PANELS.index(_panel(item[1]))))


def _panel(command: Any) -> str:
    return command.rich_help_panel if command.rich_help_panel in PANELS else OTHERS


def _row(param: Any) -> tuple[str, str]:
    """Return a parameter's name, and its help with its default, unless the help already states that."""
    names = ", ".join(sorted(param.opts, key=len)) if param.param_type_name == "option" else ""
    shown = "" if param.default is None or param.default is False else f"  [default: {param.default}]"
    return f"{names} {param.metavar or ''}".strip(), f"{param.help}{shown}"
