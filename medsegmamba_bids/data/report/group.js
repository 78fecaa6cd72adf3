"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#5b6770", "#8c564b", "#2ca02c", "#bcbd22", "#17becf", "#999999"];
  const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [220, 208, 32]];
  const EDGE = 8, NEAR = 9, wide = innerWidth > 640, LEFT = wide ? 218 : 132;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const SHADES = { "#5c6776": "#a3b1bb", "#1b2330": "#dde5ea", "#e6eaef": "#2b3944", "#b9c4ce": "#53636f", "#fff": "#17222a",
    "rgba(16,32,43,.06)": "rgba(220,230,240,.10)", "rgba(16,32,43,.55)": "rgba(220,230,240,.6)", "rgba(16,32,43,.022)": "rgba(220,230,240,.04)", "#10202b": "#e8eef2" };
  const shade = (colour) => (dark.matches && SHADES[colour]) || colour;
  const state = { segmentation: 0, structure: 0, colour: -1, found: -1 };
  const scans = DATA.scans;
  const thin = scans.length > 800;
  const number = (value, digits = 0) => value.toLocaleString("en-US", { maximumFractionDigits: digits }).replaceAll(",", "\u202f").replace(/^-0$/, "0");
  const signed = (value, digits) => value.toFixed(digits).replace("-", "−");
  const element = (tag, text, className) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };
  // A fixed jitter per T1w, so that dots do not jump between drawings.
  const jitter = scans.map((_, i) => { const x = Math.sin(i * 12.9898) * 43758.5453; return x - Math.floor(x) - 0.5; });

  const column = () => DATA.columns[state.colour];
  const range = (values) => {
    let low = Infinity, high = -Infinity;
    for (const value of values) if (value !== null) { low = Math.min(low, value); high = Math.max(high, value); }
    return [low, high];
  };
  const ramp = (share) => {
    const at = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1), i = Math.min(Math.floor(at), RAMP.length - 2), f = at - i;
    return `rgb(${RAMP[i].map((c, k) => Math.round(c + f * (RAMP[i + 1][k] - c))).join(",")})`;
  };
  let colours = [];
  const recolour = () => {
    const chosen = column();
    if (!chosen) { colours = scans.map(() => "#2b7a99"); return; }
    if (chosen.kind === "level") {
      colours = chosen.values.map((value) => value === null ? "#b8c0c8" : PALETTE[value % PALETTE.length]);
      return;
    }
    const [low, high] = range(chosen.values);
    colours = chosen.values.map((value) => value === null ? "#b8c0c8" : ramp((value - low) / (high - low || 1)));
  };
  const drawKeys = () => document.querySelectorAll("[data-key]").forEach((key) => {
    key.replaceChildren();
    const chosen = column();
    if (chosen && chosen.kind === "level") {
      chosen.levels.forEach((level, i) => {
        const entry = element("span", ""), dot = element("i");
        dot.style.background = PALETTE[i % PALETTE.length];
        entry.append(dot, level);
        key.append(entry);
      });
    } else if (chosen) {
      const [low, high] = range(chosen.values), entry = element("span", `${chosen.name} ${number(low, 2)}`), bar = element("i", undefined, "ramp");
      bar.style.background = `linear-gradient(to right, ${[0, .25, .5, .75, 1].map(ramp).join(",")})`;
      entry.append(bar, number(high, 2));
      key.append(entry);
    }
    const outlier = element("span", "");
    outlier.append(element("i", undefined, "ring"), "outlier");
    key.append(outlier);
  });

  class Chart {
    constructor(host, draw) {
      [this.canvas, this.overlay] = host.querySelectorAll("canvas");
      this.host = host;
      this.drawing = draw;
      this.points = [];
      this.canvas.addEventListener("mousemove", (event) => this.hover(event));
      this.canvas.addEventListener("mouseleave", () => { highlight(-1); hideTip(); });
      this.canvas.addEventListener("click", (event) => this.click(event));
    }
    size(height) {
      const scale = window.devicePixelRatio || 1;
      this.width = this.host.clientWidth;
      this.height = height;
      for (const canvas of [this.canvas, this.overlay]) {
        canvas.width = this.width * scale;
        canvas.height = height * scale;
        canvas.style.height = `${height}px`;
        canvas.getContext("2d").setTransform(scale, 0, 0, scale, 0, 0);
      }
      return this.canvas.getContext("2d");
    }
    draw() {
      this.points = [];
      this.cells = new Map();
      this.drawing(this);
      this.points.forEach((point, i) => {
        const key = Math.floor(point.x / NEAR) * 100003 + Math.floor(point.y / NEAR);
        if (this.cells.has(key)) this.cells.get(key).push(i); else this.cells.set(key, [i]);
      });
    }
    nearest(event) {
      const box = this.canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
      const cx = Math.floor(x / NEAR), cy = Math.floor(y / NEAR);
      let best = null, least = NEAR * NEAR;
      for (let i = cx - 1; i <= cx + 1; i++) for (let j = cy - 1; j <= cy + 1; j++) {
        for (const k of this.cells.get(i * 100003 + j) || []) {
          const p = this.points[k], d = (p.x - x) ** 2 + (p.y - y) ** 2;
          if (d < least) { least = d; best = p; }
        }
      }
      return best;
    }
    hover(event) {
      const point = this.nearest(event);
      this.canvas.style.cursor = point || (this.rowAt && this.rowAt(event) !== null) ? "pointer" : "default";
      highlight(point ? point.scan : -1);
      if (point) showTip(event, point); else hideTip();
    }
    click(event) {
      const point = this.nearest(event);
      if (point && scans[point.scan].href) window.open(scans[point.scan].href, "_blank");
      else if (!point && this.rowAt) {
        const row = this.rowAt(event);
        if (row !== null) { state.structure = row; byId("structure").value = row; one.draw(); }
      }
    }
    together(one, other) { return one === other; }
    mark(scan) {
      const context = this.overlay.getContext("2d");
      context.clearRect(0, 0, this.width, this.height);
      if (scan < 0) return;
      const own = this.points.filter((point) => this.together(point.scan, scan));
      if (this.joined && own.length) {
        context.strokeStyle = shade("rgba(16,32,43,.55)");
        context.lineWidth = 1.2;
        context.beginPath();
        own.forEach((p, i) => i ? context.lineTo(p.x, p.y) : context.moveTo(p.x, p.y));
        context.stroke();
      }
      for (const p of own) {
        context.beginPath();
        context.arc(p.x, p.y, 5, 0, 7);
        context.fillStyle = shade("#fff");
        context.fill();
        context.lineWidth = 2.5;
        context.strokeStyle = shade("#10202b");
        context.stroke();
      }
    }
  }
  const highlight = (scan) => { const shown = scan < 0 ? state.found : scan; all.mark(shown); one.mark(shown); if (visits) visits.mark(shown); };

  const tip = byId("tip");
  const hideTip = () => { tip.style.display = "none"; };
  const showTip = (event, point) => {
    const scan = scans[point.scan], structure = point.structure;
    tip.replaceChildren(element("b", scan.name));
    if (point.told) tip.append(element("div", point.told));
    else {
      const value = structure.values[point.scan], z = structure.z[point.scan];
      tip.append(element("div", `${structure.name}: ${number(value)} mm³${z === null ? "" : `, z = ${signed(z, 2)}`}`));
    }
    for (const one of DATA.columns.slice(0, 6)) {
      const entry = one.values[point.scan];
      if (entry !== null) tip.append(element("div", `${one.name}: ${one.kind === "level" ? one.levels[entry] : entry}`));
    }
    scan.flags.slice(0, 4).forEach((flag) => tip.append(element("div", `⚑ ${flag}`, "flag")));
    if (scan.flags.length > 4) tip.append(element("div", `and ${scan.flags.length - 4} more flags`, "flag"));
    tip.style.display = "block";
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.min(event.clientX + 16, innerWidth - box.width - 8)}px`;
    tip.style.top = `${Math.max(8, Math.min(event.clientY + 14, innerHeight - box.height - 8))}px`;
  };

  const dot = (context, x, y, colour, outlier, radius) => {
    context.beginPath();
    context.arc(x, y, outlier ? radius + 1 : radius, 0, 7);
    context.fillStyle = colour;
    context.fill();
    if (outlier) { context.globalAlpha = 1; context.lineWidth = 1.8; context.strokeStyle = shade("#d11d1d"); context.stroke(); }
  };
  const text = (context, content, x, y, align = "left", colour = "#5c6776", size = 12.5) => {
    context.font = `${size}px system-ui, "Segoe UI", Arial, "DejaVu Sans", sans-serif`;
    context.textAlign = align;
    context.textBaseline = "middle";
    context.fillStyle = shade(colour);
    context.fillText(content, x, y);
  };

  const drawAll = (chart) => {
    const structures = DATA.segmentations[state.segmentation].structures, row = 19, top = 24;
    const context = chart.size(top + structures.length * row + 6);
    const x = (z) => LEFT + (Math.min(Math.max(z, -EDGE), EDGE) + EDGE) / (2 * EDGE) * (chart.width - LEFT - 14);
    for (let z = -EDGE; z <= EDGE; z += 2) {
      context.fillStyle = shade(z ? "#e6eaef" : "#b9c4ce");
      context.fillRect(x(z), top - 6, 1, chart.height);
      text(context, String(z).replace("-", "−"), x(z), 9, "center", "#5c6776", 11.5);
    }
    context.fillStyle = shade("rgba(209,29,29,.045)");
    context.fillRect(LEFT, top - 6, x(-DATA.limit) - LEFT, chart.height);
    context.fillRect(x(DATA.limit), top - 6, chart.width - 14 - x(DATA.limit), chart.height);
    structures.forEach((structure, i) => {
      const y = top + (i + .5) * row, outliers = new Set(structure.outliers);
      if (i % 2) { context.fillStyle = shade("rgba(16,32,43,.022)"); context.fillRect(0, y - row / 2, chart.width, row); }
      context.fillStyle = structure.color;
      context.strokeStyle = shade("rgba(0,0,0,.25)");
      context.lineWidth = 1;
      context.fillRect(4, y - 5, 10, 10);
      context.strokeRect(4.5, y - 4.5, 9, 9);
      text(context, wide ? structure.name : structure.narrow, 22, y, "left", "#1b2330", wide ? 12.5 : 11);
      if (structure.told && scans.length > 1) text(context, structure.told, LEFT + 8, y, "left", "#5c6776", 11);
      structure.z.forEach((z, scan) => {
        if (z === null) return;
        const at = { x: x(z), y: y + jitter[scan] * row * .6, scan, structure };
        chart.points.push(at);
        context.globalAlpha = thin ? .35 : .8;
        dot(context, at.x, at.y, colours[scan], outliers.has(scan), thin ? 1.6 : 3);
      });
      context.globalAlpha = 1;
    });
    chart.rowAt = (event) => {
      const box = chart.canvas.getBoundingClientRect(), i = Math.floor((event.clientY - box.top - top) / row);
      return event.clientX - box.left < LEFT && i >= 0 && i < structures.length ? i : null;
    };
  };

  const quantile = (sorted, share) => {
    const at = (sorted.length - 1) * share, low = Math.floor(at);
    return sorted[low] + (at - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
  };
  const ticks = (low, high, wanted) => {
    const raw = (high - low) / wanted || 1, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw), found = [];
    for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) found.push(value);
    return found;
  };
  const drawOne = (chart) => {
    const structures = DATA.segmentations[state.segmentation].structures;
    const structure = structures[Math.min(state.structure, structures.length - 1)];
    const aseg = DATA.segmentations.find((one) => one.name === "aseg");
    const etiv = aseg && aseg.structures.find((one) => one.name === "eTIV");
    byId("share").disabled = !etiv;
    const share = byId("share").checked && etiv;
    const values = structure.values.map((value, i) => value === null || (share && !etiv.values[i]) ? null : share ? 100 * value / etiv.values[i] : value);
    const unit = share ? "% of eTIV" : "mm³", context = chart.size(380), bottom = 330, top = 16, left = 86, right = chart.width - 20;
    let [low, high] = range(values);
    if (low > high) return;
    const pad = (high - low || high || 1) * .06;
    low -= pad; high += pad;
    const y = (value) => bottom - (value - low) / (high - low) * (bottom - top);
    for (const tick of ticks(low, high, 6)) {
      context.fillStyle = shade("#e6eaef");
      context.fillRect(left, y(tick), right - left, 1);
      text(context, number(tick, share ? 3 : 1), left - 8, y(tick), "right");
    }
    text(context, unit, left - 8, top - 8, "right", "#5c6776", 11.5);
    const outliers = new Set(structure.outliers), chosen = column(), radius = thin ? 2 : 4;
    const put = (scan, at) => {
      const point = { x: at, y: y(values[scan]), scan, structure };
      chart.points.push(point);
      context.globalAlpha = thin ? .45 : .85;
      dot(context, point.x, point.y, colours[scan], outliers.has(scan), radius);
      context.globalAlpha = 1;
    };
    if (chosen && chosen.kind === "number") {
      const [from, to] = range(chosen.values), x = (value) => left + 18 + (value - from) / (to - from || 1) * (right - left - 36);
      for (const tick of ticks(from, to, 8)) text(context, number(tick, 2), x(tick), bottom + 18, "center");
      text(context, chosen.name, (left + right) / 2, bottom + 38, "center", "#1b2330", 13);
      values.forEach((value, scan) => { if (value !== null && chosen.values[scan] !== null) put(scan, x(chosen.values[scan])); });
    } else {
      const groups = chosen ? [...chosen.levels.map((name, level) => ({ name, level })), { name: "n/a", level: null }] : [{ name: "all", level: undefined }];
      const filled = groups.map((group) => ({ ...group, scans: scans.map((_, i) => i).filter((i) => values[i] !== null && (group.level === undefined || chosen.values[i] === group.level)) })).filter((group) => group.scans.length);
      const width = (right - left) / filled.length, spreadX = Math.min(width * .7, 360);
      filled.forEach((group, g) => {
        const centre = left + (g + .5) * width, sorted = group.scans.map((i) => values[i]).sort((a, b) => a - b);
        const [q1, q2, q3] = [.25, .5, .75].map((q) => quantile(sorted, q));
        context.fillStyle = shade("rgba(16,32,43,.06)");
        context.fillRect(centre - spreadX / 2 - 8, y(q3), spreadX + 16, Math.max(1, y(q1) - y(q3)));
        context.fillStyle = shade("rgba(16,32,43,.55)");
        context.fillRect(centre - spreadX / 2 - 8, y(q2) - 1, spreadX + 16, 2);
        swarm(group.scans, values, y, spreadX, radius).forEach(([scan, dx]) => put(scan, centre + dx));
        text(context, group.name, centre, bottom + 18, "center", "#1b2330", 13);
        text(context, `n = ${number(group.scans.length)}, median ${number(q2, share ? 3 : 0)}`, centre, bottom + 37, "center", "#5c6776", 12);
      });
    }
    const known = values.filter((value) => value !== null).sort((a, b) => a - b);
    byId("summary").textContent = `median ${number(quantile(known, .5), share ? 3 : 0)} ${unit}, middle half ${number(quantile(known, .25), share ? 3 : 0)} to ${number(quantile(known, .75), share ? 3 : 0)}, ${structure.outliers.length} outlier${structure.outliers.length === 1 ? "" : "s"}`;
  };
  // Dots of nearly the same height stand beside each other, as wide as the group is dense there.
  const swarm = (members, values, y, width, radius) => {
    const bins = new Map();
    for (const scan of members) {
      const bin = Math.round(y(values[scan]) / (2 * radius));
      if (bins.has(bin)) bins.get(bin).push(scan); else bins.set(bin, [scan]);
    }
    const most = Math.max(...[...bins.values()].map((bin) => bin.length)), step = Math.min(2.1 * radius, width / most);
    return [...bins.values()].flatMap((bin) => bin.map((scan, i) => [scan, (i - (bin.length - 1) / 2) * step]));
  };

  // Participants over their visits; a segmentation without visits leaves the chart empty.
  const timed = (people) => people.length > 0 && people.every((person) => person.years);
  const drawVisits = (chart) => {
    const shown = DATA.segmentations[state.segmentation].visits || { people: [], names: [] };
    const structure = byId("visited").value, relative = byId("relative").checked, inTime = timed(shown.people);
    const lines = shown.people.map((person) => {
      const volumes = person.volumes[structure] || [], first = volumes[0];
      const values = volumes.map((value) => value === null || (relative && !first) ? null : relative ? 100 * (value - first) / first : value);
      return { person, volumes, values, times: inTime ? person.years : person.scans.map((_, i) => i + 1) };
    });
    const context = chart.size(380), bottom = 322, top = 24, left = 86, right = chart.width - 20;
    let [low, high] = range(lines.flatMap((line) => line.values));
    byId("visits-summary").textContent = `${number(lines.length)} participant${lines.length === 1 ? "" : "s"}`;
    if (low > high) return;
    if (relative) { low = Math.min(low, -2); high = Math.max(high, 2); }
    const pad = (high - low || high || 1) * .06, [from, to] = range(lines.flatMap((line) => line.times));
    low -= pad; high += pad;
    const y = (value) => bottom - (value - low) / (high - low) * (bottom - top);
    const x = (value) => left + 18 + (value - from) / (to - from || 1) * (right - left - 36);
    for (const tick of ticks(low, high, 6)) {
      context.fillStyle = shade(relative && Math.abs(tick) < 1e-9 ? "#b9c4ce" : "#e6eaef");
      context.fillRect(left, y(tick), right - left, 1);
      text(context, `${relative && tick > 1e-9 ? "+" : ""}${number(tick, 2).replace("-", "−")}`, left - 8, y(tick), "right");
    }
    text(context, relative ? "%" : "mm³", left - 8, top - 14, "right", "#5c6776", 11.5);
    for (const tick of ticks(from, to, wide ? 8 : 4)) if (inTime || Number.isInteger(tick)) text(context, number(tick, 2), x(tick), bottom + 18, "center");
    text(context, inTime ? "years since the first visit" : "visit", (left + right) / 2, bottom + 38, "center", "#1b2330", 13);
    for (const { person, volumes, values, times } of lines) {
      const placed = values.map((value, i) => value === null ? null : { x: x(times[i]), y: y(value), scan: person.scans[i],
        told: `${structure}: ${number(volumes[i], 1)} mm³${relative ? `, ${value < 0 ? "" : "+"}${signed(value, 2)} %` : ""}` }).filter(Boolean);
      if (!placed.length) continue;
      context.globalAlpha = thin ? .35 : .75;
      context.strokeStyle = colours[placed[0].scan];
      context.lineWidth = thin ? .8 : 1.4;
      context.beginPath();
      placed.forEach((p, i) => i ? context.lineTo(p.x, p.y) : context.moveTo(p.x, p.y));
      context.stroke();
      for (const p of placed) { dot(context, p.x, p.y, colours[p.scan], false, thin ? 1.8 : 3.5); chart.points.push(p); }
      context.globalAlpha = 1;
    }
  };
  const chooseVisited = () => {
    const names = (DATA.segmentations[state.segmentation].visits || { names: [] }).names;
    fill(byId("visited"), names);
    [...byId("visited").options].forEach((option) => { option.value = option.text; });
    byId("visited").value = names.find((name) => /^Left-(Hippocampus|CA1)$/.test(name)) || names[0] || "";
  };

  const visits = byId("chart-visits") && new Chart(byId("chart-visits"), drawVisits);
  if (visits) {
    const people = scans.map((scan) => scan.name.split("_")[0]);
    visits.joined = true;
    visits.together = (first, second) => people[first] === people[second];
    for (const id of ["visited", "relative"]) byId(id).addEventListener("change", () => { visits.draw(); highlight(-1); });
  }
  const all = new Chart(byId("chart-all"), drawAll), one = new Chart(byId("chart-one"), drawOne);
  all.joined = true;
  const redraw = () => { recolour(); drawKeys(); all.draw(); one.draw(); if (visits) visits.draw(); highlight(-1); };
  const fill = (select, names, first = 0) => select.replaceChildren(...names.map((name, i) => new Option(name, i + first)));
  const chooseStructures = () => {
    const names = DATA.segmentations[state.segmentation].structures.map((structure) => structure.name);
    const start = names.findIndex((name) => /^Left-(Hippocampus|CA1)$/.test(name));
    state.structure = Math.max(start, 0);
    fill(byId("structure"), names);
    byId("structure").value = state.structure;
    if (visits) chooseVisited();
  };
  fill(byId("segmentation"), DATA.segmentations.map((segmentation) => segmentation.title));
  fill(byId("colour"), ["nothing", ...DATA.columns.map((entry) => entry.name)], -1);
  if (DATA.columns.length) { state.colour = 0; byId("colour").value = 0; }
  byId("names").replaceChildren(...scans.slice(0, 5000).map((scan) => new Option(scan.name)));
  byId("segmentation").addEventListener("change", (event) => { state.segmentation = Number(event.target.value); chooseStructures(); redraw(); });
  byId("colour").addEventListener("change", (event) => { state.colour = Number(event.target.value); redraw(); });
  byId("structure").addEventListener("change", (event) => { state.structure = Number(event.target.value); one.draw(); highlight(-1); });
  byId("share").addEventListener("change", () => { one.draw(); highlight(-1); });
  byId("find").addEventListener("input", (event) => {
    const wanted = event.target.value.trim();
    state.found = wanted ? scans.findIndex((scan) => scan.name === wanted || scan.name === `sub-${wanted}`) : -1;
    highlight(-1);
  });

  // What each T1w is marked for.
  const marks = scans.map(() => ({ outliers: [], largest: 0 }));
  for (const segmentation of DATA.segmentations) for (const structure of segmentation.structures) for (const scan of structure.outliers) {
    marks[scan].outliers.push(`${structure.name} z = ${signed(structure.z[scan], 1)}`);
    marks[scan].largest = Math.max(marks[scan].largest, Math.abs(structure.z[scan]));
  }
  const marked = scans.map((scan, i) => i).filter((i) => scans[i].flags.length || marks[i].outliers.length);
  marked.sort((a, b) => marks[b].largest - marks[a].largest || scans[b].flags.length - scans[a].flags.length);
  const link = (scan) => {
    if (!scan.href) return element("span", scan.name);
    const made = element("a", scan.name);
    made.href = scan.href;
    made.target = "_blank";
    return made;
  };
  // Ratings of --ratings, or those that this browser keeps.
  const kept = RATINGS.all();
  const ratingOf = (scan) => scan.rating ? scan : kept[`${scan.name}_T1w`] || {};
  const entries = scans.map((scan, i) => {
    const { rating = "", note = "" } = ratingOf(scan);
    const reasons = [...(note ? [`“${note}”`] : []), ...scan.flags.map((flag) => `⚑ ${flag}`), ...marks[i].outliers];
    return { name: scan.name, link: scan, cells: [scan.name, rating, scan.flags.length, marks[i].outliers.length, marks[i].largest, reasons], failed: false };
  });
  for (const [name, reason] of Object.entries(DATA.failed)) entries.push({ name, cells: [name, "", 0, 0, 0, [`failed: ${reason}`]], failed: true });
  const order = { column: 4, down: true };
  const SHOWN = 200;
  const selection = () => {
    const wanted = byId("filter").value.trim().toLowerCase(), which = byId("which").value;
    const kinds = { marked: (one) => one.cells[2] || one.cells[3], failed: (one) => one.failed, unrated: (one) => !one.cells[1] && !one.failed };
    const fits = (one) => (!which || (kinds[which] || ((entry) => entry.cells[1] === which))(one)) && (!wanted || one.cells.flat().join(" ").toLowerCase().includes(wanted));
    const value = (one) => order.column === 5 ? one.cells[5].join("; ") : one.cells[order.column];
    const compare = (x, y) => typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true });
    const sign = order.down ? -1 : 1;
    return entries.filter(fits).sort((x, y) => sign * compare(value(x), value(y)) || y.failed - x.failed || y.cells[2] - x.cells[2] || compare(x.name, y.name));
  };
  const fillTable = () => {
    const chosen = selection();
    document.querySelector("#looks tbody").replaceChildren(...chosen.slice(0, SHOWN).map((one) => {
      const row = element("tr"), first = element("td"), [, rating, flags, outliers, largest, reasons] = one.cells;
      first.append(one.link ? link(one.link) : element("span", one.name));
      row.append(first, element("td", rating), element("td", flags || "", "n"), element("td", outliers || "", "n"), element("td", largest ? largest.toFixed(1) : "", "n"),
        element("td", reasons.slice(0, 6).join("; ") + (reasons.length > 6 ? `; and ${reasons.length - 6} more` : ""), "small"));
      return row;
    }));
    byId("count").textContent = `${number(chosen.length)} of ${number(entries.length)}`;
    byId("more").textContent = chosen.length > SHOWN ? `The first ${SHOWN} are shown; a saved table has all.` : "";
    document.querySelectorAll("#looks th").forEach((head, i) => head.setAttribute("aria-sort", i === order.column ? (order.down ? "descending" : "ascending") : "none"));
  };
  document.querySelectorAll("#looks th button").forEach((button, i) => button.addEventListener("click", () => {
    order.down = order.column === i ? !order.down : i > 1 && i < 5;
    order.column = i;
    fillTable();
  }));
  byId("filter").addEventListener("input", fillTable);
  byId("which").addEventListener("change", fillTable);
  byId("save").addEventListener("click", () => {
    const plain = (text) => String(text).replace(/\s+/g, " ") || "n/a";
    const lines = selection().map((one) => one.cells.map((cell, i) => i === 4 ? (cell ? cell.toFixed(2) : "n/a") : plain(i === 5 ? cell.join("; ") : cell)).join("\t"));
    saveFile("selection.tsv", ["scan\trating\tflags\toutliers\tlargest_z\twhat", ...lines].join("\n") + "\n");
  });
  byId("save-ratings").addEventListener("click", () => RATINGS.save());
  fillTable();

  // Pictures are decoded when they come into view.
  const watcher = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (!entry.isIntersecting) return;
    watcher.unobserve(entry.target);
    const image = entry.target.querySelector("img");
    if (image) image.src = `data:image/jpeg;base64,${DATA.thumbnails[image.dataset.scan]}`;
  }), { rootMargin: "600px" });
  const isMarked = new Set(marked);
  const drawTiles = () => {
    const only = byId("marked-only").checked;
    byId("tiles").replaceChildren(...scans.map((_, i) => i).filter((i) => !only || isMarked.has(i)).map((i) => {
      const tile = element("a", undefined, isMarked.has(i) ? "marked" : "");
      if (scans[i].href) { tile.href = scans[i].href; tile.target = "_blank"; }
      if (DATA.thumbnails[i]) {
        const image = element("img");
        image.alt = "";
        image.dataset.scan = i;
        tile.append(image);
      } else tile.append(element("div", "no picture here", "none"));
      tile.append(element("span", (isMarked.has(i) ? "⚑ " : "") + scans[i].name));
      watcher.observe(tile);
      return tile;
    }));
  };
  byId("marked-only").addEventListener("change", drawTiles);
  chooseStructures();
  redraw();
  drawTiles();
  let waiting;
  dark.addEventListener("change", redraw);
  window.addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(redraw, 120); });
})();
