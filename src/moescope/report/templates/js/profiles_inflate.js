"use strict";
// The profiles are packed (raw deflate, base64), so that thousands of experts fit into a few megabytes.
// The scripts after this one wait until the browser has unpacked them.
(function () {
  const packed = M.data.packed;
  const waiting = [];
  M.start = (script) => waiting.push(script);
  const bytes = Uint8Array.from(atob(packed.bytes), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  new Response(stream).json().then((data) => {
    Object.assign(M.data, data);
    packed.bytes = "";
    M.start = (script) => script();
    waiting.forEach((script) => script());
  });
})();
