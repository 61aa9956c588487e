// Finds sections, names and terms, and shows where the words stand, in place of Sphinx's search of whole pages. Works from file://: nothing is fetched.
"use strict";

const SMALL = new Set("a an and are by can do does for how i if in is it my of on or the to what when which with".split(" "));
const withoutSmall = (words) => words.filter((word) => word && !SMALL.has(word));

// Sections with all words; where there is none, those with most of their parts: "in_batch_gradient" has "batch" and "gradient".
function foundSections(query) {
  const low = query.toLowerCase();
  const words = withoutSmall(low.split(/\s+/));
  const found = sectionsWith(words, low, words.length);
  if (found.length) return found;
  const parts = withoutSmall(low.split(/[^\p{L}\p{N}]+/u));
  for (let least = parts.length; least > 0; least--) {
    const some = sectionsWith(parts, low, least);
    if (some.length) return some;
  }
  return [];
}

function sectionsWith(words, query, least) {
  const whole = query.trim().replace(/\s+/g, " ");
  const found = [];
  for (const [page, anchor, pageTitle, title, text] of SECTIONS) {
    const low = title.toLowerCase();
    const lowText = text.toLowerCase();
    const address = anchor ? "" : page.replaceAll("-", " ");
    const has = (word) => low.includes(word) || lowText.includes(word) || address.includes(word);
    if (!words.length || words.filter(has).length < least) continue;
    let score = page === "glossary" ? 3 : 0;
    const names = low.split(/[,.\s]+/);
    if (low === whole || low.split(", ").includes(whole) || low.split(".").pop() === whole) score += 60;
    else if (low.includes(whole) || (low.length > 4 && whole.includes(low))) score += 20;
    else if (words.length > 1 && lowText.includes(whole)) score += 6;
    for (const word of words) {
      if (names.includes(word)) score += 12;
      else if (low.includes(word) || address.includes(word)) score += 8;
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
    Search.status.innerText = results.length ? `${results.length} places` : "No section has any of these words.";
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
