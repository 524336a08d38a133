"""One Chromium for the tests of a file; in CI there has to be one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

QUIET = ("no-first-run", "disable-background-networking", "disable-component-update")
FLAGS = [f"--{f}" for f in ("no-sandbox", "disable-gpu", "disable-quic", "disable-sync", *QUIET)]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Chromium; without one the test is skipped, in CI it fails."""
    with sync_playwright() as playwright:
        known = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
        own = playwright.chromium.executable_path
        path = next(filter(None, known), own if Path(own).exists() else None)
        if path is None:
            reason = "no Chromium: install chromium, or run `playwright install chromium`"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()
