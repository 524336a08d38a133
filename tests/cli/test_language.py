"""The command line in Chinese: help, wrong use, and what else goes wrong."""

import ast
import os
import re
import string
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.main
from rich.cells import cell_len

import normscope
from normscope.cli import app, convert, help, language, main
from normscope.conversion.kinds import KINDS
from normscope.experiment.nets import NETS, NORMS

SOURCES = Path(normscope.__file__).parent
CHINESE = re.compile("[\u4e00-\u9fff]")
# written by Typer and Click, which word them anew now and then, or filled into other sentences
OTHERS = re.compile(
    r"Invalid|Missing|No such|Option \{\}|Got|Input should|Choose|it takes|[\w' ]+$"
    r"|\{\} (is not (one of|in the range|a valid)|-h shows)|--data or|an? (Git|web|bare) |no check"
)
ERRORS = ("InputError", "FileError", "ModelError", "MissingExtraError", "KernelError")
# what a command never calls: layers and kernels in a program of one's own, callbacks, charts
PYTHON = ("layers", "kernels", "functional.py", "arguments.py", "folding", "callbacks")


def commands() -> Iterator[tuple[Any, Any]]:
    root = typer.main.get_command(app)
    context = root.make_context("normscope", [], resilient_parsing=True)
    yield root, context
    for name in root.list_commands(context):
        command = root.get_command(context, name)
        yield command, command.make_context(name, [], parent=context, resilient_parsing=True)


def test_every_text_of_the_help_is_there_in_chinese_and_none_is_left_over() -> None:
    found = {text for command, context in commands() for text in help.texts(command, context)}
    known = language.catalogue("help")
    assert found - known.keys() == set(), "add these to help.zh.json"
    assert known.keys() - found == set(), "remove these from help.zh.json"
    for english, chinese in known.items():
        if english.strip(" ;:") and english != chinese:
            assert CHINESE.search(chinese) or english.startswith("50,"), english


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_no_line_of_the_help_is_wider_than_80_columns(lang: str) -> None:
    for command, context in commands():
        context.find_root().command.language = lang
        text = list(help.lines(command, context, 78))
        assert max(map(cell_len, text)) <= 80, max(text, key=cell_len)
        if lang == "zh":
            left = [line for line in text if re.search(r"[a-z]{3,} [a-z]+ [a-z]+ [a-z]+ ", line)]
            assert not left, "a sentence is still English"


def test_summaries_are_one_line_each() -> None:
    root, context = next(commands())
    listed = list(help.lines(root, context, 78))
    for name in root.list_commands(context):
        line = next(line for line in listed if line.startswith(f"  {name} "))
        assert line.endswith("."), line


def test_enumerations_are_those_of_the_library() -> None:
    assert get_args(convert.To) == KINDS
    texts = {p.name: p for c, _ in commands() if c.name == "train" for p in c.params}
    assert "|".join(NETS) in texts["net"].get_help_record(next(commands())[1])[0]
    assert f"{', '.join(NORMS)}." in texts["norm"].help


def raised() -> dict[str, str]:
    """Every sentence of an error in the sources, with {} for what is filled in -> its file."""
    found: dict[str, str] = {}
    for path in sorted(SOURCES.rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        constants = {
            node.targets[0].id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            if getattr(node.func, "id", "") not in ERRORS:
                continue
            given = node.args[0]
            match constants.get(given.id, given) if isinstance(given, ast.Name) else given:
                case ast.Constant(value=str(text)):
                    found[text] = str(path.relative_to(SOURCES))
                case ast.JoinedStr(values=values):
                    parts = (v.value if isinstance(v, ast.Constant) else "{}" for v in values)
                    found["".join(map(str, parts))] = str(path.relative_to(SOURCES))
    return found


def test_every_error_of_a_command_is_there_in_chinese() -> None:
    known = language.catalogue("errors")
    found = raised()
    left_over = [text for text in known if text not in found and not OTHERS.match(text)]
    assert left_over == [], "remove these from errors.zh.json, or bring them up to date"
    of_commands = {t for t, where in found.items() if not where.startswith(PYTHON)}
    assert of_commands - known.keys() == set(), "add these to errors.zh.json"


def test_chinese_takes_what_english_fills_in() -> None:
    for english, chinese in language.catalogue("errors").items():
        fields = {int(name) for _, name, *_ in string.Formatter().parse(chinese) if name}
        assert fields == set(range(english.count("{}"))) or "as in convert" in english, english


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("there is no record a.json; check the path", "没有记录 a.json；请检查路径"),
        (
            "--labels has no effect without --data or --loader; name data or leave it out",
            "没有 --data 或 --loader 时 --labels 不起作用；请指定数据，或去掉该选项",
        ),
        ("Missing option '--model'", "缺少选项 '--model'"),
        (
            "a.pt is text; give safetensors or a torch checkpoint",
            "a.pt 是文本；请给出 safetensors 或 torch 检查点",
        ),
        ("something is new", "（此句暂无中文）something is new"),
        ("a {b} is odd: {}; {0}", "（此句暂无中文）a {b} is odd: {}; {0}"),
    ],
)
def test_what_is_filled_in_is_chinese_too(english: str, chinese: str) -> None:
    assert language.sentence(english, "zh") == chinese
    assert language.sentence(english, "en") == english


WRONG = [
    ("train --epochs x", "整数；normscope train -h 列出全部用法"),
    ("train --net magic", "'--net' 的值无效：'magic' 不在可选值 'mlp', 'cnn' 之中"),
    ("convert --out x", "缺少选项 '--model'"),
    ("trian", "没有命令 'trian'；"),
    ("explain --nothing", "没有选项 --nothing"),
    ("explain NS999", "没有检查项 'NS999'；normscope explain --checks 列出全部"),
    ("report nowhere.json", "没有记录 nowhere.json；请检查路径"),
    ("diagnose --data iris", "请指定模型"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG, ids=[a for a, _ in WRONG])
def test_wrong_use_in_chinese(
    arguments: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["normscope", *arguments.split(), "--lang", "zh"])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (2, "")
    assert len(told.err.strip().splitlines()) == 1
    assert said in told.err


@pytest.mark.parametrize(
    ("arguments", "locale", "expected"),
    [
        (["explain", "--lang", "zh"], "C", "zh"),
        (["explain", "--lang=zh"], "C", "zh"),
        (["--lang", "en", "explain"], "zh_CN.UTF-8", "en"),
        (["explain", "--lang", "fr"], "zh_CN.UTF-8", "zh"),
        (["explain", "--lang"], "C", "en"),
        ([], "zh_TW", "zh"),
    ],
)
def test_the_language_is_known_before_the_options_are(
    arguments: list[str], locale: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NORMSCOPE_LANG", "LC_ALL", "LC_MESSAGES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANG", locale)
    assert language.spoken(arguments) == expected
    monkeypatch.setenv("NORMSCOPE_LANG", "zh")  # it goes before the locale, --lang before it
    assert language.spoken(arguments) == ("en" if "en" in arguments else "zh")


def test_a_language_for_the_whole_command_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    for arguments in ("--lang zh", "--lang zh explain ns001", "--lang zh explain -h"):
        monkeypatch.setattr(sys, "argv", ["normscope", *arguments.split()])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        said.append(capsys.readouterr().out)
    assert "先试试" in said[0]
    assert "训练标志" in said[1]
    assert "用法：normscope explain [选项] [code]" in said[2].replace("[CODE]", "[code]")


def test_completion_is_installed_and_completes(tmp_path: Path) -> None:
    env = {**os.environ, "HOME": str(tmp_path), "LANG": "C.UTF-8"}
    command = [sys.executable, "-c", "from normscope.cli import main; main()"]
    asked = {
        "_NORMSCOPE_COMPLETE": "complete_bash",
        "COMP_WORDS": "normscope train --net ",
        "COMP_CWORD": "3",
    }
    done = subprocess.run(command, env=env | asked, capture_output=True, text=True, check=False)
    assert done.stdout.split() == list(NETS), done.stderr
    script = {**env, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(
        [*command, "--install-completion", "bash"],
        env=script, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.rglob("normscope.sh")
    assert "_NORMSCOPE_COMPLETE=complete_bash" in written.read_text()
