"""README's picture of a report, docs/figures/report.png: python benchmarks/report_picture.py RUN, with a run of `attfc train demo` (synthetic faces).

The beginning of the run's page, as wide as a phone: its text stays readable where the picture is shown on one. Needs Chromium; seconds.
"""

import base64
import sys
import tempfile
from pathlib import Path

from attfc.evaluation import write_report

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "integration"))
import browser  # noqa: E402

WIDTH, SCALE = 470, 1.15


def main() -> None:
    """Write the run's report again and take the picture, down to the first figure."""
    page = write_report(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as profile, browser.opened(Path(profile)) as shown:
        shown.look(WIDTH, 900, dark=False)
        shown.ask("Page.navigate", url=page.as_uri())
        shown.wait_for("document.readyState == 'complete' && document.querySelector('figure')")
        end = shown.run("document.querySelector('figure').getBoundingClientRect().bottom + window.scrollY")
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": end + 14, "scale": SCALE}
        shot = shown.ask("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
    (ROOT / "docs" / "figures" / "report.png").write_bytes(base64.b64decode(shot["data"]))


if __name__ == "__main__":
    main()
