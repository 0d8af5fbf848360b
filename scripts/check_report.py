#!/usr/bin/env python3
"""Opens pages of qqq in Chromium, as they are on disk, and says what is wrong with them.

    scripts/check_report.py out/report.html [--screenshots DIR] [--top PIXELS]

A page is looked at on a desktop, on a telephone and in the dark scheme; closed and with all its tables opened. An error is: a
message on the browser's console, anything that is fetched, what can be scrolled sideways as a whole, a picture without a name
for screen readers, a finding of axe (WCAG 2.2 A and AA, best practices), more than 2 MB. `scripts/test-report.sh` has an environment
for it. Exit code 0 if nothing is wrong; 1, and a line for each thing that is.
"""

import argparse
import re
import sys
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, sync_playwright

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Width, height and colour scheme.
VIEWS = {"desktop": (1280, 900, "light"), "phone": (390, 844, "light"), "dark": (1280, 900, "dark")}
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
MOST_BYTES = 2_000_000


def check(browser: Browser, path: Path, view: str, screenshots: Path | None, top: int | None) -> list[str]:
    """What is wrong with a page in a view."""
    width, height, scheme = VIEWS[view]
    found: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, offline=True)
    page = context.new_page()
    address = path.resolve().as_uri()
    page.on("console", lambda message: found.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: found.append(f"script: {error}"))
    page.on("request", lambda request: request.url != address and found.append(f"fetches {request.url}"))
    page.goto(address)
    if screenshots is not None:
        clip = None if top is None else {"x": 0, "y": 0, "width": width, "height": top}
        page.screenshot(path=screenshots / f"{path.stem}-{view}.png", full_page=True, clip=clip)

    all_images, named = page.locator("svg, img").count(), page.get_by_role("img", name=re.compile(r"\S")).count()
    if named != all_images or named == 0:
        found.append(f"{named} of {all_images} pictures have a name")
    for state in ("closed", "opened"):
        page.evaluate("open => document.querySelectorAll('details').forEach(d => d.open = open)", state == "opened")
        needs, has = page.evaluate(
            "() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        if needs > has:
            found.append(f"{state}: scrolls sideways, {needs} of {has} pixels")
        results = Axe().run(page, options={"runOnly": RULES}).response
        if not results["passes"]:
            found.append("axe has checked nothing")
        for violation in results["violations"]:
            places = [" ".join(node["target"]) for node in violation["nodes"]]
            found.append(
                f"{state}: {violation['id']}: {violation['help']}; {len(places)} times, first {places[0]}"
            )
    context.close()
    return [f"{path}, {view}: {what}" for what in found]


def main() -> int:
    """Checks every page in every view."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE")
    parser.add_argument("--screenshots", type=Path, metavar="DIR", help="keep a picture of each view there")
    parser.add_argument("--top", type=int, metavar="PIXELS", help="of its beginning only")
    args = parser.parse_args()
    if args.screenshots is not None:
        args.screenshots.mkdir(parents=True, exist_ok=True)

    found = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for path in args.pages:
            size = path.stat().st_size
            if size > MOST_BYTES:
                found.append(f"{path}: {size} bytes")
            for view in VIEWS:
                found += check(browser, path, view, args.screenshots, args.top)
        browser.close()
    for what in found:
        print(what, file=sys.stderr)
    print(f"{len(args.pages)} pages in {len(VIEWS)} views each: {len(found)} errors")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
