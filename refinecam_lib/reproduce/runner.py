"""Run notebooks with papermill, each in its own process and environment. Products are kept only if it succeeds."""

import contextlib
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from .. import paths
from ..errors import InputError
from ..toolbox.extras import of_extra
from .parameters import Notebook
from .products import PRODUCTS

FOLDERS = (*paths.VARIABLES, "IMAGENET_ROOT", "IMAGES_ROOT", "FUNNYBIRDS_ROOT", "WALDO_ROOT")
"""The environment variables that name a folder."""
JUPYTER = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
HOMES = ("IPYTHONDIR", *JUPYTER, "MPLCONFIGDIR", "NUMBA_CACHE_DIR")
"""The environment variables for tools' own files. The runner moves them into the checkout's ignored `.cache`."""
FAST = "from refinecam_lib.networks import layers as _l, memory as _m; _l.fast_pointwise(); _m.keep_memory()"
"""What a kernel runs first."""


@dataclass(frozen=True)
class Outcome:
    """What running one notebook gave: exit code (0, 1 or 2), one line of error, seconds, names of products."""

    code: int
    error: str
    seconds: float
    products: tuple[str, ...] = ()


@contextlib.contextmanager
def _environment(products: Path) -> Iterator[None]:
    """Set what the kernel inherits: where products go, this library first, and tools' files in the checkout's cache."""
    values = {name: str(paths.ROOT / ".cache" / name.lower()) for name in HOMES}
    for home in values.values():
        Path(home).mkdir(parents=True, exist_ok=True)
    library = str(Path(__file__).resolve().parent.parent.parent)
    values |= {
        PRODUCTS: str(products),
        "PYTHONPATH": os.pathsep.join(filter(None, [library, os.environ.get("PYTHONPATH")])),
        "JUPYTER_PREFER_ENV_PATH": "1",  # this Python's kernel, not one of the same name in the user's home
        "REFINECAM_QUIET": "1",  # no progress bars in executed copies
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),  # a waiting thread leaves its core to others
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # the user's own might leave figures out
    }
    for name in FOLDERS:  # the kernel's working folder is another one
        if (given := os.environ.get(name)) and given != "crowd":  # WALDO_ROOT=crowd means no folder
            values[name] = str(Path(given).expanduser().absolute())
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def run_notebooks(
    notebooks: Sequence[Notebook],
    values: Mapping[str, Mapping[str, object]],
    folder: Path,
    at_once: int,
    tell: Callable[[str, str], object] = lambda event, name: None,
) -> Iterator[tuple[Notebook, Outcome]]:
    """Run notebooks, each in its own process, and yield each with its outcome as it ends.

    Args:
        notebooks: in the order in which they start.
        values: notebook -> its parameters.
        folder: for products.
        at_once: how many run at the same time. Two that measure the same rows share the work.
        tell: called with "started" and a notebook's name, with "cell" and the name after each of its cells, and with
            "waiting" and "" once a second.
    """
    context: Any = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
    context.set_forkserver_preload(["refinecam_lib.reproduce.runner", "papermill"])  # imported once for all notebooks
    waiting = list(notebooks)
    running: dict[Connection, tuple[Notebook, BaseProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                book = waiting.pop(0)
                ours, theirs = context.Pipe(duplex=False)
                task = theirs, dict(os.environ), book, values[book.name], folder
                process = context.Process(target=_run_and_tell, args=task)
                process.start()
                theirs.close()
                running[ours] = book, process
                tell("started", book.name)
            tell("waiting", "")
            ready = wait(list(running), timeout=1)
            for pipe in [pipe for pipe in running if pipe in ready]:
                book, process = running[pipe]
                try:
                    told = pipe.recv()
                except EOFError:
                    told = Outcome(1, "its process died; did it run out of memory?", 0.0)
                if told is None:
                    tell("cell", book.name)
                    continue
                del running[pipe]
                process.join()
                yield book, told
    finally:  # after Ctrl-C, notebooks get the same signal and clean up
        for _, process in running.values():
            process.join(10)
            process.terminate()


def _run_and_tell(
    pipe: Connection, environment: dict[str, str], book: Notebook, values: Mapping[str, object], folder: Path
) -> None:
    """Send None through the pipe after each cell, and the outcome at the end."""
    os.environ.update(environment)  # the common parent process started with an older one
    with contextlib.suppress(KeyboardInterrupt):
        pipe.send(run_notebook(book, values, folder, lambda: pipe.send(None)))


def run_notebook(book: Notebook, values: Mapping[str, object], folder: Path, tell: Callable[[], object]) -> Outcome:
    """Run one notebook in a temporary folder, and move its products into `folder` if it succeeds.

    The executed copy goes to `folder/notebooks`. After a failure it is named `NN_name.failed.ipynb`, and the earlier
    copy stays.

    Args:
        book: the notebook.
        values: its parameters.
        folder: for products.
        tell: called after each code cell. Its exceptions are ignored.
    """
    with of_extra("notebooks"):
        import papermill  # slow to import
        from nbclient.exceptions import DeadKernelError

    executed = folder / "notebooks" / book.path.name
    failed = executed.with_suffix(".failed.ipynb")
    executed.parent.mkdir(parents=True, exist_ok=True)
    failed.unlink(missing_ok=True)
    changed = {name: value for name, value in values.items() if value != book.defaults[name]}

    def executed_cell(cell: Mapping, **_: object) -> None:
        if "injected-parameters" not in cell["metadata"].get("tags", []):
            with contextlib.suppress(Exception):
                tell()

    start = time.perf_counter()
    code, error, made = 0, "", []
    with tempfile.TemporaryDirectory(prefix=".making_", dir=folder) as work:
        copy, products = Path(work, "executed.ipynb"), Path(work, "products")
        products.mkdir()
        try:
            with _environment(products):
                papermill.execute_notebook(
                    *(book.path, copy, changed), kernel_name="python3", language="python", cwd=book.path.parent,
                    progress_bar=False, start_timeout=300,
                    extra_arguments=["--IPKernelApp.log_level=50", f"--IPKernelApp.exec_lines={FAST}"],
                    on_cell_executed=executed_cell,
                )  # fmt: skip
        except papermill.PapermillExecutionError as stop:
            reason = next(iter(stop.evalue.splitlines()), "")
            refused = stop.ename == InputError.__name__
            place = f"cell {stop.cell_index + 1} of {paths.shown(failed)}"
            code, error = (2, reason) if refused else (1, f"{place}: {stop.ename}: {reason}")
        except DeadKernelError:
            code, error = 1, "the kernel died; did it run out of memory?"
        seconds = round(time.perf_counter() - start, 1)
        if copy.exists():
            (failed if code else executed).write_text(_without_traces(copy, products, folder), encoding="utf-8")
        for path in sorted(products.iterdir()) if code == 0 else ():
            path.replace(folder / path.name)
            made.append(path.name)
    return Outcome(code, error, seconds, tuple(made))


def _without_traces(copy: Path, products: Path, folder: Path) -> str:
    """Return an executed notebook without times and with relative paths, so that it may be committed."""
    import nbformat

    book = nbformat.read(copy, as_version=4)
    for part in (book, *book.cells):
        part.metadata.pop("papermill", None)
        part.metadata.pop("execution", None)

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {k: v if k.startswith("image/") else plain(v) for k, v in value.items()}
        if isinstance(value, list):
            return [plain(v) for v in value]
        if not isinstance(value, str):
            return value
        text = value.replace(str(products), paths.shown(folder)).replace(f"{paths.ROOT}{os.sep}", "")
        text = re.sub(re.escape(tempfile.gettempdir()) + r"/ipykernel_\d+/", "ipykernel/", text)
        return text.replace(f"{home}{os.sep}", f"~{os.sep}") if home.name else text

    home = Path.home()
    return nbformat.writes(nbformat.from_dict(plain(book))) + "\n"
