"""Help: it is readable, its examples are valid commands, and a shell completes everything that has a name."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from alexnet import recipe
from alexnet.ablation import STUDIES
from alexnet.cli import app
from alexnet.cli.options import data_argument
from alexnet.data import builtin, imagenet, photo_sets
from alexnet.network.variants import VARIANTS

OTHER_PROGRAMS = {"find", "curl"}
NAMES = (*builtin.NAMES, *photo_sets.NAMES, imagenet.NAME)


def walk(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command with its full name, groups before their commands."""
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, (*words, name))


COMMANDS = dict(walk(typer.main.get_command(app)))


def help_of(words: tuple[str, ...]) -> str:
    done = CliRunner().invoke(app, [*words, "--help"], prog_name="alexnet", terminal_width=78)
    assert done.exit_code == 0, done.output
    return done.output


def calls(line: str) -> Iterator[list[str]]:
    """Yield the arguments of each `alexnet` in a shell line: parts of a pipe, without redirections."""
    for part in line.split(" | "):
        program, *arguments = shlex.split(part.partition(" > ")[0])
        if program == "alexnet":
            yield arguments
        else:
            assert program in OTHER_PROGRAMS, f"{program} is another program: {line}"


def parsed(arguments: list[str]) -> Any:
    """Parse the arguments of `alexnet` and return the command's context; nothing is run."""
    words: tuple[str, ...] = ()
    while (*words, *arguments[:1]) in COMMANDS and arguments:
        words, arguments = (*words, arguments[0]), arguments[1:]
    assert not hasattr(COMMANDS[words], "commands"), f"{words} is a group"
    return COMMANDS[words].make_context(words[-1], arguments)


def test_help_fits_80_columns_and_shows_no_types_and_ranges() -> None:
    for text in map(help_of, COMMANDS):
        assert max(map(len, text.splitlines())) <= 80, text
        assert not re.search(r"<(str|path|int|float|list\[)|[<>]=|[{}]|\w\.\.\.$|None", text, re.MULTILINE), text


def test_every_option_says_what_it_does() -> None:
    for words, param in ((words, param) for words, command in COMMANDS.items() for param in command.params):
        assert param.help.endswith((".", "]")), f"{words} {param.name}: {param.help}"
        named = param.metavar or param.is_flag or param.name in ("install_completion", "show_completion")
        assert named, f"{words} {param.name}"


def test_every_command_has_examples_and_they_are_commands() -> None:
    for words in COMMANDS:
        assert_has_examples(words)


def assert_has_examples(words: tuple[str, ...]) -> None:
    """The help of a command ends in examples; all can be parsed, and one is of the command itself."""
    lines = COMMANDS[words].epilog.splitlines()
    assert lines, f"{words}: no examples"
    assert help_of(words).endswith("".join(f"  {line}\n" for line in ("Examples:", *lines))[2:]), "one to a line, at the end"
    own = [arguments for line in lines for arguments in calls(line) if tuple(arguments[: len(words)]) == words]
    assert own, f"none of them is `alexnet {' '.join(words)}`"
    for line in lines:
        for arguments in calls(line):
            context = parsed(arguments)
            for param in context.command.params:
                assert_known(context, param, line)


def assert_known(context: Any, param: Any, line: str) -> None:
    """Every completed name must be valid, unless it is the name of a file."""
    value, known = context.params.get(param.name), [item.value for item in param.shell_complete(context, "")]
    if isinstance(value, str) and known:
        assert value in known or re.search(r"[/.]", value), f"{line}: no {param.name} {value!r}"


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("train photos/ --rate 3", "No such option"),
        ("predict runs/photos", "Missing parameter"),
        ("evaluate runs/a --split tset", "'tset' is not one of"),
        ("train --minutes soon", "valid (number|float)"),
        ("search runs/photos", "is a group"),
    ],
)
def test_a_wrong_example_would_be_found(wrong: str, why: str) -> None:
    with pytest.raises(Exception, match=why):
        parsed(wrong.split())


def test_a_wrong_name_in_an_example_would_be_found() -> None:
    context = parsed(["train", "--recipe", "fsat"])
    with pytest.raises(AssertionError, match="no recipe 'fsat'"):
        assert_known(context, next(p for p in context.command.params if p.name == "recipe"), "")


def test_texts_list_all_names() -> None:
    assert ", ".join(NAMES) in data_argument().help


# Completion


def completions(line: str) -> list[str]:
    """Return the completions that bash would offer at the end of a line."""
    words = line.split(" ")
    environment = {"_ALEXNET_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = CliRunner().invoke(app, [], prog_name="alexnet", env=environment)
    assert done.exit_code == 0, done.output
    return done.output.split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("alexnet tr", ["train"]),
        ("alexnet search ", ["index", "query"]),
        ("alexnet train --find-l", ["--find-lr"]),
        ("alexnet train ", NAMES),
        ("alexnet data check fa", ["fashion-mnist"]),
        ("alexnet train photos --recipe ", recipe.names()),
        ("alexnet train --recipe cat", ["cats-dogs"]),
        ("alexnet train --variant ", VARIANTS),
        ("alexnet train --parallel ", ["data", "towers", "hybrid"]),
        ("alexnet train --weights i", ["imagenet1k"]),
        ("alexnet train --device c", ["cpu", "cuda"]),
        ("alexnet ablate --study p", ["pooling"]),
        ("alexnet ablate --study ", STUDIES),
        ("alexnet evaluate runs/a --split ", ["train", "val", "test"]),
        ("alexnet evaluate runs/a --views ", ["1", "2", "10"]),
        ("alexnet evaluate runs/a ", NAMES),
        ("alexnet recipes show f", ["fast", "finetune", "four-layer"]),
        ("alexnet model plot ow", ["owt"]),
        ("alexnet import m.keras --variant ow", ["owt"]),
        ("alexnet predict ", []),  # then bash offers files
        ("alexnet train photos --out ", []),
    ],
)
def test_a_shell_completes_what_has_a_name(
    line: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert completions(line) == list(words)


def test_completed_names_do_not_hide_paths_with_the_same_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("cats", "dogs", ".c"):
        (tmp_path / name).mkdir()
    (tmp_path / "fast.toml").touch()
    assert completions("alexnet train c") == ["cifar10", "cats-dogs", "cats/"]
    assert completions("alexnet train --recipe fas") == ["fast", "fast.toml"]
    assert completions("alexnet train do") == [], "bash offers dogs/ itself"


def test_bash_completes_with_the_script_that_is_shown(tmp_path: Path) -> None:
    script = (
        'alexnet --install-completion > /dev/null && source "$HOME/.bashrc"\n'
        "complete -p alexnet\n"
        'COMP_WORDS=(alexnet train --variant ow) COMP_CWORD=3; _alexnet_completion alexnet; echo "${COMPREPLY[@]}"\n'
        'diff <(alexnet --show-completion) <(cat "$HOME/.bash_completions/alexnet.sh"; echo) && echo the same\n'
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"HOME": str(tmp_path), "PATH": path}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["complete -o default -F _alexnet_completion alexnet", "owt", "the same"]


def test_completion_does_not_load_torch(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "os.environ |= {'_ALEXNET_COMPLETE': 'complete_bash', 'COMP_CWORD': '3'}\n"
        "from alexnet.cli import main\n"
        "lines, sys.argv = sys.argv[1:], ['alexnet']\n"
        "for os.environ['COMP_WORDS'] in lines:\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit:\n"
        "        print('end')\n"
        "assert not {'torch', 'PIL', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
    )
    lines: dict[str, list[str]] = {
        "alexnet train --recipe ": recipe.names(),
        "alexnet train --variant ": list(VARIANTS),
        "alexnet data check ": list(NAMES),
        "alexnet ablate --study ": list(STUDIES),
    }
    done = subprocess.run([sys.executable, "-c", code, *lines], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == [word for words in lines.values() for word in (*words, "end")]
