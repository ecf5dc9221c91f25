// The page of the planner: reads the form, shows what `planner.js` answers. Its state is in the address, so that an
// answer can be linked to: #model=Qwen2.5-7B&card=6&context=4096
"use strict";

(() => {
  const { shapeOf, answer, measured } = globalThis.planner;
  const data = globalThis.plannerData;
  const OTHER = "other";
  const START = { model: "Qwen2.5-7B", card: 6, context: 4096 };
  const YES = "✓";
  const NO = "✗";

  const at = (name) => document.getElementById(`planner-${name}`);
  // Found once: the theme's copy buttons give them ids of their own.
  const [command, python] = ["command", "python"].map((kind) => document.querySelector(`.planner .${kind}`));
  const short = (name) => name.split("/").pop();

  /** An element with text and elements in it. */
  function make(tag, attributes = {}, ...inside) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...inside);
    return element;
  }

  const digits = (number) => (number < 10 ? 2 : number < 100 ? 1 : 0);
  const gigabytes = (bytes) => `${(bytes / 1e9).toFixed(digits(bytes / 1e9))} GB`;
  const billions = (count) => (count < 1e9 ? `${Math.round(count / 1e6)}M` : `${+(count / 1e9).toPrecision(3)}B`);
  const argument = (bytes) => `${+(bytes / 1e9).toFixed(2)}GB`; // as number_of_bytes reads it
  const nats = (value) => `${+value.toPrecision(2)}`;
  const told = (point) => `${nats(point.kl)} (${nats(point.low)} to ${nats(point.high)})`;

  /** The model that is asked for: its name, and its sizes. */
  function chosen() {
    if (at("model").value !== OTHER) {
      const config = data.models.find((model) => short(model.name) === at("model").value);
      return { name: config.name, shape: shapeOf(config) };
    }
    let config;
    try {
      config = JSON.parse(at("config").value);
    } catch (error) {
      throw new Error(`Paste the whole config.json of the model, braces included. ${error.message}`);
    }
    return { name: config._name_or_path || "owner/name", shape: shapeOf(config) };
  }

  function number(name, what, least) {
    const value = Number(at(name).value);
    if (at(name).value === "" || !Number.isFinite(value) || value < least) throw new Error(`${what}.`);
    return value;
  }

  function verdict(name, shape, found, card) {
    const on = `on ${card} GB`;
    if (found.verdict === "dense") {
      const fits = make("strong", { class: "yes" }, `${YES} ${short(name)} fits ${on} as it is.`);
      return [fits, " Nothing has to be lost."];
    }
    const dense = `Dense it takes ${gigabytes(shape.bytes)}`;
    if (found.verdict === "fitted") {
      const bits = found.fitted.perWeight.toFixed(2);
      return [
        make("strong", { class: "yes" }, `${YES} ${short(name)} fits ${on} at ${bits} bits per weight.`),
        ` ${dense}; leave it ${gigabytes(found.fitted.bytes)}, and give the bits to the matrices that need them.`,
      ];
    }
    const other = found.smallest ? `A card of ${found.smallest} GB would do.` : "It takes several cards.";
    const least = `Even ${data.widths[0]} bits for every weight take ${gigabytes(found.least)}`;
    const keys = found.cache ? `, and keys and values ${gigabytes(found.cache)}` : "";
    return [
      make("strong", { class: "no" }, `${NO} ${short(name)} doesn't fit ${on}.`),
      ` ${least}${keys}; there are ${gigabytes(found.budget)}. ${other}`,
    ];
  }

  /** A bar of the card's memory, and the same in words. */
  function picture(shape, found, card) {
    const weights = { dense: shape.bytes, fitted: found.fitted.bytes, none: found.least }[found.verdict];
    const left = card * 1e9 - data.aside - found.cache - weights;
    const parts = [
      ["weights", "Weights", weights],
      ["cache", "Keys and values", found.cache],
      ["aside", "Set aside", data.aside],
      ["left", left < 0 ? "Missing" : "Left", Math.abs(left)],
    ];
    const all = Math.max(card * 1e9, weights + found.cache + data.aside);
    const words = parts.map(([, word, bytes]) => `${word} ${gigabytes(bytes)}`);
    const bar = make("div", { class: "bar", role: "img", "aria-label": `Of ${card} GB: ${words.join(", ")}` });
    const share = (bytes) => `${((100 * bytes) / all).toFixed(2)}%`;
    for (const [kind, , bytes] of left < 0 ? parts.slice(0, 3) : parts) {
      bar.append(make("span", { class: kind, style: `width: ${share(bytes)}` }));
    }
    if (left < 0) bar.append(make("span", { class: "end", style: `left: ${share(card * 1e9)}` }));
    const key = parts.map(([kind], i) => make("li", {}, make("span", { class: `swatch ${kind}` }), words[i]));
    return [bar, make("ul", { class: "key", "aria-hidden": "true" }, ...key)];
  }

  /** What was measured at the nearest budget below, of the pretrained models and of the book's own. */
  function cost(found) {
    if (found.verdict !== "fitted") return [];
    const title = make("strong", {}, "What it costs");
    const points = data.quality
      .map((model) => ({ model, point: measured(model, "fit", found.fitted.budget) }))
      .filter(({ point }) => point);
    if (!points.length) {
      const when = data.quality.length ? "at so small a budget" : "yet";
      return [make("p", {}, title, `: not measured ${when}.`)];
    }
    const { budget } = points[0].point;
    const list = (pretrained) =>
      points
        .filter(({ model }) => model.pretrained === pretrained)
        .map(({ model, point }) => {
          const where = point.budget === budget ? "" : ` at ${point.budget}`;
          return `${told(point)} on ${model.model}${where}`;
        })
        .join("; ") || "not measured";
    const promise = make("a", { href: "#what-it-costs" }, "No promise for others.");
    const at = `, KL in nats per token at a budget of ${budget} bits (yours: ${found.fitted.budget.toFixed(2)}): `;
    return [
      make("p", {}, title, at, `${list(true)}. `, promise),
      make("p", { class: "small" }, `This book's models: ${list(false)}.`),
    ];
  }

  /** Lines to paste: a command, and Python. */
  function lines(name, found, context) {
    const load = `import layerwise as lw\n\nmodel, tokenizer = lw.load("${name}"`;
    if (found.verdict === "dense") return ["", `${load})`];
    const bytes = argument(found.budget);
    const out = `${short(name)}-${bytes}`;
    const pasted = [
      `python -m layerwise fit ${name} \\`,
      `  --bytes ${bytes} --context ${context} \\`,
      `  --device cpu --out ${out}`,
    ];
    const called = [
      `${load}, device="cpu")`,
      "fitted = lw.fit(",
      `    model, tokenizer, bytes="${bytes}", context=${context}`,
      ")",
      "print(fitted.report)",
      `lw.save(fitted.model, "${out}", tokenizer)`,
    ];
    return [pasted.join("\n"), called.join("\n")];
  }

  /** Whether layerwise itself has room to run what it makes, which fills the card but for what is set aside. */
  function own(found) {
    const more = `it unpacks a matrix at a time, which takes ${gigabytes(found.unpacked)} more`;
    const able = found.own ? ` With --bytes ${argument(found.own)} it can.` : "";
    return `${NO} Layerwise itself can't run this on the card: ${more}.${able}`;
  }

  /** Show the lines in the blocks that the theme has given copy buttons. */
  function showLines(name, found, context) {
    [command.textContent, python.textContent] = lines(name, found, context);
    at("make").hidden = found.verdict !== "fitted";
    at("more").hidden = found.verdict === "none";
    if (found.verdict === "dense") at("more").open = true;
    if (found.verdict === "fitted") at("own").textContent = own(found);
  }

  /** A line for each width, in a table. */
  function ways(found, context) {
    const real = data.quality.find((model) => model.pretrained);
    const lost = (point) => (point ? nats(point.kl) : "–");
    const byNeed = () => lost(real && measured(real, "fit", found.fitted.budget));
    const uniform = (bits) => {
      const point = real && measured(real, "uniform", bits);
      return lost(point?.budget === bits && point); // that of other bits would say nothing
    };
    const row = (name, way, tokens, kl) => {
      const cells = [gigabytes(way.bytes), way.fits ? `${YES} yes` : `${NO} no`, tokens.toLocaleString("en"), kl];
      const first = make("th", { scope: "row" }, name);
      return make("tr", { class: way.fits ? "yes" : "no" }, first, ...cells.map((text) => make("td", {}, text)));
    };
    const rows = found.ways.map((way) => {
      const dense = way.bits === null;
      return row(dense ? "Dense" : `${way.bits} bits`, way, way.tokens, dense ? "0" : uniform(way.bits));
    });
    if (found.verdict === "fitted") {
      const way = { bytes: found.fitted.bytes, fits: true };
      rows.unshift(row("By need", way, context, byNeed()));
    }
    const head = ["Bits", "Weights", "Fits?", "Context up to", "KL"].map((text) => make("th", { scope: "col" }, text));
    const title = found.verdict === "fitted" ? "By need, and one" : "One";
    const where = real ? `KL on ${real.model}.` : "KL: not measured yet.";
    return [
      make("table", { class: "dataframe" },
        make("caption", {}, `${title} width for everything. ${where}`),
        make("thead", {}, make("tr", {}, ...head)),
        make("tbody", {}, ...rows)),
    ];
  }

  function show() {
    const other = at("model").value === OTHER;
    at("other").hidden = !other;
    for (const radio of at("cards").querySelectorAll("input")) radio.checked = radio.value === at("card").value;
    const places = ["verdict", "picture", "cost", "ways"];
    at("wrong").textContent = "";
    try {
      const card = number("card", "The card's memory must be a number of gigabytes, at least 1", 1);
      const context = Math.floor(number("context", "The context must be a number of tokens, 0 or more", 0));
      if (other && !at("config").value.trim()) throw new Error("Paste the model's config.json above.");
      const { name, shape } = chosen();
      if (context > shape.positions) {
        const most = shape.positions.toLocaleString("en");
        at("wrong").textContent = `${short(name)} is made for ${most} tokens at the most.`;
      }
      const found = answer(shape, card, context);
      const shown = [
        verdict(name, shape, found, card),
        picture(shape, found, card),
        cost(found),
        ways(found, context),
      ];
      places.forEach((place, i) => at(place).replaceChildren(...shown[i]));
      showLines(name, found, context);
      if (!other) history.replaceState(null, "", `#model=${short(name)}&card=${card}&context=${context}`);
    } catch (error) {
      at("wrong").textContent = error.message;
      places.forEach((place) => at(place).replaceChildren());
      at("make").hidden = at("more").hidden = true;
    }
  }

  function begin() {
    const options = data.models.map((model) =>
      make("option", { value: short(model.name) }, `${short(model.name)} (${billions(model.parameters)})`));
    at("model").append(...options, make("option", { value: OTHER }, "Another: paste its config.json"));
    for (const card of data.cards) {
      const radio = make("input", { type: "radio", name: "planner-card", value: card, id: `planner-card-${card}` });
      radio.addEventListener("change", () => {
        at("card").value = card;
        show();
      });
      at("cards").append(make("label", {}, radio, make("span", {}, `${card}`)));
    }
    const asked = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
    for (const name of ["model", "card", "context"]) at(name).value = asked[name] ?? START[name];
    if (!at("model").value) at("model").value = START.model;
    for (const name of ["model", "card", "context", "config"]) at(name).addEventListener("input", show);
    show();
  }

  begin();
})();
