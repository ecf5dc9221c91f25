// What a model takes on a card, from its configuration. The formulas are those of the library: `lw.shape`,
// `Plan.predicted_bytes`, `Shape.cache_bytes`. A test holds both equal. Nothing here touches a page.
"use strict";

(() => {
  const data = globalThis.plannerData;
  const GB = 1e9;
  const BYTES = { bfloat16: 2, float16: 2, float32: 4 };

  // What families have beside the plain block, which is attention of four matrices, a gated MLP of three and two norms.
  // `biases` are of what a configuration may say so; `head` and `tied` are what it means where it says nothing.
  const FAMILIES = {
    gemma2: { norms: 4, head: 256, tied: true, biases: ["attention"] },
    gemma3_text: { norms: 4, headNorms: true, head: 256, tied: true, biases: ["attention"] },
    llama: { biases: ["attention", "mlp"] },
    mistral: {},
    phi3: { fused: true },
    qwen2: { readBiases: true },
    qwen3: { headNorms: true, head: 128, biases: ["attention"] },
    smollm3: { tied: true, biases: ["attention", "mlp"] },
  };
  const NEEDED = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"];

  const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
  const weights = ([rows, columns]) => rows * columns;

  /** Sizes of the dense model of a configuration. Throws an Error that says what is wrong with it. */
  function shapeOf(config) {
    const family = FAMILIES[config.model_type];
    if (config.quantization_config) {
      throw new Error("This model has few bits already. Take the configuration of the dense one.");
    }
    if (!family) {
      const known = Object.keys(FAMILIES).join(", ");
      const what = config.model_type ? `the sizes of "${config.model_type}"` : "a configuration without model_type";
      throw new Error(`This page doesn't know ${what}. It knows ${known}; lw.shape in Python knows nearly all.`);
    }
    const missing = NEEDED.filter((field) => !(Number.isInteger(config[field]) && config[field] > 0));
    if (missing.length) throw new Error(`The configuration must have whole numbers for ${missing.join(", ")}.`);
    const [D, F, L, heads, rows] = NEEDED.map((field) => config[field]);
    const own = config.num_key_value_heads ?? heads;
    const each = config.head_dim ?? family.head ?? D / heads;
    const [queries, keys] = [heads * each, own * each];
    const size = BYTES[config.dtype ?? config.torch_dtype ?? "bfloat16"];
    if (!size) throw new Error(`dtype must be one of ${Object.keys(BYTES).join(", ")}.`);

    const reads = family.fused ? [[queries + 2 * keys, D]] : [[queries, D], [keys, D], [keys, D]];
    const gates = family.fused ? [[2 * F, D]] : [[F, D], [F, D]];
    const matrices = [...reads, [D, queries], ...gates, [D, F]];
    const biased = (where) => family.biases?.includes(where) && config[`${where}_bias`];
    const beside =
      (family.norms ?? 2) * D +
      (family.headNorms ? 2 * each : 0) +
      (family.readBiases || biased("attention") ? queries + 2 * keys : 0) +
      (biased("attention") ? D : 0) +
      (biased("mlp") ? 2 * F + D : 0);
    const tied = config.tie_word_embeddings ?? family.tied ?? false;
    const ends = tied ? [[rows, D]] : [[rows, D], [rows, D]];
    const parameters = L * (sum(matrices.map(weights)) + beside) + sum(ends.map(weights)) + D;
    return {
      blocks: L,
      matrices, // of each block
      ends, // embedding, and head where it is a table of its own
      parameters,
      size, // bytes of a weight
      bytes: size * parameters,
      cacheBytes: size * 2 * L * keys, // of one token
      positions: config.max_position_embeddings ?? Infinity,
      largest: Math.max(...[...matrices, ...ends].map(weights)),
    };
  }

  /** Bytes of a matrix: whole numbers of some bits, with a scale and a zero point for every group of a row. */
  function stored(bits, [rows, columns]) {
    const { group, scale, zero } = data.groups;
    const groups = rows * Math.ceil(columns / group);
    return Math.ceil((bits * rows * columns) / 8) + Math.floor((groups * (scale + zero)) / 8);
  }

  /** Bytes of a model with so many bits for each matrix, the embedding and the head; null is dense. */
  function bytesAt(shape, bits) {
    if (bits === null) return shape.bytes;
    const of = (matrices) => sum(matrices.map((matrix) => stored(bits, matrix)));
    const few = shape.blocks * sum(shape.matrices.map(weights)) + sum(shape.ends.map(weights));
    return shape.blocks * of(shape.matrices) + of(shape.ends) + (shape.parameters - few) * shape.size;
  }

  /** Bytes in whole hundredths of a gigabyte, rounded down. */
  const hundredths = (bytes) => Math.max(0, Math.floor(bytes / (GB / 100) + 1e-6)) * (GB / 100);

  /** The bits at which everything takes so many bytes, in proportion between two widths. */
  function widthOf(shape, bytes) {
    const sizes = data.widths.map((bits) => bytesAt(shape, bits));
    const above = sizes.findIndex((size) => size > bytes);
    if (above === 0) return data.widths[0];
    if (above < 0) return data.widths[sizes.length - 1];
    const share = (bytes - sizes[above - 1]) / (sizes[above] - sizes[above - 1]);
    return data.widths[above - 1] + share * (data.widths[above] - data.widths[above - 1]);
  }

  /**
   * What fits on a card of so many gigabytes together with keys and values of so many tokens.
   *
   * `ways` are the dense model and one width for everything; `fitted` is what `lw.fit` makes of the same `budget`, in
   * hundredths of a gigabyte as its text says; `verdict` is "dense", "fitted" or "none".
   */
  function answer(shape, card, context) {
    const budget = hundredths(card * GB - data.aside);
    const cache = context * shape.cacheBytes;
    const ways = [null, ...data.uniform].map((bits) => {
      const bytes = bytesAt(shape, bits);
      const tokens = Math.max(0, Math.floor((budget - bytes) / shape.cacheBytes));
      const fits = bytes + cache <= budget;
      return { bits, bytes, fits, tokens: Math.min(tokens, shape.positions) };
    });
    const least = bytesAt(shape, data.widths[0]);
    const verdict = ways[0].fits ? "dense" : least + cache <= budget ? "fitted" : "none";
    const left = budget - cache;
    const unpacked = data.unpacked * shape.largest; // more, while layerwise itself runs it
    const own = hundredths(budget - unpacked);
    return {
      verdict,
      budget,
      cache,
      ways,
      least,
      fitted: { bytes: left, perWeight: (8 * left) / shape.parameters, budget: widthOf(shape, left) },
      unpacked,
      own: least + cache <= own ? own : null, // the budget at which layerwise itself has room to run it
      smallest: data.cards.find((other) => least + cache + data.aside <= other * GB), // card that will do
    };
  }

  /** What was measured at the largest budget up to this one, `{budget, kl, low, high}`; null where nothing was. */
  function measured(model, way, budget) {
    const below = model[way].filter(([at]) => at <= budget);
    if (!below.length) return null;
    const [at, kl, low, high] = below[below.length - 1];
    return { budget: at, kl, low, high };
  }

  globalThis.planner = { shapeOf, bytesAt, answer, measured };
})();
