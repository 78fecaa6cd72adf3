"use strict";
(async () => {
  const byId = (id) => document.getElementById(id), [nx, ny, nz] = DATA.shape, volumes = {};
  // Volumes are differences of neighbouring voxels, compressed: sums of bytes, which wrap around, undo the differences.
  const unpack = async (script) => {
    const bytes = Uint8Array.from(atob(script.textContent), (letter) => letter.charCodeAt(0));
    const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const volume = new Uint8Array(await new Response(plain).arrayBuffer());
    for (let i = 1; i < volume.length; i++) volume[i] += volume[i - 1];
    return volume;
  };
  try {
    for (const script of document.querySelectorAll("script[id^=volume-]")) volumes[script.id.slice(7)] = await unpack(script);
  } catch (error) {
    byId("where").textContent = `This browser cannot read the volumes (${error.message}); those of 2023 and later can.`;
    return;
  }
  const rgb = (color) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
  const layers = DATA.layers.map((layer, i) => ({ ...layer, on: i === 0, key: i ? "h" : "a", names: [], colors: [] }));
  for (const layer of layers) for (const one of layer.structures) { layer.names[one.index] = one.name; layer.colors[one.index] = rgb(one.color); }
  const entropy = { on: false, key: "e", colors: DATA.entropy.colors.map(rgb) };
  const state = { at: [nx >> 1, ny >> 1, nz >> 1], zoom: 1, opacity: .45, only: null };
  if (layers[0]?.structures.length) {
    const start = layers[0].structures.find((one) => one.name === "Left-Hippocampus") || layers[0].structures[0];
    state.at = [...start.middle];
  }
  const index = (x, y, z) => x + nx * (y + ny * z);

  // Across, to the right (sagittal: to the back), and up in each plane.
  const PLANES = { 2: { right: 0, up: 1, flip: false }, 1: { right: 0, up: 2, flip: false }, 0: { right: 1, up: 2, flip: true } };
  const canvases = [...document.querySelectorAll("canvas")].map((canvas) => ({ canvas, axis: Number(canvas.dataset.axis), ...PLANES[canvas.dataset.axis] }));
  const side = Math.max(nx, ny, nz);
  const mix = (pixel, at, color, share) => { for (let k = 0; k < 3; k++) pixel[at + k] += share * (color[k] - pixel[at + k]); };
  const slice = ({ axis, right, up, flip }) => {
    const width = DATA.shape[right], height = DATA.shape[up], image = new ImageData(width, height), pixel = image.data;
    const [low, high] = DATA.entropy.range, at = [0, 0, 0];
    at[axis] = state.at[axis];
    for (let row = 0; row < height; row++) for (let column = 0; column < width; column++) {
      at[right] = flip ? width - 1 - column : column;
      at[up] = height - 1 - row;
      const from = index(...at), to = 4 * (row * width + column);
      pixel[to] = pixel[to + 1] = pixel[to + 2] = volumes.t1w[from];
      pixel[to + 3] = 255;
      for (const layer of layers) {
        const here = volumes[layer.name][from];
        const chosen = state.only ? state.only.layer === layer && state.only.index === here : layer.on;
        if (here && chosen) mix(pixel, to, layer.colors[here] || [255, 255, 255], state.opacity);
      }
      if (entropy.on && volumes.entropy) {
        const share = Math.min((volumes.entropy[from] * DATA.entropy.unit - low) / (high - low), 1);
        if (share > 0) mix(pixel, to, entropy.colors[Math.round(share * (entropy.colors.length - 1))], Math.min(1.6 * share, .9));
      }
    }
    return image;
  };
  // The part of a plane that is shown: a square around the crosshair, or the whole.
  const view = (plane) => {
    const extent = side / state.zoom, centre = (axis) => state.zoom > 1 ? state.at[axis] + .5 : DATA.shape[axis] / 2;
    const width = DATA.shape[plane.right];
    const middle = plane.flip ? width - centre(plane.right) : centre(plane.right);
    return { left: middle - extent / 2, top: DATA.shape[plane.up] - centre(plane.up) - extent / 2, extent };
  };
  const paper = document.createElement("canvas");
  const draw = () => {
    for (const plane of canvases) {
      const { canvas, right, up, flip } = plane, image = slice(plane), size = Math.round(canvas.clientWidth * (devicePixelRatio || 1));
      canvas.width = canvas.height = size;
      paper.width = image.width; paper.height = image.height;
      paper.getContext("2d").putImageData(image, 0, 0);
      const context = canvas.getContext("2d"), { left, top, extent } = view(plane), scale = size / extent;
      context.imageSmoothingEnabled = scale < 6;
      context.drawImage(paper, -left * scale, -top * scale, image.width * scale, image.height * scale);
      const x = ((flip ? image.width - state.at[right] : state.at[right] + 1) - .5 - left) * scale, y = (image.height - state.at[up] - .5 - top) * scale;
      context.strokeStyle = "rgba(124,196,222,.75)";
      context.beginPath();
      context.moveTo(x, 0); context.lineTo(x, size); context.moveTo(0, y); context.lineTo(size, y);
      context.stroke();
      context.font = `600 ${Math.round(size / 26)}px system-ui, sans-serif`;
      context.textBaseline = "top";
      context.lineWidth = 4;
      context.strokeStyle = "#000";
      context.fillStyle = "#ffd24a";
      for (const [letter, align, place] of [[flip ? "A" : "L", "left", 6], [flip ? "P" : "R", "right", size - 6]]) {
        context.textAlign = align;
        context.strokeText(letter, place, 6);
        context.fillText(letter, place, 6);
      }
      context.lineWidth = 1;
    }
    const from = index(...state.at), mm = state.at.map((voxel, axis) => (DATA.origin[axis] + voxel * DATA.zooms[axis]).toFixed(0));
    const named = layers.map((layer) => layer.names[volumes[layer.name][from]]).filter(Boolean);
    const bits = volumes.entropy ? `, uncertainty ${(volumes.entropy[from] * DATA.entropy.unit).toFixed(1)} bit` : "";
    byId("where").textContent = `${named.join(" · ") || "no structure"} at x = ${mm[0]}, y = ${mm[1]}, z = ${mm[2]} mm; intensity ${Math.round(volumes.t1w[from] * DATA.gray)}${bits}`;
  };
  let waiting = false;
  const redraw = () => { if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; draw(); }); } };
  const move = (axis, step) => { state.at[axis] = Math.min(Math.max(state.at[axis] + step, 0), DATA.shape[axis] - 1); redraw(); };
  const zoom = (factor) => { state.zoom = Math.min(Math.max(state.zoom * factor, 1), 16); redraw(); };
  const go = (plane, event) => {
    const box = plane.canvas.getBoundingClientRect(), { left, top, extent } = view(plane);
    const column = Math.floor(left + (event.clientX - box.left) / box.width * extent), row = Math.floor(top + (event.clientY - box.top) / box.height * extent);
    const put = (axis, value) => { state.at[axis] = Math.min(Math.max(value, 0), DATA.shape[axis] - 1); };
    put(plane.right, plane.flip ? DATA.shape[plane.right] - 1 - column : column);
    put(plane.up, DATA.shape[plane.up] - 1 - row);
    redraw();
  };

  const toggles = [...layers, ...(volumes.entropy ? [entropy] : [])];
  const toggle = (one) => { one.on = !one.on; one.box.checked = one.on; byId("scale").hidden = !entropy.on; redraw(); };
  for (const one of toggles) {
    const label = document.createElement("label"), hint = document.createElement("kbd");
    one.box = document.createElement("input");
    one.box.type = "checkbox";
    one.box.checked = one.on;
    one.box.addEventListener("change", () => toggle(one));
    hint.textContent = one.key.toUpperCase();
    label.append(one.box, one.title || "Uncertainty", hint);
    byId("layers").append(label);
  }
  const bar = document.createElement("i");
  bar.style.background = `linear-gradient(to right, ${DATA.entropy.colors.join(",")})`;
  byId("scale").append(`${DATA.entropy.range[0]} bit`, bar, `${DATA.entropy.range[1]} bit and more`);
  layers.forEach((layer, number) => {
    const group = document.createElement("optgroup");
    group.label = layer.title;
    group.append(...layer.structures.map((one) => new Option(one.name, `${number} ${one.index}`)));
    byId("only").append(group);
  });
  byId("only").addEventListener("change", (event) => {
    const [number, wanted] = event.target.value.split(" ").map(Number), layer = layers[number];
    state.only = event.target.value ? { layer, index: wanted } : null;
    if (state.only) state.at = [...layer.structures.find((one) => one.index === wanted).middle];
    redraw();
  });
  byId("opacity").addEventListener("input", (event) => { state.opacity = Number(event.target.value); redraw(); });
  byId("nearer").addEventListener("click", () => zoom(1.5));
  byId("farther").addEventListener("click", () => zoom(1 / 1.5));
  byId("whole").addEventListener("click", () => zoom(0));
  for (const plane of canvases) {
    plane.canvas.addEventListener("pointerdown", (event) => { plane.canvas.setPointerCapture(event.pointerId); go(plane, event); });
    plane.canvas.addEventListener("pointermove", (event) => { if (event.buttons) go(plane, event); });
    plane.canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (event.ctrlKey) zoom(Math.exp(-event.deltaY / 300)); else move(plane.axis, -Math.sign(event.deltaY));
    }, { passive: false });
    plane.canvas.addEventListener("keydown", (event) => {
      const across = plane.flip ? -1 : 1;
      const action = { ArrowLeft: () => move(plane.right, -across), ArrowRight: () => move(plane.right, across), ArrowUp: () => move(plane.up, 1),
        ArrowDown: () => move(plane.up, -1), PageUp: () => move(plane.axis, 1), PageDown: () => move(plane.axis, -1) }[event.key];
      if (action) { event.preventDefault(); action(); }
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select")) return;
    const layer = toggles.find((one) => one.key === event.key.toLowerCase());
    if (layer) toggle(layer);
    ({ "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: () => zoom(0) })[event.key]?.();
  });
  addEventListener("resize", redraw);
  draw();
  document.body.dataset.ready = "yes";
})();
