"""Run axe-core on pages in a headless Chromium: `python .ci/axe.py axe.min.js PAGE ...`; CONTRIBUTING.md says where axe.min.js comes from.

Each page, a file or an address, is looked at 1280 and 390 pixels wide, light and dark. What is serious or critical is printed, and ends it with 1;
--all prints lesser findings too.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from integration import browser  # noqa: E402

# A colour on its way from light to dark is not yet what is read.
FOUND = """Promise.allSettled(document.getAnimations().map(each => each.finished)).then(() => axe.run()).then(found =>
  JSON.stringify(found.violations.flatMap(rule => rule.nodes.map(node =>
  [rule.id, rule.impact, node.target.join(" "), (node.any[0] || node.all[0] || node.none[0]).message]))))"""


def main() -> int:
    """Print the findings; 1 where one is serious or critical."""
    options = argparse.ArgumentParser(description="find what keeps people from using a page")
    options.add_argument("axe", type=Path, help="axe.min.js of the package axe-core")
    options.add_argument("pages", nargs="+", help="files or addresses")
    options.add_argument("--all", action="store_true", help="print moderate and minor findings too")
    given = options.parse_args()
    axe, grave = given.axe.read_text(encoding="utf-8"), 0
    with tempfile.TemporaryDirectory() as profile, browser.opened(Path(profile)) as page:
        for address in given.pages:
            url = address if "://" in address else Path(address).resolve().as_uri()
            for width, dark in ((1280, False), (1280, True), (390, False), (390, True)):
                page.look(width, 844, dark=dark)
                page.ask("Page.navigate", url=url)
                page.wait_for(f"document.readyState === 'complete' && location.href.startsWith({url.split('#')[0]!r})")
                page.run(f"{axe};0")
                for rule, impact, place, message in json.loads(page.run(FOUND)):
                    grave += impact in ("serious", "critical")
                    if given.all or impact in ("serious", "critical"):
                        print(
                            f"{address}, {width} px, {'dark' if dark else 'light'}: {impact}, {rule}: {place}: {message}"
                        )
    print(f"{len(given.pages)} pages, {grave} serious or critical findings")
    return 1 if grave else 0


if __name__ == "__main__":
    sys.exit(main())
