// What the model to play with loses on the held-out texts. A text at a time, with a pause after each in which the page
// answers.
"use strict";

(() => {
  const { DENSE, OFF, run, loss } = globalThis.play;
  const pause = () => new Promise((go) => setTimeout(go));
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const predicted = (text) => text.tokens.length - 1;

  /** Texts `[{ kind, text }]` with their tokens, and what is measured on them once the dense model has read them. */
  function held(given, { encode, end }) {
    const texts = given.map(({ kind, text }) => ({ kind, text, tokens: [end, ...encode(text)] }));
    let model;
    let dense; // a run of the dense model over each of the texts, with its nats

    /** Runs with these settings over each of the texts, with their nats; null if `overtaken` says so on the way. */
    async function read(settings, each = () => {}, overtaken = () => false) {
      const found = [];
      for (const [i, text] of texts.entries()) {
        const ran = run(model, text.tokens, settings, dense?.[i].ran);
        found.push({ ran, nats: loss(model, ran) });
        each();
        await pause();
        if (overtaken()) return null;
      }
      return found;
    }

    /** Have the dense model read the texts. `each` is called after each of them. */
    async function begin(loaded, each) {
      model = loaded;
      dense = await read(model.blocks.map(() => DENSE), each);
    }

    /** Nats per token of one kind of text, or of all. */
    function mean(found, kind) {
      const which = texts.map((text) => !kind || text.kind === kind);
      return sum(found.map(({ nats }, i) => which[i] * nats)) / sum(texts.map((text, i) => which[i] * predicted(text)));
    }

    /** The model's loss with these settings, and the dense one's, over all texts and by kind; null if overtaken. */
    async function losses(settings, overtaken) {
      const found = await read(settings, undefined, overtaken);
      const both = (kind) => ({ kind, now: mean(found, kind), before: mean(dense, kind) });
      return found && { ...both(), kinds: [...new Set(texts.map(({ kind }) => kind))].map(both) };
    }

    /** For each block, what is lost without it, and its LIM, over all tokens. `each` is called with the share done. */
    async function damage(each) {
      const tokens = texts.map((text) => text.tokens.length);
      const found = [];
      let done = 0;
      for (const block of model.blocks.keys()) {
        const without = model.blocks.map((_, i) => (i === block ? OFF : DENSE));
        const gone = await read(without, () => each(++done / (model.blocks.length * texts.length)));
        const cosine = sum(dense.map(({ ran }, i) => ran.cosines[block] * tokens[i])) / sum(tokens);
        found.push({ block, lost: mean(gone) - mean(dense), lim: -cosine });
      }
      return found;
    }
    return { texts, begin, losses, damage };
  }

  globalThis.playTexts = held;
})();
