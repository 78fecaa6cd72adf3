"use strict";
(() => {
  const body = document.body, dialog = document.querySelector("dialog"), stage = dialog.querySelector(".stage");
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const show = (what, on) => {
    body.classList.toggle(`show-${what}`, on);
    all(`input[data-show="${what}"]`).forEach((box) => { box.checked = on; });
  };
  all("input[data-show]").forEach((box) => box.addEventListener("change", () => show(box.dataset.show, box.checked)));
  all("input[data-opacity]").forEach((slider) => slider.addEventListener("input", () => {
    body.style.setProperty("--outlines", slider.value);
    all("input[data-opacity]").forEach((other) => { other.value = slider.value; });
  }));

  // The legend: hovering shows one structure, a click keeps it alone; the page's own style sheet does the drawing.
  const sheet = document.head.appendChild(document.createElement("style"));
  let kept = null;
  const isolate = (entry) => {
    const labels = entry ? entry.dataset.labels.split(" ").map((label) => `.s${label}`) : [];
    sheet.textContent = entry ? `.tile path:not(${labels.join(",")}) { opacity: .06; } ${labels.map((one) => `.tile ${one}`).join(",")} { fill-opacity: .45; }` : "";
  };
  all("button[data-labels]").forEach((entry) => {
    entry.addEventListener("mouseenter", () => isolate(entry));
    entry.addEventListener("focus", () => isolate(entry));
    for (const leaving of ["mouseleave", "blur"]) entry.addEventListener(leaving, () => isolate(kept));
    entry.addEventListener("click", () => {
      kept = kept === entry ? null : entry;
      all("button[data-labels]").forEach((other) => other.setAttribute("aria-pressed", String(other === kept)));
      isolate(kept);
    });
  });

  // What lies under the pointer.
  const tip = document.getElementById("tip");
  document.addEventListener("pointermove", (event) => {
    const path = event.target.closest?.(".tile path");
    tip.hidden = !path || !body.classList.contains("show-outlines");
    if (tip.hidden) return;
    tip.textContent = NAMES[path.getAttribute("class").slice(1)] || "";
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 6)}px`;
    tip.style.top = `${Math.max(event.clientY - 34, 6)}px`;
    (dialog.open ? dialog : body).append(tip);
  });

  // A picture enlarged: the wheel and + and - zoom, dragging moves it, arrows turn to the next one.
  let shown = null, zoom = 1, x = 0, y = 0;
  const place = () => {
    const reach = (zoom - 1) / 2;
    x = Math.min(Math.max(x, -reach * stage.clientWidth), reach * stage.clientWidth);
    y = Math.min(Math.max(y, -reach * stage.clientHeight), reach * stage.clientHeight);
    stage.style.setProperty("--zoom", zoom);
    stage.firstElementChild.style.transform = `translate(${x}px, ${y}px) scale(${zoom})`;
  };
  const scale = (factor, atX = 0, atY = 0) => {
    const next = Math.min(Math.max(zoom * factor, 1), 12);
    x = atX - (atX - x) * next / zoom;
    y = atY - (atY - y) * next / zoom;
    zoom = next;
    place();
  };
  const enlarge = (picture) => {
    shown = picture;
    const large = document.createElement("div"), ratio = Number(picture.dataset.ratio);
    large.className = "tile";
    large.innerHTML = picture.innerHTML;
    large.style.cssText = `${picture.closest("figure").getAttribute("style") || ""};${picture.getAttribute("style") || ""}`;
    stage.style.setProperty("--ratio", ratio);
    stage.replaceChildren(large);
    dialog.querySelector("p").textContent = picture.getAttribute("aria-label").replace(": enlarge", "");
    zoom = 1; x = y = 0;
    if (!dialog.open) dialog.showModal();
    place();
  };
  const turn = (step) => {
    const others = all("button.tile");
    enlarge(others[(others.indexOf(shown) + step + others.length) % others.length]);
  };
  all("button.tile").forEach((picture) => picture.addEventListener("click", () => enlarge(picture)));
  dialog.addEventListener("close", () => { body.append(tip); shown?.focus(); });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  all("button[data-do]", dialog).forEach((button) => button.addEventListener("click", () => {
    ({ close: () => dialog.close(), nearer: () => scale(1.5), farther: () => scale(1 / 1.5), back: () => turn(-1), on: () => turn(1) })[button.dataset.do]();
  }));
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    const box = stage.getBoundingClientRect();
    scale(Math.exp(-event.deltaY / 400), event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2);
  }, { passive: false });
  stage.addEventListener("pointerdown", (event) => stage.setPointerCapture(event.pointerId));
  stage.addEventListener("pointermove", (event) => {
    if (!event.buttons) return;
    x += event.movementX; y += event.movementY;
    place();
  });

  const enlarged = {
    "+": () => scale(1.5), "=": () => scale(1.5), "-": () => scale(1 / 1.5), 0: () => { zoom = 1; x = y = 0; place(); },
    ArrowLeft: () => zoom > 1 ? (x += 60, place()) : turn(-1), ArrowRight: () => zoom > 1 ? (x -= 60, place()) : turn(1),
    ArrowUp: () => { y += 60; place(); }, ArrowDown: () => { y -= 60; place(); },
  };
  const follow = (selector) => () => document.querySelector(selector)?.click();
  const anywhere = {
    o: () => show("outlines", !body.classList.contains("show-outlines")),
    u: () => show("entropy", !body.classList.contains("show-entropy")),
    n: follow("a[rel=next]"), p: follow("a[rel=prev]"),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input:not([type=checkbox]), textarea, select")) return;
    const action = (dialog.open && enlarged[event.key]) || anywhere[event.key] || rateBy(event.key);
    if (!action) return;
    event.preventDefault();
    action();
  });

  // Ratings: by mouse, or by the keys 1, 2, 3 for the T1w whose section is in view.
  const forms = all("form[data-rating]");
  const describe = (form) => JSON.parse(form.dataset.rating);
  const say = (form, text) => { form.querySelector("output").textContent = text; };
  const refresh = () => forms.forEach((form) => {
    const kept = RATINGS.all()[describe(form).scan] || {};
    all("button[data-rate]", form).forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.rate === kept.rating)));
    form.elements.note.value = kept.note || "";
    form.elements.rater.value = RATINGS.rater();
  });
  const keep = (form, change) => {
    RATINGS.setRater(form.elements.rater.value.trim());
    const done = RATINGS.set(describe(form), { note: form.elements.note.value, ...change });
    refresh();
    say(form, done ? "Kept in this browser; save the table for --ratings." : "This browser keeps nothing for this page.");
  };
  const rate = (form, rating) => keep(form, { rating: (RATINGS.all()[describe(form).scan] || {}).rating === rating ? "" : rating });
  const rateBy = (key) => {
    const rating = { 1: "keep", 2: "maybe", 3: "discard" }[key];
    const inView = forms.filter((form) => form.closest("article").getBoundingClientRect().top < innerHeight / 2).pop() || forms[0];
    return rating && inView && (() => rate(inView, rating));
  };
  forms.forEach((form) => {
    form.addEventListener("submit", (event) => event.preventDefault());
    all("button[data-rate]", form).forEach((button) => button.addEventListener("click", () => rate(form, button.dataset.rate)));
    for (const name of ["note", "rater"]) form.elements[name].addEventListener("change", () => keep(form, {}));
    form.querySelector("button[data-save]").addEventListener("click", () => RATINGS.save());
  });
  refresh();

  let opened = [];
  addEventListener("beforeprint", () => { opened = all("details:not([open])"); opened.forEach((one) => { one.open = true; }); });
  addEventListener("afterprint", () => opened.forEach((one) => { one.open = false; }));
  all("button[data-copy]").forEach((button) => button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.innerText);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(source);
      button.textContent = "Selected";
    }
  }));
})();
