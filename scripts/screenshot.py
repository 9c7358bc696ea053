"""Take a picture of the top of a report with headless Chromium.

python scripts/screenshot.py runs/demo/report.html --out docs/figures/report.png
python scripts/screenshot.py runs/demo/report.html --out phone.png --phone --dark
"""

from __future__ import annotations

import argparse
import html
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from metaopt.cli.common import guarded
from metaopt.errors import UserError

BROWSERS = ("chromium", "google-chrome", "chromium-browser")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
PHONE = 360
SECONDS = 60
# A window has a least width, which is more than a phone's: the page goes into a frame of it.
FRAME = """<!doctype html><meta name="color-scheme" content="{scheme}">
<style>body {{ margin: 0 }} iframe {{ display: block; border: 0; color-scheme: {scheme};
width: {width}px; height: {height}px }}</style><iframe src="{page}"></iframe>"""


def find_browser() -> str:
    """The path of an installed Chromium.

    Raises:
        UserError: if there is none.
    """
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    raise UserError(
        f"expected a browser of {', '.join(BROWSERS)} on the PATH, got none: install Chromium"
    )


def run_browser(*arguments: str) -> str:
    """What the browser prints, with a profile of its own."""
    with tempfile.TemporaryDirectory() as profile:
        command = [find_browser(), *FLAGS, f"--user-data-dir={profile}", *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise UserError(
                f"expected the browser to end within {SECONDS} s, got no answer: run again"
            ) from None
    if done.returncode:
        said = (done.stderr.strip() or "nothing").splitlines()[-1]
        raise UserError(
            f"expected the browser to end well, got exit code {done.returncode} and {said!r}: "
            "run again"
        )
    return done.stdout


def screenshot(
    page: Path, out: Path, width: int, height: int, dark: bool = False, scale: float = 1.0
) -> None:
    """The top ``height`` pixels of a page in a window ``width`` wide, as a PNG."""
    if not page.is_file():
        raise UserError(f"expected a report, got {str(page)!r}, which is no file: check the path")
    scheme = "dark" if dark else "light"
    with tempfile.TemporaryDirectory() as folder:
        frame, picture = Path(folder, "frame.html"), Path(folder, "picture.png")
        source = html.escape(page.resolve().as_uri())
        frame.write_text(FRAME.format(scheme=scheme, width=width, height=height, page=source))
        run_browser(
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"--force-device-scale-factor={scale}",
            f"--window-size={width},{height}",
            f"--screenshot={picture}",
            frame.as_uri(),
        )
        if not picture.is_file():
            raise UserError("expected a picture of the browser, got none: run again")
        out.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(picture) as image:  # 256 colours, a third of the bytes; rare hues stay
            small = image.convert("RGB").quantize(
                256, method=Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE
            )
        small.save(out, optimize=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, take the picture, name it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path, help="a report.html")
    parser.add_argument("--out", type=Path, required=True, help="the PNG")
    parser.add_argument("--width", type=int, default=1200, help="pixels of the window")
    parser.add_argument("--height", type=int, default=1000, help="pixels of the window")
    parser.add_argument("--scale", type=float, default=1.0, help="pixels of the PNG for each")
    parser.add_argument("--dark", action="store_true", help="as somebody sees it who prefers dark")
    parser.add_argument("--phone", action="store_true", help=f"{PHONE} pixels wide, whatever else")
    options = parser.parse_args(arguments)
    width = PHONE if options.phone else options.width
    screenshot(options.page, options.out, width, options.height, options.dark, options.scale)
    print(options.out)


entry = guarded(main)

if __name__ == "__main__":
    sys.exit(entry())
