#!/usr/bin/env python3
"""Check report pages with axe-core in Chromium, in light and in dark colours: check_accessibility.py AXE PAGE.html...

AXE is axe.min.js, or a wheel that holds it: `pip download --no-deps axe-playwright-python`.
"""

import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright


def source_of(axe: Path) -> str:
    """Return the code of axe-core from its file, or from a wheel."""
    if axe.suffix != ".whl":
        return axe.read_text()
    with zipfile.ZipFile(axe) as wheel:
        return wheel.read(next(name for name in wheel.namelist() if name.endswith("axe.min.js"))).decode()


def violations(browser: Browser, page_path: Path, theme: Any, code: str) -> dict[str, Any]:
    """Open a page with everything unfolded, and return what axe-core reports."""
    context = browser.new_context(color_scheme=theme, bypass_csp=True, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(page_path.resolve().as_uri())
    page.wait_for_selector("html[data-ready]", state="attached")
    for summary in page.locator("summary").all():
        if summary.is_visible():
            summary.click()
    page.add_style_tag(content="* { background-image: none !important }")  # axe cannot judge text on shadows of tables
    page.evaluate(code)
    result: dict[str, Any] = page.evaluate("axe.run(document, {resultTypes: ['violations', 'incomplete']})")
    context.close()
    return result


def main(axe: Path, *pages: Path) -> int:
    """Print the violations of every page; return 1 if there are any."""
    code, count = source_of(axe), 0
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        for page in pages:
            for theme in ("light", "dark"):
                result = violations(browser, page, theme, code)
                rules = {name: len(result[name]) for name in ("passes", "violations", "incomplete")}
                print(f"{page.name}, {theme}, axe-core {result['testEngine']['version']}, {browser.version}: {rules}")
                for kind in ("violations", "incomplete"):
                    for rule in result[kind]:
                        print(
                            f"  {kind}: {rule['id']} ({rule['impact']}), {len(rule['nodes'])} elements: {rule['help']}"
                        )
                        for node in rule["nodes"][:3]:
                            reason = next((check["message"] for check in node["any"] + node["all"] + node["none"]), "")
                            print(f"    {node['target']} {node['html'][:80]}: {reason}")
                count += len(result["violations"])
        browser.close()
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
