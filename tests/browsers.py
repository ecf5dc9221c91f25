"""JavaScript of the book's pages, run by node or by headless Chromium."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

STATIC = Path(__file__).parents[1] / "book" / "_static"
NODE, CHROMIUM = shutil.which("node"), shutil.which("chromium") or shutil.which("chromium-browser")


def browse(folder, body, place="", milliseconds=2000):
    """The page that headless Chromium makes of this body, with the book's files beside it, at `place` in it.

    `milliseconds` is for what waits: the clock of the page stands still while it computes.
    """
    (folder / "book").mkdir(exist_ok=True)
    shutil.copytree(STATIC, folder / "_static", dirs_exist_ok=True)
    page = folder / "book" / "page.html"
    page.write_text(f"<!doctype html><meta charset='utf-8'><body class='bd-article'>{body}")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--virtual-time-budget={milliseconds}"]
    command = [CHROMIUM, *flags, f"--user-data-dir={folder / 'profile'}", "--dump-dom", f"{page.as_uri()}{place}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def evaluate(engine, folder, code, expression):
    """The value of an expression of JavaScript, after some code."""
    if engine == "node":
        program = f"{code}\nconsole.log(JSON.stringify({expression}))"
        done = subprocess.run([NODE, "-"], input=program, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
    found = f"document.getElementById('found').textContent = JSON.stringify({expression})"
    (folder / "code.js").write_text(f"{code}\n{found}")
    dom = browse(folder, "<pre id='found'></pre><script charset='utf-8' src='../code.js'></script>")
    return json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)[1]))
