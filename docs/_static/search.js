// Finds sections, names and terms, and shows where the words stand, in place of Sphinx's search of whole pages. Works from file://: nothing is fetched.
"use strict";

function foundSections(query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const whole = words.join(" ");
  const found = [];
  for (const [page, anchor, pageTitle, title, text] of SECTIONS) {
    const low = title.toLowerCase();
    const lowText = text.toLowerCase();
    if (!words.length || !words.every((word) => low.includes(word) || lowText.includes(word))) continue;
    let score = page === "glossary" ? 3 : 0;
    const names = low.split(/[,.\s]+/);
    if (low === whole || low.split(", ").includes(whole) || low.split(".").pop() === whole) score += 60;
    else if (low.includes(whole)) score += 20;
    for (const word of words) {
      if (names.includes(word)) score += 12;
      else if (low.includes(word)) score += 8;
      score += Math.min(4, lowText.split(word).length - 1);
    }
    const place = lowText.indexOf(words.find((word) => lowText.includes(word)) ?? "");
    const begin = Math.max(0, place - 50);
    const excerpt = (begin ? "… " : "") + text.slice(begin, begin + 140) + (text.length > begin + 140 ? " …" : "");
    const described = [title === pageTitle ? "" : pageTitle, excerpt].filter(Boolean).join(": ");
    found.push([page, title, anchor ? `#${anchor}` : "", described, score, page, "text"]);
  }
  return found.sort((a, b) => a[4] - b[4]).slice(-30);
}

if (typeof Search !== "undefined") {
  Search.hasIndex = () => true;
  Search.query = (query) => {
    const results = foundSections(query);
    results.reverse().forEach((result) => _displayItem(result, [], []));
    Search.stopPulse();
    Search.title.innerText = results.length ? "Found" : "Nothing found";
    Search.status.innerText = results.length ? `${results.length} places` : "All words have to stand in one section: try one word.";
  };
}

// Its name is what it shows: the word and the keys.
document.querySelectorAll(".search-button-field").forEach((button) => {
  button.setAttribute("aria-label", button.textContent.replace(/\s+/g, " ").trim());
});

// The theme leaves what unfolds the pages below a page without a name.
document.querySelectorAll("li > details > summary").forEach((button) => {
  button.setAttribute("aria-label", `Pages below ${button.closest("li").querySelector("a").textContent.trim()}`);
});
