"use strict";
// Everything has its height by now: back to where the reader was.
(function () {
  M.scrollBack();
  // a browser that goes to the address's own anchor does so after this
  window.addEventListener("load", () => setTimeout(M.scrollBack, 0));
})();
