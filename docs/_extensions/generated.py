"""Write source files that Sphinx reads, and only where they changed, so that builds stay short."""

from collections.abc import Mapping
from pathlib import Path


def write(folder: Path, files: Mapping[str, str], suffixes: tuple[str, ...]) -> None:
    """Make the generated files of a folder exactly these; files of other suffixes stay.

    Args:
        folder: is made where it is not there.
        files: name -> content.
        suffixes: of the files that are generated here; others of them are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if old.suffix in suffixes and old.name not in files:
            old.unlink()
    for name, content in files.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != content:
            path.write_text(content, encoding="utf-8")
