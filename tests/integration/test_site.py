"""The site that `make site` built, in a headless Chromium from file://: search, width of a phone, nothing fetched. `make check` runs this."""

from pathlib import Path

import pytest

from . import browser

SITE = Path(__file__).resolve().parents[2] / "build" / "site"

pytestmark = [  # marks, because pytest ends with an error where a whole file is skipped, and `make check` with it
    pytest.mark.skipif(browser.FOUND is None, reason="needs a Chromium"),
    pytest.mark.skipif(not (SITE / "index.html").exists(), reason="needs build/site: make site"),
]


def open_page(page: browser.Page, name: str) -> None:
    page.ask("Page.navigate", url=(SITE / name).as_uri())
    page.wait_for(f"location.pathname.endsWith({name!r}) && document.readyState == 'complete'")


def test_the_search_finds_options_names_and_words_without_a_server(tmp_path: Path) -> None:
    with browser.opened(tmp_path) as page:
        for query, address, title in (
            ("in_batch", "options.html#in-batch", "in_batch"),
            ("CenterTable", "reference/api.html#attfc.CenterTable", "CenterTable"),
            ("FNMR", "glossary.html#fnmr-false-non-match-rate", "FNMR, false non-match rate"),
            ("noisy labels", "how-to/noisy-labels.html", "Wrong labels"),
            ("memory is short", "how-to/out-of-memory.html", "Out of memory"),
            ("negatives.in_batch_gradient", "options.html#in-batch", "in_batch"),  # its name in 0.1
        ):
            page.ask("Page.navigate", url=f"{(SITE / 'search.html').as_uri()}?q={query}")
            page.wait_for(f"document.querySelector('input[name=q]')?.value == {query!r}")
            page.wait_for("document.querySelector('#search-results li a')")
            first = page.run("(a => [a.href, a.innerText])(document.querySelector('#search-results li a'))")
            assert first[0].endswith(address), first
            assert title in first[1]


def test_pages_fit_a_phone_and_fetch_nothing(tmp_path: Path) -> None:
    with browser.opened(tmp_path) as page:
        page.look(390, 844, dark=True)
        for name in (
            "index.html",
            "method.html",
            "heads.html",
            "study.html",
            "study/faces.html",
            "options.html",
            "reference/api.html",
            "glossary.html",
        ):
            open_page(page, name)
            assert page.run("document.documentElement.scrollWidth <= innerWidth"), name
            assert page.run("[...document.images].every((image) => image.alt)"), name
            named = "[...document.querySelectorAll('summary, button')].every((each) => each.ariaLabel || each.textContent.trim())"
            assert page.run(named), name
        asked = [
            event["params"]["request"]["url"] for event in page.events if event["method"] == "Network.requestWillBeSent"
        ]
    assert len(asked) > 20
    assert not [url for url in asked if not url.startswith(("file://", "data:", "about:"))]
