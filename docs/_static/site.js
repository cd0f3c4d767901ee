"use strict";

// The table of all checkpoints is a page of its own, which follows the system. In a frame it follows the switch of the
// site, too, unless the browser keeps the two apart, as it does for pages that are opened as files.
function matchColors(frame) {
  const root = frame.contentDocument?.documentElement;
  const theme = document.body.dataset.theme;
  if (root) root.style.colorScheme = ["light", "dark"].includes(theme) ? theme : "";
}

window.addEventListener("DOMContentLoaded", () => {
  const frames = document.querySelectorAll("iframe.comparison");
  for (const frame of frames) {
    matchColors(frame);
    frame.addEventListener("load", () => matchColors(frame));
  }
  new MutationObserver(() => frames.forEach(matchColors)).observe(document.body, { attributeFilter: ["data-theme"] });
});
