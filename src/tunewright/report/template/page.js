"use strict";
for (const figure of document.querySelectorAll("figure.readable")) {
  const line = figure.querySelector(".read-out");
  const atRest = line.textContent;
  figure.addEventListener("pointermove", (event) => {
    const title = event.target.closest(".read")?.querySelector("title");
    line.textContent = title ? title.textContent : atRest;
  });
  figure.addEventListener("pointerleave", () => { line.textContent = atRest; });
}
