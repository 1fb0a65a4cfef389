"use strict";
(() => {  // before anything is drawn
  let kept = null;
  try { kept = localStorage.getItem("light"); } catch { /* nothing is kept */ }
  document.documentElement.dataset.light = kept ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
})();
