"use strict";
// The profiles are packed (deflate, base64), so that thousands of experts fit into a few megabytes.
// Unpacked here at once, not by the browser's own stream: what follows wants them at hand.
(function () {
  const LENGTHS = [3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258];
  const LENGTH_BITS = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0];
  const DISTANCES = [1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577];
  const DISTANCE_BITS = [0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13];
  const ORDER = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

  // A code as a table: the next bits → (symbol, how many bits it took).
  function codes(lengths) {
    const most = Math.max(1, ...lengths);
    const next = [0];
    for (let n = 1, code = 0; n <= most; n++) {
      code = (code + (n === 1 ? 0 : lengths.filter((l) => l === n - 1).length)) << 1;
      next[n] = code;
    }
    const table = new Uint16Array(1 << most);
    lengths.forEach((length, symbol) => {
      if (!length) return;
      let turned = 0; // codes come with their first bit first
      for (let i = 0, code = next[length]++; i < length; i++) turned |= ((code >> (length - 1 - i)) & 1) << i;
      for (let at = turned; at < table.length; at += 1 << length) table[at] = (symbol << 4) | length;
    });
    return { table, most };
  }
  const FIXED = [codes([...Array(144).fill(8), ...Array(112).fill(9), ...Array(24).fill(7), ...Array(8).fill(8)]), codes(Array(30).fill(5))];

  M.inflate = function (source, size) {
    const out = new Uint8Array(size);
    let [at, from, held, have] = [0, 0, 0, 0];
    function need(n) {
      while (have < n) {
        held |= source[from++] << have;
        have += 8;
      }
    }
    function bits(n) {
      need(n);
      const value = held & ((1 << n) - 1);
      held >>>= n;
      have -= n;
      return value;
    }
    function symbol(code) {
      need(code.most);
      const found = code.table[held & ((1 << code.most) - 1)];
      held >>>= found & 15;
      have -= found & 15;
      return found >>> 4;
    }
    function dynamic() {
      const [literals, distances, many] = [bits(5) + 257, bits(5) + 1, bits(4) + 4];
      const first = Array(19).fill(0);
      for (let i = 0; i < many; i++) first[ORDER[i]] = bits(3);
      const code = codes(first);
      const lengths = [];
      while (lengths.length < literals + distances) {
        const s = symbol(code);
        if (s < 16) lengths.push(s);
        else {
          const value = s === 16 ? lengths[lengths.length - 1] : 0;
          const times = s === 16 ? 3 + bits(2) : s === 17 ? 3 + bits(3) : 11 + bits(7);
          for (let i = 0; i < times; i++) lengths.push(value);
        }
      }
      return [codes(lengths.slice(0, literals)), codes(lengths.slice(literals))];
    }
    function block([literal, distance]) {
      for (;;) {
        const s = symbol(literal);
        if (s === 256) return;
        if (s < 256) out[at++] = s;
        else {
          const length = LENGTHS[s - 257] + bits(LENGTH_BITS[s - 257]);
          const d = symbol(distance);
          const back = DISTANCES[d] + bits(DISTANCE_BITS[d]);
          for (const stop = at + length; at < stop; at++) out[at] = out[at - back];
        }
      }
    }
    let last = 0;
    while (!last) {
      last = bits(1);
      const kind = bits(2);
      if (kind === 0) {
        bits(have & 7);
        const length = bits(16);
        bits(16);
        for (let i = 0; i < length; i++) out[at++] = bits(8);
      } else block(kind === 1 ? FIXED : dynamic());
      if (at > size || from > source.length + 4) throw new Error("the packed profiles are damaged");
    }
    if (at !== size) throw new Error("the packed profiles are damaged");
    return out;
  };

  const packed = M.data.packed;
  if (packed) {
    const source = Uint8Array.from(atob(packed.bytes), (c) => c.charCodeAt(0));
    Object.assign(M.data, JSON.parse(new TextDecoder().decode(M.inflate(source, packed.size))));
    packed.bytes = "";
  }
})();
