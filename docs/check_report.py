"""Open a report in headless Chromium: errors, requests, accessibility, filters; and take pictures of it for the docs.

    python docs/check_report.py REPORT.html --axe node_modules/axe-core/axe.min.js --pictures docs/pictures

It needs Chromium (`apt-get install chromium`, or Google Chrome); `--chromium` or the variable CHROMIUM names another
program. axe-core comes from npm (`npm install axe-core`); without it accessibility is not looked at. Ends with status 1
and what was found if anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from html import unescape
from pathlib import Path

from PIL import Image

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_WATCH = """<script>window.observed = {errors: [], blocked: []};
addEventListener("error", (event) => observed.errors.push(String(event.message)));
addEventListener("securitypolicyviolation", (event) => observed.blocked.push(event.blockedURI));
const say = console.error; console.error = (...all) => { observed.errors.push(all.join(" ")); say(...all); };</script>"""
_KEYS = {"focused": "SUMMARY", "isFirst": True, "blinks": "true", "next": True, "back": True}
_ONE_CARD = """
header, .first, footer, .filters, #findings > h2, #findings > .facts, section:not(#findings) { display: none; }
"""
# ruff: noqa: E501
_ASK = """<script>(async () => {
const count = () => document.querySelectorAll(".card:not([hidden])").length;
const set = (id, value) => { const input = document.getElementById(id); if (!input) { return; }
  if (input.type === "checkbox") { input.checked = value; } else { input.value = value; }
  input.dispatchEvent(new Event("input", { bubbles: true })); };
observed.all = count();
set("filter-label", "FM"); observed.fm = count();
observed.fmCards = Array.from(document.querySelectorAll('.card[data-label="FM"]')).length; set("filter-label", "");
set("filter-text", "no prompt has this text"); observed.none = count(); set("filter-text", ""); observed.again = count();
set("filter-sort", "prompt"); const prompts = Array.from(document.querySelectorAll(".card")).map((c) => c.dataset.prompt);
observed.sorted = prompts.every((prompt, at) => !at || prompts[at - 1].localeCompare(prompt) <= 0); set("filter-sort", "rank");
const card = document.querySelector(".card");
if (card) { card.open = true; await new Promise((done) => setTimeout(done, 50));
  const slider = card.querySelector("input[type=range]"); const over = card.querySelector(".compare .over");
  if (slider && over) { slider.value = 10; slider.dispatchEvent(new Event("input")); observed.slid = over.style.clipPath; }
  const key = (name) => document.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
  document.activeElement.blur(); key("j"); const first = document.activeElement;
  observed.keys = { focused: first.tagName, isFirst: card.contains(first) }; key("b");
  const blink = card.querySelector(".blink");
  observed.keys.blinks = blink ? blink.getAttribute("aria-pressed") : "true"; if (blink) { blink.click(); }
  key("j"); observed.keys.next = observed.all < 2 || !card.contains(document.activeElement); key("k");
  observed.keys.back = card.contains(document.activeElement);
  location.hash = card.id; await new Promise((done) => setTimeout(done, 50)); observed.cited = card.open;
  document.querySelectorAll("details").forEach((part) => { part.open = true; }); }
observed.requests = performance.getEntriesByType("resource").map((entry) => entry.name).filter((name) => !name.startsWith("data:"));
const done = typeof axe === "undefined" ? null : await axe.run(document, { resultTypes: ["violations"] });
observed.axe = done && done.violations.map((v) => ({ id: v.id, impact: v.impact, help: v.help,
  nodes: v.nodes.slice(0, 3).map((n) => n.html.slice(0, 160)) }));
const out = document.createElement("pre"); out.id = "observed"; out.textContent = JSON.stringify(observed);
document.body.append(out); })();</script>"""


def find_chromium() -> str | None:
    """Path of a Chromium: the variable CHROMIUM, or the first of the usual names that is installed."""
    return next((path for name in (os.environ.get("CHROMIUM", ""), *_PROGRAMS) if (path := shutil.which(name))), None)


def check(report: Path, *, axe: Path | None = None, chromium: str = "chromium") -> dict[str, object]:
    """What the browser says of the page, with all its cards open."""
    page = report.read_text("utf-8")
    scripts = _ASK if axe is None else f"<script>{axe.read_text('utf-8')}</script>{_ASK}"
    page = page.replace("<title>", f"{_WATCH}<title>", 1).replace("</body>", f"{scripts}</body>", 1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        file.write_text(page, "utf-8")
        dom = _run(chromium, folder, "--virtual-time-budget=60000", "--dump-dom", file.as_uri())
    text = re.search(r'<pre id="observed">(.*?)</pre>', dom, flags=re.DOTALL)
    if text is None:
        raise SystemExit("the page's scripts did not come to their end")
    return dict(json.loads(unescape(text.group(1))))


def take_pictures(report: Path, folder: Path, *, chromium: str = "chromium") -> list[Path]:
    """The first screen, and one card with everything in it."""
    folder.mkdir(parents=True, exist_ok=True)
    page = report.read_text("utf-8")
    alone = page.replace("</style>", f"{_ONE_CARD}</style>", 1).replace(
        '<details class="card"', '<details open class="card"', 1
    )
    views = {"report_first_screen.webp": (page, "1440,900"), "report_card.webp": (alone, "1440,1120")}
    with tempfile.TemporaryDirectory() as profile:
        for name, (content, size) in views.items():
            file, shot = Path(profile) / "page.html", Path(profile) / "shot.png"
            file.write_text(content, "utf-8")
            _run(chromium, profile, "--hide-scrollbars", f"--window-size={size}", f"--screenshot={shot}", file.as_uri())
            Image.open(shot).convert("RGB").save(folder / name, quality=60, method=6)
    return [folder / name for name in views]


def print_to_pdf(report: Path, out: Path, *, chromium: str = "chromium") -> int:
    """Print the page as a browser does, and return its number of pages."""
    with tempfile.TemporaryDirectory() as profile:
        _run(chromium, profile, f"--print-to-pdf={out}", "--no-pdf-header-footer", report.resolve().as_uri())
    return len(re.findall(rb"/Type\s*/Page\b", out.read_bytes()))


def wrong(observed: dict[str, object]) -> list[str]:
    """One line for each thing that must not be."""
    lines = [f"error: {text}" for text in observed["errors"]]  # type: ignore[attr-defined]
    lines += [f"request: {text}" for text in (*observed["blocked"], *observed["requests"])]  # type: ignore[misc]
    if (
        observed["fm"] != observed["fmCards"]
        or observed["none"]
        or observed["again"] != observed["all"]
        or not observed["sorted"]
    ):
        lines.append(f"filters or sorting: {observed}")
    if "slid" in observed and observed["slid"] != "inset(0px 0px 0px 90%)":
        lines.append(f"slider: {observed['slid']}")
    if "keys" in observed and observed["keys"] != _KEYS:
        lines.append(f"keyboard: {observed['keys']}")
    if not observed.get("cited", True):
        lines.append("the address of a finding does not open it")
    for problem in observed["axe"] or []:  # type: ignore[attr-defined]
        if problem["impact"] in ("serious", "critical"):
            lines.append(f"axe: {problem['impact']}: {problem['help']}: {problem['nodes']}")
    return lines


def _run(chromium: str, profile: str, *arguments: str) -> str:
    command = [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={profile}/profile",
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=True).stdout


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--axe", type=Path, help="axe.min.js of axe-core")
    parser.add_argument("--pictures", type=Path, help="folder for screenshots")
    parser.add_argument("--pdf", type=Path, help="file to print to")
    parser.add_argument("--chromium", default=find_chromium())
    given = parser.parse_args()
    if given.chromium is None:
        raise SystemExit("no Chromium: install it (`apt-get install chromium`) or name it with --chromium")
    answer = check(given.report, axe=given.axe, chromium=given.chromium)
    print(json.dumps(answer, indent=1))
    if given.pictures:
        print(*take_pictures(given.report, given.pictures, chromium=given.chromium), sep="\n")
    if given.pdf:
        print(f"{given.pdf}: {print_to_pdf(given.report, given.pdf, chromium=given.chromium)} pages")
    problems = wrong(answer)
    print(*problems, sep="\n")
    sys.exit(1 if problems else 0)
