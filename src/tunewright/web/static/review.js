"use strict";
// Keys of a review: each presses what says so in its aria-keyshortcuts. They rest while somebody writes.
(() => {
  const text = document.getElementById("answer");
  const form = document.getElementById("decide");
  let sent = false;

  function press(key) {
    const one = document.querySelector(`[aria-keyshortcuts="${CSS.escape(key)}"]`);
    if (!one) return false;
    if (one === text) one.focus();
    else one.click();
    return true;
  }

  document.addEventListener("keydown", (event) => {
    if (event.target === text && event.key === "Escape") text.blur();
    if (event.target === text && event.key === "Enter" && (event.ctrlKey || event.metaKey)) press("a");
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (event.target.closest('input:not([type="checkbox"]), textarea, select')) return;
    if (/^[a-z]$/.test(event.key) && press(event.key)) event.preventDefault();
  });

  // What was written and not accepted is not lost by a slip.
  document.querySelectorAll("form[data-api]").forEach((one) => {
    one.addEventListener("taken", () => { sent = sent || one === form; });
  });
  window.addEventListener("beforeunload", (event) => {
    if (text && !sent && text.value !== text.defaultValue) event.preventDefault();
  });

  // A review that was made ready is gone to at once.
  new MutationObserver(() => {
    const ready = document.querySelector("[data-go]");
    if (ready) location.replace(ready.href);
  }).observe(document.getElementById("main"), { childList: true, subtree: true });
})();
