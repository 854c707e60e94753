"""Sides of `gallery`. In: a written gallery. A round opens its first page in a Chromium that is started for it."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHOWN = """() => {
  const files = new Set(performance.getEntriesByType("resource").map((file) => `url("${file.name}")`));
  const pictures = [...document.querySelectorAll(".tile [style]")];
  return pictures.length && pictures.every((one) => files.has(getComputedStyle(one).backgroundImage));
}"""
PAINTED = """() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => {
  const files = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")];
  const bytes = files.reduce((sum, file) => sum + file.transferSize, 0);
  done({ seconds: performance.now() / 1000, bytes, files: files.length });
})))"""


def first_screen(folder: str) -> Callable[[], dict[str, Any]]:
    """The seconds are the page's own, from its address to the second frame after its last picture, nothing cached."""
    from playwright.sync_api import sync_playwright

    from fer_pipeline.inspection.view import serve

    def once() -> dict[str, Any]:
        unused: dict[str, Any] = {"merge": lambda data: "", "verdicts": (Path(folder) / "verdicts.js").read_bytes}
        with serve(Path(folder), 0, **unused) as (server, address), sync_playwright() as driver:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            options = {"executable_path": shutil.which("chromium"), "args": ["--no-sandbox", "--disable-gpu"]}
            with driver.chromium.launch(**options) as browser:
                page = browser.new_page(viewport={"width": 1400, "height": 900})
                page.goto(address, wait_until="commit")
                page.wait_for_function(SHOWN)
                facts = page.evaluate(PAINTED)
            server.shutdown()
        return facts

    once()
    return once
