// The page of the model to play with: what `play.js` computes, and `play_texts.js` on the held-out texts, shown.
"use strict";

(() => {
  const { DENSE, OFF, tokenizer, model: made, run, next } = globalThis.play;
  const data = globalThis.playData;
  const [YES, NO] = ["✓", "✗"];
  const SHOWN = 6; // next words
  const LONGEST = 30; // tokens that a sentence is finished with
  const OWN = "own";

  const L = data.config.blocks;
  const SETTINGS = [DENSE, ...data.widths, OFF];
  const numbers = Array.from({ length: L }, (_, i) => i);
  const at = (name) => document.getElementById(`play-${name}`);
  const pause = () => new Promise((go) => setTimeout(go));
  const share = (p) => (p < 0.0005 ? "< 0.1 %" : `${(100 * p).toFixed(p < 0.0995 ? 1 : 0)} %`);
  const signed = (x) => `${Math.abs(x) < 0.005 ? "±" : x < 0 ? "−" : "+"}${Math.abs(x).toFixed(2)}`;
  const percent = (x) => `${Math.min(Math.max(100 * x, 0), 100)}%`;

  /** An element with text and elements in it. */
  function make(tag, attributes = {}, ...inside) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...inside);
    return element;
  }

  const { encode, piece, end } = tokenizer(data.tokenizer);
  const known = new Set(data.words);
  const held = globalThis.playTexts(data.texts, { encode, end });
  const settings = numbers.map(() => DENSE);
  let model;
  let typed; // a run of the dense model over what was typed
  let changes = 0; // of settings, to know what was overtaken

  /** A row of radio buttons in a fieldset; the name of a button is said in full to those who hear the page. */
  function radios(fieldset, name, values, label, chosen, change) {
    for (const value of values) {
      const radio = make("input", { type: "radio", name: `play-${name}`, value, "aria-label": label(value) });
      radio.checked = value === chosen;
      radio.addEventListener("change", () => change(value));
      fieldset.append(make("label", {}, radio, make("span", {}, `${value}`)));
    }
  }

  const words = (setting) => (setting === OFF ? "off" : setting === DENSE ? "dense" : `${setting} bits`);

  // The next words.

  /** What a token looks like: without the blank before a word, and with dots where it goes on with the word before. */
  function spelled(id) {
    const text = piece(id);
    if (id === end) return "end of text";
    if (text === " ") return "blank";
    return /^[A-Za-z]/.test(text) && /\S$/.test(at("text").value) ? `…${text}` : text.trim() || JSON.stringify(text);
  }

  const best = (probabilities) => probabilities.reduce((most, p, i) => (p > probabilities[most] ? i : most), 0);

  /** Tokens of what was typed, after the token that begins a text; only the last ones if there are too many. */
  function read() {
    const tokens = encode(at("text").value);
    const most = data.config.context - 1;
    return { tokens: [end, ...tokens.slice(-most)], cut: Math.max(tokens.length - most, 0) };
  }

  /** What has to be said of the text. */
  function notes(cut) {
    const text = at("text").value;
    const found = [];
    if (!text) found.push("Nothing typed: this is how a text begins.");
    const most = data.config.context - 1;
    if (cut) found.push(`Too long: the model reads the last ${most} tokens, not the ${cut} before them.`);
    const room = at("text").maxLength;
    if (text.length >= room) found.push(`There is room for ${room.toLocaleString("en")} characters.`);
    const strange = [...text.matchAll(/[\p{L}\p{M}]+/gu)]
      .filter(({ 0: word, index }) => {
        const unfinished = index + word.length === text.length && data.words.some((other) => other.startsWith(word));
        return !known.has(word) && !unfinished;
      })
      .map(([word]) => word);
    const few = [...new Set(strange)].slice(0, 4).join(", ");
    if (few) found.push(`Not words of its world: ${few}. It reads them in pieces, and its answer says little.`);
    return found.join(" ");
  }

  function showNext() {
    const { tokens, cut } = read();
    at("text").scrollTop = at("text").scrollHeight; // its end is what matters
    const same = typed && typed.tokens.length === tokens.length && typed.tokens.every((id, i) => id === tokens[i]);
    if (!same) typed = run(model, tokens, numbers.map(() => DENSE));
    const ran = run(model, tokens, [...settings], typed);
    const [before, now] = [next(model, typed), next(model, ran)];
    const order = [...now.keys()].sort((a, b) => now[b] - now[a]).slice(0, SHOWN);
    [...at("next").children].forEach((row, i) => {
      const id = order[i];
      row.dataset.token = id;
      row.disabled = id === end;
      const [name, bar, said] = row.children;
      name.textContent = spelled(id);
      bar.children[0].style.width = percent(now[id]);
      bar.children[1].style.left = percent(before[id]);
      said.textContent = `${share(now[id])} (dense ${share(before[id])})`;
    });
    const changed = settings.some((setting) => setting !== DENSE);
    const [first, was] = [order[0], best(before)];
    const said = [`Likeliest next: “${spelled(first)}”, ${share(now[first])}.`];
    if (changed) said.push(`The dense model says “${spelled(was)}”, ${share(before[was])}.`);
    const beginning = data.beginnings[at("pick").value];
    if (beginning) said.push(`The text itself goes on with “${beginning.word}”.`);
    at("said").textContent = said.join(" ");
    at("note").textContent = notes(cut);
    showTurns(ran);
  }

  let waiting;
  function typing() {
    if (at("text").value !== data.beginnings[at("pick").value]?.text) at("pick").value = OWN;
    clearTimeout(waiting);
    waiting = setTimeout(showNext, 60);
  }

  /** Add a token to the text. */
  function add(id) {
    at("text").value += piece(id);
    at("pick").value = OWN;
    showNext();
  }

  /** The likeliest token, again and again, up to a full stop. */
  async function finish() {
    at("finish").disabled = true;
    for (let i = 0; i < LONGEST; i++) {
      const id = Number(at("next").children[0].dataset.token);
      if (id === end) break;
      add(id);
      if (/[.?!]$/.test(piece(id))) break;
      await pause();
    }
    at("finish").disabled = false;
  }

  // The blocks.

  function showTurns(ran) {
    numbers.forEach((i) => {
      const [bar, said] = at(`turn-${i}`).children;
      const turn = 1 - ran.cosines[i];
      bar.children[0].style.width = settings[i] === OFF ? "0" : percent(turn);
      said.textContent = settings[i] === OFF ? "off" : `turn ${turn.toFixed(2)}`;
    });
  }

  function set(blocks, setting) {
    for (const i of blocks) {
      settings[i] = setting;
      for (const radio of at(`block-${i}`).querySelectorAll("input")) radio.checked = radio.value === `${setting}`;
    }
    changes++;
    showNext();
    showLoss();
  }

  async function showLoss() {
    const change = changes;
    at("loss").classList.add("old");
    const found = await held.losses([...settings], () => change !== changes);
    if (!found) return;
    const { now, before, kinds } = found;
    at("loss").classList.remove("old");
    at("loss").replaceChildren(
      `Loss on ${held.texts.length} held-out texts: `,
      make("strong", {}, `${now.toFixed(2)} nats per token`),
      ` (dense ${before.toFixed(2)}, change ${signed(now - before)}).`);
    const rows = kinds.map(({ kind, now, before }) => [kind, before.toFixed(2), now.toFixed(2), signed(now - before)]);
    at("kinds").replaceChildren(table(["Kind", "Dense", "As set", "Change"], rows));
  }

  function table(head, rows) {
    const cells = (row) => row.map((cell, i) => (i ? make("td", {}, cell) : make("th", { scope: "row" }, cell)));
    return make("table", { class: "dataframe" },
      make("thead", {}, make("tr", {}, ...head.map((text) => make("th", { scope: "col" }, text)))),
      make("tbody", {}, ...rows.map((row) => make("tr", {}, ...cells(row)))));
  }

  // The guess.

  /** A number with a bar of its own, which fills such a part of its room. */
  function barred(number, part) {
    const bar = make("span", { style: `width: ${percent(part)}` });
    return make("span", { class: "cell" }, number, make("span", { class: "bar" }, bar));
  }

  /** One sentence about a guess and about LIM. */
  function judged(what, right, guess, lim) {
    const told = (who, block) => `${who} ${block}: ${block === right ? `${YES} right` : `${NO} no`}.`;
    const both = ` ${told("You said", guess)} ${told("LIM says", lim)}`;
    return make("p", {}, make("strong", {}, `${what}: block ${right}.`), both);
  }

  function revealTurns() {
    at("hidden").hidden = true;
    at("blocks").classList.add("shown");
  }

  async function reveal() {
    const guesses = ["most", "least"].map((name) => document.querySelector(`[name="play-${name}"]:checked`)?.value);
    if (guesses.includes(undefined)) {
      at("verdict").textContent = "Choose a block in both lines first.";
      return;
    }
    at("check").disabled = true;
    at("verdict").replaceChildren();
    at("working").hidden = false;
    const found = await held.damage((share) => (at("progress").value = share));
    at("working").hidden = true;
    const by = (key) => [...found].sort((a, b) => b[key] - a[key]).map(({ block }) => block);
    const [lost, lim] = [by("lost"), by("lim")];
    const [most, least] = guesses.map(Number);
    at("verdict").replaceChildren(
      judged("Missed most", lost[0], most, lim[0]),
      judged("Missed least", lost[L - 1], least, lim[L - 1]));
    const worst = found[lost[0]].lost;
    const rows = found.map(({ block, lost, lim }) => [
      `${block}`,
      barred(signed(lost), lost / worst),
      barred(lim.toFixed(2).replace("-", "−"), 1 + lim),
    ]);
    at("damage").replaceChildren(table(["Block", "Loss without it", "LIM"], rows));
    at("damage").hidden = false;
    at("check").disabled = false;
    revealTurns();
  }

  // The beginning.

  function build() {
    const options = data.beginnings.map(({ kind, text }, i) =>
      make("option", { value: i }, `${kind}: ${text.slice(0, 50)}…`));
    at("pick").append(...options, make("option", { value: OWN }, "Your own text"));
    at("pick").addEventListener("input", () => {
      at("text").value = data.beginnings[at("pick").value]?.text ?? "";
      showNext();
      if (at("pick").value === OWN) at("text").focus();
    });
    at("text").addEventListener("input", typing);
    for (let i = 0; i < SHOWN; i++) {
      const bar = make("span", { class: "bar" }, make("span"), make("i"));
      const row = make("button", { type: "button" }, make("span", { class: "word" }), bar, make("span", { class: "said" }));
      row.addEventListener("click", () => add(Number(row.dataset.token)));
      at("next").append(row);
    }
    at("finish").addEventListener("click", finish);
    for (const [name, what] of [["most", "Missed most"], ["least", "Missed least"]]) {
      radios(at(name), name, numbers, (i) => `${what}: block ${i}`, undefined, () => {});
    }
    at("check").addEventListener("click", reveal);
    at("skip").addEventListener("click", revealTurns);
    const every = make("fieldset", { class: "block" }, make("legend", {}, "All"));
    for (const setting of SETTINGS) {
      const button = make("button", { type: "button", "aria-label": `All blocks: ${words(setting)}` }, `${setting}`);
      button.addEventListener("click", () => set(numbers, setting));
      every.append(button);
    }
    at("blocks").append(every);
    for (const i of numbers) {
      const row = make("fieldset", { class: "block", id: `play-block-${i}` }, make("legend", {}, `Block ${i}`));
      radios(row, `block-${i}`, SETTINGS, (setting) => `Block ${i}: ${words(setting)}`, DENSE, (setting) => set([i], setting));
      const turn = make("span", { class: "bar" }, make("span"));
      row.append(make("span", { class: "turn", id: `play-turn-${i}` }, turn, make("span", { class: "said" })));
      at("blocks").append(row);
    }
    at("texts").append(...held.texts.map(({ kind, text }) => make("p", { class: "small" }, make("strong", {}, `${kind}: `), text)));
  }

  async function start() {
    model = made(data.config, globalThis.playWeights);
    delete globalThis.playWeights; // the text of the weights, which are numbers now
    const parameters = Object.values(model.tensors).reduce((count, { values }) => count + values.length, 0);
    let done = 0;
    await held.begin(model, () => {
      at("state").textContent = `Reading held-out texts, ${++done} of ${held.texts.length} …`;
    });
    at("state").textContent = `${data.name} is loaded: ${L} blocks, ${(parameters / 1e6).toFixed(1)} million parameters.`;
    at("door").hidden = true;
    at("loaded").hidden = false;
    at("pick").value = 1;
    at("pick").dispatchEvent(new Event("input"));
    showLoss();
  }

  function fetchWeights() {
    at("load").disabled = true;
    at("state").textContent = `Loading ${data.megabytes} MB …`;
    const script = make("script", { src: at("load").dataset.weights });
    script.addEventListener("load", start);
    script.addEventListener("error", () => {
      at("state").textContent = "The weights couldn't be loaded. Try again, or build the book anew.";
      at("load").disabled = false;
    });
    document.head.append(script);
  }

  build();
  at("load").textContent = `Load the model, ${data.megabytes} MB`;
  at("load").addEventListener("click", fetchWeights);
  at("door").hidden = false;
})();
