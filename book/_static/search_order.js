// Replaces Sphinx' scores, which are its own but for the first function: a page that has the words often comes first.
var Scorer = {
  score: ([page, , , , score]) => {
    const words = new URLSearchParams(location.search).get("q").toLowerCase().match(/\w+/g) ?? [];
    const counts = globalThis.wordsOfPages[page] ?? {};
    return score + words.reduce((sum, word) => sum + 4 * Math.log2(1 + (counts[word] ?? 0)), 0);
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
