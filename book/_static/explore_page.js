// The page of figures to explore: a click loads Vega, which draws what `explore_data.js` has. What is chosen says which
// rows are drawn, and as which line.
"use strict";

(() => {
  const data = globalThis.exploreData;
  // By line: the colour in explore.css, the mark that Vega draws, and the same one in the key.
  const LOOKS = {
    "lw.fit": ["ours", "circle", "●"],
    uniform: ["baseline", "square", "■"],
    constant: ["baseline", "square", "■"],
    chosen: ["rival", "diamond", "◆"],
    other: ["other", "circle", "―"],
  };

  /** A slice base as it is chosen: of plans of equal bytes, all but 0 are half of SP. */
  const baseOf = (part, sb) => (part.equal === "bytes" && sb > 0 ? "SP / 2" : `${sb} %`);

  /** An element with text and elements in it. */
  function make(tag, attributes = {}, ...inside) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...inside);
    return element;
  }

  const short = (value, digits) => `${+value.toPrecision(digits)}`;
  const interval = (low, high, digits) => (low === null ? "" : `${short(low, digits)} to ${short(high, digits)}`);

  /** A way without the number of its random order. */
  const family = (way) => way.replace(/ \d+$/, "");
  const FIXED = ["lw.fit", "uniform"];

  const budgets = {
    kind: "quantizer",
    choices: (part) => [...new Set(part.rows.map(([way]) => family(way)))].filter((name) => !FIXED.includes(name)),
    start: "LIM",
    lines: ["lw.fit", "uniform", "chosen", "other"],
    names: (choice) => ({ chosen: choice, other: "other ways" }),
    columns: { name: "Bits by", budget: "Budget, bits", megabytes: "MB", share: "Of dense", kl: "KL, nats" },
    rows: (part, choice) =>
      part.rows.map(([way, budget, bytes, kl, low, high]) => {
        const name = family(way);
        const line = FIXED.includes(name) ? name : name === choice ? "chosen" : "other";
        const share = bytes / part.dense;
        const said = {
          name: way,
          budget: `${budget}`,
          megabytes: short(bytes / 1e6, 4),
          share: `${(100 * share).toFixed(1)} %`,
          kl: short(kl, 3),
          interval: interval(low, high, 3),
        };
        return { way, line, share, kl, low, high, said };
      }),
  };

  const grid = {
    kind: "equal",
    choices: (part) => {
      const bases = part.rows.filter(([plan]) => plan !== "constant").map(([, , sb]) => baseOf(part, sb));
      return [...new Set(bases)]; // from small to large, as the rows are
    },
    start: "0 %",
    lines: ["constant", "chosen", "other"],
    names: (choice) => ({ constant: "constant slicing", chosen: `dynamic, SB ${choice}`, other: "other SB" }),
    columns: { name: "Slices", sp: "SP, %", sb: "SB, %", value: "Perplexity, times" },
    rows: (part, choice, over) =>
      part.rows.map(([plan, sp, sb, ...ratios]) => {
        const base = baseOf(part, sb);
        const constant = plan === "constant";
        // Over the dense model's, or over constant slices'; these over themselves are 1, without an interval.
        const [value, low, high] = over === "dense" ? ratios : constant ? [1, null, null] : ratios.slice(3);
        const line = constant ? "constant" : base === choice ? "chosen" : "other";
        const name = constant ? "constant" : `by ${plan}`;
        const said = { name, sp: `${sp}`, sb: `${sb}`, value: short(value, 4), interval: interval(low, high, 4) };
        return { way: constant ? plan : `${plan} ${base}`, line, sp, value, low, high, said };
      }),
  };

  let vega;
  /** Load Vega, once for all figures. */
  function load(address) {
    vega ??= new Promise((done, failed) => {
      document.head.append(Object.assign(make("script", { src: address }), { onload: done, onerror: failed }));
    });
    return vega;
  }

  /** Options of a select, and the one that stays chosen if it can. */
  function offer(select, values, wanted) {
    const kept = values.includes(select.value) ? select.value : values.includes(wanted) ? wanted : values[0];
    select.replaceChildren(...values.map((value) => make("option", {}, value)));
    select.value = kept;
  }

  function table(columns, rows) {
    const names = Object.entries({ ...columns, interval: "95 % interval" });
    const head = make("tr", {}, ...names.map(([, title]) => make("th", { scope: "col" }, title)));
    const lines = rows.map(({ said }) => {
      const cells = names.map(([name], i) => make(i ? "td" : "th", i ? {} : { scope: "row" }, said[name]));
      return make("tr", {}, ...cells);
    });
    return make("table", { class: "dataframe" }, make("thead", {}, head), make("tbody", {}, ...lines));
  }

  function start(id, { kind, choices, start: wanted, lines, names, columns, rows: rowsOf }) {
    const root = document.getElementById(`explore-${id}`);
    const { figure, parts } = data[id];
    const within = (name) => root.querySelector(`.${name}`);
    const [model, kinds, choice] = ["model", "kind", "choice"].map((name) => document.getElementById(`${id}-${name}`));
    const over = document.getElementById(`${id}-over`); // what values are over, where there is a choice
    const button = root.querySelector("button");
    let view;

    /** Colours and type of the page, as it is now. */
    function looks() {
      const page = getComputedStyle(root);
      const of = (name) => page.getPropertyValue(`--${name}`).trim();
      const axis = { labelColor: page.color, titleColor: page.color, gridColor: of("other"), gridOpacity: 0.25 };
      return {
        background: "transparent",
        font: page.fontFamily,
        axis: { ...axis, tickColor: page.color, domainColor: page.color, labelFontSize: 12, titleFontSize: 13 },
        view: { stroke: null },
        range: { category: lines.map((line) => of(LOOKS[line][0])), symbol: lines.map((line) => LOOKS[line][1]) },
      };
    }

    async function draw() {
      const of = parts.filter((part) => part.model === model.value);
      offer(kinds, of.map((part) => part[kind]));
      const part = of.find((each) => each[kind] === kinds.value);
      offer(choice, choices(part), wanted);
      const rows = rowsOf(part, choice.value, over?.value);
      const there = lines.filter((line) => rows.some((row) => row.line === line));
      within("key").replaceChildren(
        ...there.map((line) => {
          const [colour, , mark] = LOOKS[line];
          const sign = make("span", { style: `color: var(--${colour})`, "aria-hidden": "true" }, mark);
          return make("span", {}, sign, ` ${names(choice.value)[line] ?? line}`);
        }));
      within("scrolls").replaceChildren(table(columns, rows));
      const theme = document.documentElement.dataset.theme === "dark" ? "dark" : "light";
      const options = { mode: "vega-lite", renderer: "svg", actions: false, config: looks(), tooltip: { theme } };
      view?.finalize();
      view = await globalThis.vegaEmbed(within("drawn"), { ...figure, data: { values: rows } }, options);
    }

    // One figure after the other, however fast a reader chooses.
    let drawing = Promise.resolve();
    const redraw = () => (drawing = drawing.then(draw));

    async function show() {
      button.disabled = true;
      within("state").textContent = "Loading …";
      try {
        await load(button.dataset.vega);
      } catch {
        within("state").textContent = "The figure couldn't be loaded: vega.js isn't beside this page.";
        return;
      }
      within("state").textContent = "";
      within("door").hidden = true;
      within("shown").hidden = false;
      root.parentElement.querySelector("figure")?.remove(); // it stood for this one
      offer(model, [...new Set(parts.map((part) => part.model))]);
      await redraw();
      for (const select of root.querySelectorAll("select")) select.addEventListener("change", redraw);
      new MutationObserver(redraw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
      model.focus();
    }

    button.textContent = `Show the interactive figure, ${data.megabytes} MB`;
    button.addEventListener("click", show);
    within("door").hidden = false;
  }

  start("budgets", budgets);
  start("grid", grid);
})();
