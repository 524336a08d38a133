"""The code blocks of a README, with what each is said to print."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PROGRAM = re.compile(r"^(normscope|pip|make|python) ")


@dataclass(frozen=True)
class Block:
    """One block to run.

    Attributes:
        python: whether it is Python, else commands of a shell, one a line.
        code: without remarks, so that READMEs in two languages can be compared.
        output: what the README prints after it; empty where it prints nothing.
    """

    python: bool
    code: str
    output: str = ""

    @property
    def commands(self) -> list[str]:
        """The lines of a shell block that call normscope in full."""
        lines = [] if self.python else self.code.splitlines()
        return [line for line in lines if line.startswith("normscope ") and "..." not in line]


def blocks(readme: Path) -> Iterator[Block]:
    """Yield the blocks in order; one that is neither Python nor commands is an output."""
    found: Block | None = None
    for language, text in FENCE.findall(readme.read_text(encoding="utf-8")):
        if language != "python" and not PROGRAM.match(text):
            assert found is not None, "an output without a block before it"
            yield Block(found.python, found.code, text)
            found = None
            continue
        if found is not None:
            yield found
        lines = (re.sub(r"\s+# .*", "", line) for line in text.splitlines())
        found = Block(language == "python", "\n".join(lines))
    if found is not None:
        yield found
