"""One word for one thing in Chinese: docs/glossary.md says which, and which are not used."""

import json
import re
from pathlib import Path

import pytest

from normscope.report.messages import catalogue
from normscope.report.playground import lessons

ROOT = Path(__file__).parents[1]
GLOSSARY = ROOT / "docs" / "glossary.md"
HAN = r"[\u4e00-\u9fff]"
SOURCES = [
    *sorted((ROOT / "src").rglob("*.json")),
    *sorted((ROOT / "src").rglob("*.j2")),
    *sorted((ROOT / "src" / "normscope" / "report" / "assets" / "scripts").rglob("*.js")),
    *(p for p in sorted((ROOT / "src").rglob("*.py"))),
    *(p for p in sorted((ROOT / "docs").rglob("*.md")) if p != GLOSSARY),
    *sorted((ROOT / "examples").glob("*.ipynb")),
    ROOT / "README.zh-CN.md",
]


def rows() -> list[list[str]]:
    lines = [line for line in GLOSSARY.read_text("utf-8").splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


# a shift of a distribution is 偏移, that of the layer is 平移
DEPRECATED = [word for row in rows() for word in row[3].split("、") if word] + [
    r"(?<!协变量)(?<!分布)偏移",
    f"{HAN}[,;:!?](?= |$|{HAN})",  # Chinese sentences have Chinese punctuation
]


def chinese(path: Path) -> str:
    text = path.read_text("utf-8")
    if path.suffix == ".ipynb":  # what is said and printed, and no pictures
        cells = json.loads(text)["cells"]
        said = [cell["source"] for cell in cells]
        said += [o["text"] for c in cells for o in c.get("outputs", ()) if "text" in o]
        return "\n".join("".join(part) for part in said)
    return text


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    found = {str(path.relative_to(ROOT)): chinese(path) for path in SOURCES}
    return {name: text for name, text in found.items() if re.search(HAN, text)}


def test_the_glossary_is_a_table_of_words() -> None:
    assert len(rows()) > 30
    assert {"门限", "运行统计量", "批归一化"} <= set(DEPRECATED)
    assert all(len(row) == 4 and row[0] and re.search(HAN + "|[a-z²]", row[1]) for row in rows())


@pytest.mark.parametrize("word", DEPRECATED)
def test_no_text_uses(word: str, texts: dict[str, str]) -> None:
    assert len(texts) > 10, "the messages are among them"
    found = [
        f"{name}: ...{text[max(0, at.start() - 12) : at.end() + 12]}..."
        for name, text in texts.items()
        for at in re.finditer(word, text)
    ]
    assert not found, f"docs/glossary.md has another word for {word}:\n" + "\n".join(found)


def test_every_message_is_there_in_chinese() -> None:
    symbols = re.compile(r"[^\W\d_]{4,}")
    for key, text in catalogue().items():
        fields = [sorted(set(re.findall(r"\{(\w+)", text[lang]))) for lang in ("en", "zh")]
        assert fields[0] == fields[1] or set(fields[1]) < set(fields[0]), key
        if len(symbols.findall(text["en"])) > 3:
            assert re.search(HAN, text["zh"]), f"{key} is not translated: {text['zh']}"


def test_every_ready_lesson_has_its_words() -> None:
    names = [lesson["name"] for lesson in lessons()]
    assert names
    for name in names:
        for part in ("title", "shows", "claim"):
            assert re.search(HAN + "|γ", catalogue()[f"network.lesson.{name}.{part}"]["zh"])
