// A box that scrolls is a stop for the keyboard and says what it holds; one whose content fits is no stop on the way.
// The theme does the first half when a page loads; folds are opened later.
"use strict";

const KINDS = [
  [".cell_input pre", "Code"],
  [".highlight pre", "Code"],
  ["pre", "Output"],
  [".pst-scrollable-table-container", "Table"],
  [".output.text_html", "Table"],
  ["div.math", "Formula"],
];

function mark(box, kind) {
  if (box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1) {
    box.tabIndex = 0;
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", box.querySelector("caption")?.textContent.trim() || kind);
  } else {
    for (const name of ["tabindex", "role", "aria-label"]) box.removeAttribute(name);
  }
}

// A box is first seen when it is laid out, and again whenever its size changes: with the window's, or as its fold opens.
const kinds = new Map();
const watcher = new ResizeObserver((seen) => seen.forEach(({ target }) => mark(target, kinds.get(target))));
addEventListener("load", () => {
  for (const [boxes, kind] of KINDS) {
    for (const box of document.querySelectorAll(`article ${boxes}`)) {
      if (kinds.has(box)) continue;
      kinds.set(box, kind);
      watcher.observe(box);
    }
  }
});

// A page that was found by a search opens at the first match: one in sight and of a whole word before others.

function showMatch() {
  const marks = [...document.querySelectorAll("span.highlighted")];
  const found = marks.filter((mark) => mark.closest("article"));
  marks.filter((mark) => !found.includes(mark)).forEach((mark) => mark.classList.remove("highlighted"));
  const isWord = ({ previousSibling: before, nextSibling: after }) =>
    !/\w$/.test(before?.textContent ?? "") && !/^\w/.test(after?.textContent ?? "");
  const first = found.find((mark) => isWord(mark) && mark.checkVisibility()) ?? found.find(isWord) ?? found[0];
  if (!first || location.hash) return;
  for (let fold = first.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  first.scrollIntoView({ block: "center" });
}

// Sphinx marks the matches a moment after the page is there.
addEventListener("load", () => setTimeout(showMatch, 20));
