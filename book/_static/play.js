// A small Llama model in plain JavaScript: its tokenizer, its forward pass, blocks that are off or have fewer bits, and
// what that costs. A test holds logits, losses, cosines and tokens equal to those of the library. Nothing here touches
// a page. T is the number of tokens, D the width of the stream, V the number of tokens that there are.
"use strict";

(() => {
  const DENSE = "dense"; // what each block may be: dense, off, or a number of bits
  const OFF = "off";

  /** A tokenizer by what `playData.tokenizer` holds: byte-level BPE, digits one by one. */
  function tokenizer({ vocabulary, merges, end }) {
    const ids = new Map(vocabulary.map((token, id) => [token, id]));
    const ranks = new Map(merges.map((pair, rank) => [pair, rank]));
    // Byte-level BPE writes a byte that can be seen as that character, and the others as those from 256 on.
    const seen = (byte) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte !== 173);
    const letters = [];
    for (let byte = 0, other = 256; byte < 256; byte++) letters.push(String.fromCharCode(seen(byte) ? byte : other++));
    const bytes = new Map(letters.map((letter, byte) => [letter, byte]));
    const words = new RegExp(
      "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\p{White_Space}\\p{L}\\p{N}]+" +
        "|\\p{White_Space}+(?!\\P{White_Space})|\\p{White_Space}+", "gu");

    /** Tokens of one word, joined pair by pair in the order of the merges. */
    function joined(word) {
      let parts = [...new TextEncoder().encode(word)].map((byte) => letters[byte]);
      for (;;) {
        let best = Infinity;
        let pair = "";
        for (let i = 0; i + 1 < parts.length; i++) {
          const rank = ranks.get(`${parts[i]} ${parts[i + 1]}`) ?? Infinity;
          if (rank < best) [best, pair] = [rank, `${parts[i]} ${parts[i + 1]}`];
        }
        if (best === Infinity) return parts.map((part) => ids.get(part));
        const next = [];
        for (let i = 0; i < parts.length; i++) {
          const both = i + 1 < parts.length && `${parts[i]} ${parts[i + 1]}` === pair;
          next.push(both ? parts[i] + parts[++i] : parts[i]);
        }
        parts = next;
      }
    }

    /** Ids of a text's tokens, with none before them; the end-of-text token may be written out. */
    function encode(text) {
      return text.split(vocabulary[end]).flatMap((part, i) => {
        const pieces = (part.match(/\p{N}|\P{N}+/gu) ?? []).flatMap((piece) => piece.match(words) ?? []);
        return [...(i ? [end] : []), ...pieces.flatMap(joined)];
      });
    }

    /** The text of one token. */
    function piece(id) {
      if (id === end) return vocabulary[end];
      return new TextDecoder().decode(Uint8Array.from([...vocabulary[id]], (letter) => bytes.get(letter)));
    }
    return { encode, piece, end };
  }

  /** Numbers that are written as base64 of bfloat16, which is the upper half of a float32. */
  function decoded(base64) {
    const text = atob(base64);
    const bits = new Uint32Array(text.length / 2);
    for (let i = 0; i < bits.length; i++) {
      bits[i] = ((text.charCodeAt(2 * i + 1) << 24) | (text.charCodeAt(2 * i) << 16)) >>> 0;
    }
    return new Float32Array(bits.buffer);
  }

  /** The model of a configuration with its weights: float64, in which products are fast and exact enough. */
  function model(config, base64) {
    const all = decoded(base64);
    const tensors = {};
    let start = 0;
    for (const [name, shape] of config.tensors) {
      const size = shape.reduce((a, b) => a * b);
      tensors[name] = { shape, values: Float64Array.from(all.subarray(start, start + size)) };
      start += size;
    }
    const blocks = Array.from({ length: config.blocks }, (_, i) => {
      const own = Object.entries(tensors).filter(([name]) => name.startsWith(`model.layers.${i}.`));
      const named = own.map(([name, tensor]) => [name.split(".").at(-2), tensor]);
      return { [DENSE]: Object.fromEntries(named) };
    });
    return { config, tensors, blocks };
  }

  /** The nearest whole number; of two, the even one. */
  function nearest(x) {
    const up = Math.round(x);
    return up - x === 0.5 && up % 2 ? up - 1 : up;
  }

  /** The nearest float16 of a number that is not negative. */
  function half(x) {
    const unit = 2 ** Math.max(Math.floor(Math.log2(x)) - 10, -24);
    return nearest(x / unit) * unit;
  }

  /** A matrix rounded to `bits` bits in groups of a row, in float32 as the library's RTN does it. */
  function rounded({ shape, values }, bits, group) {
    const round = Math.fround;
    const found = new Float64Array(values.length);
    const levels = 2 ** bits - 1;
    for (let row = 0; row < values.length; row += shape[1]) {
      for (let at = row; at < row + shape[1]; at += group) {
        const stop = Math.min(at + group, row + shape[1]);
        let [low, high] = [0, 0];
        for (let i = at; i < stop; i++) {
          low = Math.min(low, values[i]);
          high = Math.max(high, values[i]);
        }
        const scale = half(round(round(high - low) / levels)) || 1;
        const within = (code) => Math.min(Math.max(code, 0), levels);
        const zero = within(nearest(round(-low / scale)));
        for (let i = at; i < stop; i++) {
          found[i] = round((within(nearest(round(values[i] / scale)) + zero) - zero) * scale);
        }
      }
    }
    return { shape, values: found };
  }

  /** Block `i` with what it is set to, kept for the next time. */
  function block(model, i, setting) {
    const every = model.blocks[i];
    every[setting] ??= Object.fromEntries(
      Object.entries(every[DENSE]).map(([name, tensor]) => [
        name, tensor.shape.length === 2 ? rounded(tensor, setting, model.config.group) : tensor,
      ]));
    return every[setting];
  }

  /** x W': [T, columns] times [rows, columns] -> [T, rows], where rows are even in number.
   *
   * Two rows and four tokens at a time: eight sums that share what they read take half as long as four.
   */
  function product(x, { shape: [rows, columns], values }) {
    const T = x.length / columns;
    const y = new Float64Array(T * rows);
    for (let t = 0; t < T; t += 4) {
      // Where fewer than four tokens are left, the last one is done again.
      const a = t, b = Math.min(t + 1, T - 1), c = Math.min(t + 2, T - 1), d = Math.min(t + 3, T - 1);
      for (let row = 0; row < rows; row += 2) {
        let a0 = 0, b0 = 0, c0 = 0, d0 = 0, a1 = 0, b1 = 0, c1 = 0, d1 = 0;
        let i = a * columns, j = b * columns, k = c * columns, l = d * columns;
        const stop = (row + 1) * columns;
        for (let w = row * columns; w < stop; w++, i++, j++, k++, l++) {
          const one = values[w], other = values[w + columns];
          a0 += one * x[i]; b0 += one * x[j]; c0 += one * x[k]; d0 += one * x[l];
          a1 += other * x[i]; b1 += other * x[j]; c1 += other * x[k]; d1 += other * x[l];
        }
        y[a * rows + row] = a0; y[b * rows + row] = b0; y[c * rows + row] = c0; y[d * rows + row] = d0;
        y[a * rows + row + 1] = a1; y[b * rows + row + 1] = b1; y[c * rows + row + 1] = c1; y[d * rows + row + 1] = d1;
      }
    }
    return y;
  }

  /** Every token's numbers over their root mean square, times the norm's weights. */
  function normed(x, { values }, epsilon) {
    const D = values.length;
    const y = new Float64Array(x.length);
    for (let t = 0; t < x.length; t += D) {
      let squares = 0;
      for (let i = t; i < t + D; i++) squares += x[i] * x[i];
      const scale = 1 / Math.sqrt(squares / D + epsilon);
      for (let i = 0; i < D; i++) y[t + i] = x[t + i] * scale * values[i];
    }
    return y;
  }

  /** Turn queries or keys [T, D] by their position, in place: number i of a head with the one half a head behind.
   *
   * Angles are float32, as in PyTorch: far from the beginning, exact ones would differ too much from these.
   */
  function rotate(x, D, head, theta) {
    for (let at = 0; at < x.length; at += head) {
      for (let i = 0; i < head / 2; i++) {
        const angle = Math.fround(Math.floor(at / D) * Math.fround(theta ** ((-2 * i) / head)));
        const [a, b, cos, sin] = [x[at + i], x[at + i + head / 2], Math.cos(angle), Math.sin(angle)];
        x[at + i] = a * cos - b * sin;
        x[at + i + head / 2] = b * cos + a * sin;
      }
    }
    return x;
  }

  /** What attention reads for every token, from itself and those before it: queries, keys, values [T, D] -> [T, D]. */
  function attention(queries, keys, values, D, head) {
    const found = new Float64Array(queries.length);
    const scores = new Float64Array(queries.length / D);
    for (let t = 0; t * D < queries.length; t++) {
      for (let from = 0; from < D; from += head) {
        for (let s = 0; s <= t; s++) {
          let dot = 0;
          for (let i = from; i < from + head; i++) dot += queries[t * D + i] * keys[s * D + i];
          scores[s] = dot / Math.sqrt(head);
        }
        softmax(scores.subarray(0, t + 1));
        for (let s = 0; s <= t; s++) {
          for (let i = from; i < from + head; i++) found[t * D + i] += scores[s] * values[s * D + i];
        }
      }
    }
    return found;
  }

  /** Scores to probabilities, in place; returns the logarithm of what they were divided by. */
  function softmax(scores) {
    let most = -Infinity;
    for (const score of scores) most = Math.max(most, score);
    let sum = 0;
    for (let i = 0; i < scores.length; i++) sum += scores[i] = Math.exp(scores[i] - most);
    for (let i = 0; i < scores.length; i++) scores[i] /= sum;
    return most + Math.log(sum);
  }

  const added = (x, y) => x.map((value, i) => value + y[i]);

  /** What leaves a block, from what enters it [T, D]. */
  function passed(x, parts, { width: D, head, theta, epsilon }) {
    const read = normed(x, parts.input_layernorm, epsilon);
    const [queries, keys] = ["q_proj", "k_proj"].map((name) => rotate(product(read, parts[name]), D, head, theta));
    const mixed = attention(queries, keys, product(read, parts.v_proj), D, head);
    const middle = added(x, product(mixed, parts.o_proj));
    const again = normed(middle, parts.post_attention_layernorm, epsilon);
    const up = product(again, parts.up_proj);
    const gated = product(again, parts.gate_proj).map((gate, i) => (gate / (1 + Math.exp(-gate))) * up[i]);
    return added(middle, product(gated, parts.down_proj));
  }

  /** Mean over tokens of the cosine between what enters a block and what leaves it: minus that is LIM. */
  function cosine(x, y, D) {
    let sum = 0;
    for (let t = 0; t < x.length; t += D) {
      let [both, one, other] = [0, 0, 0];
      for (let i = t; i < t + D; i++) {
        both += x[i] * y[i];
        one += x[i] * x[i];
        other += y[i] * y[i];
      }
      sum += both / Math.sqrt(one * other);
    }
    return sum / (x.length / D);
  }

  /** Run the blocks, as they are set, over tokens [T]. `before`, a run over the same tokens, is used as far as it goes.
   *
   * Gives the stream [T, D] that enters each block, and last the one that leaves them all; each block's mean cosine.
   */
  function run(model, tokens, settings, before) {
    const { width: D } = model.config;
    const table = model.tensors["model.embed_tokens.weight"].values;
    let same = before ? settings.findIndex((setting, i) => setting !== before.settings[i]) : 0;
    if (same < 0) same = settings.length;
    const row = (t) => tokens[t] * D;
    const number = (_, i) => table[row(Math.floor(i / D)) + (i % D)];
    const embedded = () => Float64Array.from({ length: tokens.length * D }, number);
    const streams = before ? before.streams.slice(0, same + 1) : [embedded()];
    const cosines = before ? before.cosines.slice(0, same) : [];
    for (let i = same; i < settings.length; i++) {
      const [setting, x] = [settings[i], streams[i]];
      streams.push(setting === OFF ? x : passed(x, block(model, i, setting), model.config));
      cosines.push(cosine(x, streams[i + 1], D));
    }
    return { tokens, settings, streams, cosines };
  }

  /** Scores of the next token behind each token from `first` on, [T - first, V]. */
  function logits(model, { streams }, first = 0) {
    const { width: D, epsilon } = model.config;
    const read = normed(streams.at(-1).subarray(first * D), model.tensors["model.norm.weight"], epsilon);
    return product(read, model.tensors["lm_head.weight"]);
  }

  /** Probabilities of the next token behind the last one, [V]. */
  function next(model, ran) {
    const scores = logits(model, ran, ran.tokens.length - 1);
    softmax(scores);
    return scores;
  }

  /** Nats, summed over the tokens that are predicted: all but the first. */
  function loss(model, ran) {
    const V = model.tensors["lm_head.weight"].shape[0];
    const all = logits(model, ran);
    let nats = 0;
    for (let t = 0; t + 1 < ran.tokens.length; t++) {
      const scores = all.subarray(t * V, (t + 1) * V);
      const said = scores[ran.tokens[t + 1]];
      nats += softmax(scores) - said;
    }
    return nats;
  }

  globalThis.play = { DENSE, OFF, tokenizer, model, rounded, run, logits, next, loss };
})();
