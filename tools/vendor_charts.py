"""Rebuild the chart bundle that every report carries, and its licences: `make assets`.

Needs npm and network access; who uses normscope needs neither, the two files are in the package.
"""

import json
import re
import subprocess
import tempfile
import venv
from collections import defaultdict
from pathlib import Path

VENDOR = Path(__file__).parents[1] / "src/normscope/report/assets/vendor"
CONVERTER = "vl-convert-python==1.9.0.post1"
SOURCES = ("vega@6.2.0", "vega-lite@6.4.0", "vega-embed@7.0.2")  # what that converter bundles
# command-line helpers of those packages that no bundle holds
LEFT_OUT = {
    *("@types", "ansi-regex", "ansi-styles", "cliui", "commander", "emoji-regex", "escalade"),
    *("get-caller-file", "get-east-asian-width", "iconv-lite", "rw", "safer-buffer"),
    *("string-width", "strip-ansi", "wrap-ansi", "y18n", "yargs", "yargs-parser"),
}
BUNDLE = """
import vl_convert
print(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", "6.4"))
"""


def bundle(work: Path) -> str:
    """Vega, Vega-Lite and Vega-Embed in one script that sets `window.vegaEmbed`."""
    venv.create(work / "venv", with_pip=True)
    python = str(work / "venv/bin/python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", CONVERTER], check=True)
    script = subprocess.run(
        [python, "-c", BUNDLE], check=True, capture_output=True, text=True
    ).stdout.strip()
    if re.search(r"</script|<!--|^export ", script, re.IGNORECASE | re.MULTILINE):
        raise SystemExit("the bundle would end the script element that holds it")
    # one scope of its own: its short top-level names must not meet those of the page
    return f"(() => {{{script}}})();\n"


def licences(work: Path) -> str:
    """Return the licence of every bundled package, under the packages that share it."""
    subprocess.run(
        ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent", *SOURCES],
        check=True,
        cwd=work,
    )
    shared: dict[str, list[str]] = defaultdict(list)
    for package in sorted((work / "node_modules").iterdir()):
        if package.name in LEFT_OUT or package.name.startswith("."):
            continue
        version = json.loads((package / "package.json").read_text())["version"]
        text = next(p for p in package.iterdir() if "licen" in p.name.lower()).read_text()
        owners = re.findall(r"^\W*copyright.*\d{4}.*$", text, re.IGNORECASE | re.MULTILINE)
        body = text
        for owner in owners:
            body = body.replace(owner, "")
        owner = "; ".join(" ".join(line.split()) for line in owners)
        shared[" ".join(body.split())].append(f"{package.name} {version}: {owner}".rstrip(": "))
    parts = ["\n".join(names) + "\n\n" + wrapped(body) for body, names in shared.items()]
    return "\n\n----\n\n".join(parts) + "\n"


def wrapped(text: str, width: int = 98) -> str:
    """`text` in lines of at most `width`."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".lstrip()
    return "\n".join(lines)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        script, texts = bundle(Path(folder)), licences(Path(folder))
    (VENDOR / "vega.js").write_text(f"/*!\n{texts.replace('*/', '* /')}*/\n{script}")
    (VENDOR / "vega.licences.txt").write_text(texts)
