"""A pytest plugin: which test covers which line, shared fixtures and cached functions included.

`tools/mutants.py cover` runs the tests under coverage with it. A line that runs while a fixture of a
module, or a cached function of the tests, is made belongs to every test that uses what was made.
"""

import functools
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import coverage
import pytest

VARIABLE = "NORMSCOPE_CONTEXT"  # what processes that a test starts are measured as
FOLDER = Path(os.environ["NORMSCOPE_CONTEXTS"])
SECONDS = float(os.environ.get("NORMSCOPE_SECONDS", "inf"))

started = time.monotonic()
users: defaultdict[str, set[str]] = defaultdict(set)  # of a fixture or a cached function
real_cache = functools.cache


def switch(context: str) -> str:
    """Measure what runs from now on as CONTEXT, and return what it was before."""
    before = os.environ.get(VARIABLE, "")
    os.environ[VARIABLE] = context
    if (running := coverage.Coverage.current()) is not None:
        running.switch_context(context)
    return before


def cache(function: Callable[..., Any]) -> Callable[..., Any]:
    """Stand in for `functools.cache` where a test file uses it."""
    if not function.__module__.startswith("tests"):
        return real_cache(function)
    name = f"cached {function.__module__}.{function.__qualname__}"

    def compute(*args: object, **named: object) -> object:
        before = switch(name)
        try:
            return function(*args, **named)
        finally:
            switch(before)

    cached = real_cache(compute)

    @functools.wraps(function)
    def call(*args: object, **named: object) -> object:
        users[name].add(os.environ.get(VARIABLE, ""))
        return cached(*args, **named)

    return call


functools.cache = cache  # type: ignore[assignment]  # the tests are imported after this plugin


def done() -> list[str]:
    """Return the files that earlier parts have run."""
    path = FOLDER / "done.json"
    return list(json.loads(path.read_text())) if path.exists() else []


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item], config: pytest.Config) -> None:
    """Leave out the files that earlier parts have run."""
    ready = set(done())
    left_out = [item for item in items if item.nodeid.partition("::")[0] in ready]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item.nodeid.partition("::")[0] not in ready]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Measure a test as itself; stop between two files when the time is over."""
    for name, definitions in item._fixtureinfo.name2fixturedefs.items():  # type: ignore[attr-defined]
        if definitions[-1].scope != "function":
            users[f"fixture {definitions[-1].baseid}::{name}"].add(item.nodeid)
    before = switch(item.nodeid)
    begun = time.monotonic()
    try:
        return (yield)
    finally:
        switch(before)
        with (FOLDER / "seconds.jsonl").open("a") as file:
            file.write(json.dumps([item.nodeid, round(time.monotonic() - begun, 3)]) + "\n")
        if nextitem is None or nextitem.path != item.path:
            (FOLDER / "done.json").write_text(
                json.dumps([*done(), item.nodeid.partition("::")[0]], indent=1)
            )
            if time.monotonic() - started > SECONDS:
                item.session.shouldstop = "the time of this part is over"


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: Any) -> Iterator[object]:
    """Measure a fixture that several tests share apart from the first of them."""
    if fixturedef.scope == "function":
        return (yield)
    before = switch(f"fixture {fixturedef.baseid}::{fixturedef.argname}")
    try:
        return (yield)
    finally:
        switch(before)


def pytest_sessionfinish() -> None:
    """Write who uses what."""
    path = FOLDER / f"users-{os.getpid()}.json"
    path.write_text(json.dumps({name: sorted(tests) for name, tests in users.items()}))
