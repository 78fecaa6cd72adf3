"use strict";
(() => {
  const body = document.body;
  const show = (what, on) => {
    body.classList.toggle(`show-${what}`, on);
    document.querySelectorAll(`input[data-show="${what}"]`).forEach((box) => { box.checked = on; });
  };
  document.querySelectorAll("input[data-show]").forEach((box) => {
    box.addEventListener("change", () => show(box.dataset.show, box.checked));
  });
  document.querySelectorAll("input[data-opacity]").forEach((slider) => {
    slider.addEventListener("input", () => body.style.setProperty("--outlines", slider.value));
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "o") show("outlines", !body.classList.contains("show-outlines"));
    if (event.key === "u") show("entropy", !body.classList.contains("show-entropy"));
  });
  const dialog = document.querySelector("dialog");
  document.querySelectorAll("figure .layers").forEach((layers) => {
    layers.addEventListener("click", () => {
      const large = layers.cloneNode(true);
      const first = large.querySelector("img");
      large.style.setProperty("--ratio", first.getAttribute("width") / first.getAttribute("height"));
      dialog.replaceChildren(large);
      dialog.showModal();
    });
  });
  dialog.addEventListener("click", () => dialog.close());
  document.querySelectorAll("button[data-copy]").forEach((button) => {
    button.addEventListener("click", async () => {
      const text = document.getElementById(button.dataset.copy).innerText;
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
      } catch {
        const range = document.createRange();
        range.selectNodeContents(document.getElementById(button.dataset.copy));
        getSelection().removeAllRanges();
        getSelection().addRange(range);
      }
    });
  });
})();
