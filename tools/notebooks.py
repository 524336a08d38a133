"""Execute the notebooks in examples/ and write them back with their outputs, ready to commit.

    python tools/notebooks.py [FILE ...]

Each runs top to bottom in a fresh kernel and an empty folder. What is written does not depend on
when and where that was: no times, no versions, nothing of bars that are gone. Charts are kept as
PNG, which every viewer shows; that needs vl-convert-python.
"""

import copy
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

FOLDER = Path(__file__).parent.parent / "examples"
LIMIT = 1_500_000  # bytes of one file
TIMEOUT = 300  # seconds of one cell

# Before the first cell. altair's own renderer loads scripts from the net, on which a file cannot
# rely. torchvision's compiled half does not load beside a torch for CPUs from another index, so its
# operators are named. What other packages say when they are imported is not the notebook's.
BEGIN = """
def _begin():
    import altair, logging, torch, warnings
    from importlib.util import find_spec
    warnings.filterwarnings("ignore", "IProgress not found")
    warnings.filterwarnings("ignore", ".*LeafSpec")
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if find_spec("vl_convert"):
        altair.renderers.enable("png", scale_factor=1.5)
    else:
        altair.renderers.register("none", lambda spec, **_: {"text/plain": "alt.Chart(...)"})
        altair.renderers.enable("none")
    if find_spec("torchvision"):
        global _operators
        _operators = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            _operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_begin()
del _begin
"""
# a path or an address in memory, of this machine
LOCAL = re.compile(r"/(?:home|root|tmp|usr|opt|work|Users|private)/[\w.-]+|\b0x[0-9a-f]{6,}")
DATA = re.compile(r"data:image/[\w+]+;base64,[\w+/=]+")
PICTURE = {"image/png"}  # of a chart, which needs not be there


def notebooks() -> list[Path]:
    """Return the notebooks of the project."""
    return sorted(FOLDER.glob("*.ipynb"))


def execute(path: Path) -> Any:
    """Run a notebook and return it with its outputs; the file stays.

    Raises:
        CellExecutionError: a cell raised.
    """
    found = nbformat.read(path, as_version=4)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")]),
        "NORMSCOPE_LANG": "en",
        "PYTHONWARNINGS": "default",
        "OMP_NUM_THREADS": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            found,
            timeout=TIMEOUT,
            kernel_name="python3",
            coalesce_streams=True,
            record_timing=False,
            store_widget_state=False,
            resources={"metadata": {"path": folder}},
            extra_arguments=[f"--IPKernelApp.exec_lines={BEGIN}"],
            config=Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}}),
        )
        client.execute(env=environment)
    return canonical(found)


def canonical(notebook: Any) -> Any:
    """Return a copy of an executed notebook with nothing in it that changes from run to run."""
    notebook = copy.deepcopy(notebook)
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    count = 0
    for place, cell in enumerate(notebook.cells):
        cell.id = f"cell-{place:02}"
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k == "tags"})
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        cell.outputs = [output for output in cell.outputs if not _gone(output)]
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
            if "metadata" in output:  # the size of a picture stays
                kept = {k: v for k, v in output.metadata.items() if k in PICTURE}
                output.metadata = nbformat.from_dict(kept)
    return notebook


def _gone(output: Any) -> bool:
    """Whether this is what a bar leaves behind."""
    return output.output_type == "display_data" and output.data.get("text/html") == ""


def shape(notebook: Any) -> list[list[tuple[str, ...]]]:
    """Return what kinds of output each code cell has."""
    cells = (cell for cell in notebook.cells if cell.cell_type == "code")
    return [[_kind(output) for output in cell.outputs] for cell in cells]


def _kind(output: Any) -> tuple[str, ...]:
    data = {*output.get("data", ())} - PICTURE
    return (output.output_type, output.get("name", ""), *sorted(data))


def faults(notebook: Any) -> list[str]:
    """Return what must not be committed: errors, warnings, paths and addresses of this machine."""
    found = []
    for place, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", ()):
            if output.output_type == "error" or output.get("name") == "stderr":
                found.append(f"cell {place}: {output.get('text') or output.get('evalue')}")
                continue
            data = output.get("data", {})
            texts = [output.get("text", ""), *(data[kind] for kind in data if kind not in PICTURE)]
            text = DATA.sub("", "\n".join(map(str, texts)))
            found += [f"cell {place}: {part}" for part in LOCAL.findall(text)]
    return found


def text_of(notebook: Any) -> str:
    """Return the notebook as it is written to its file."""
    return nbformat.writes(notebook) + "\n"


def main(names: list[str]) -> int:
    """Execute notebooks, all of them unless some are named; return the exit code."""
    bad = 0
    for path in [Path(name) for name in names] or notebooks():
        try:
            done = execute(path)
        except CellExecutionError as problem:
            print(path.name, f"{problem.ename}: {problem.evalue}", sep="\n  ")
            bad += 1
            continue
        text = text_of(done)
        wrong = faults(done)
        if len(text.encode()) > LIMIT:
            wrong.append(f"{len(text.encode()):,} bytes; a notebook may have {LIMIT:,}")
        bad += bool(wrong)
        if not wrong:
            path.write_text(text, encoding="utf-8")
        print(path.name, f"{len(text.encode()) / 1000:.0f} kB", *wrong, sep="\n  ")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
