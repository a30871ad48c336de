// Overlays of a slide: values of its tiles, drawn on a canvas that follows the viewer.

import { element, fetchApi } from "./common.js";
import { CLASSES, SCALE, colourOf } from "./colours.js";

const MEMBRANE = {
  cells: "cellular area", faint: "faint or stronger", moderate: "moderate or stronger", intense: "intense",
  faint_complete: "faint or stronger, complete", moderate_complete: "moderate or stronger, complete",
  intense_complete: "intense, complete",
};

// Returns every overlay of a slide as [name, what to draw]. `most` is the largest value of its scale.
export async function loadOverlays(slideId, kinds) {
  const base = `slides/${encodeURIComponent(slideId)}`;
  const overlays = [["None", null]];
  if (kinds.includes("tiles")) {
    overlays.push(["Tissue outline", { rings: await fetchApi(`${base}/outline`) }]);
    const tiles = await fetchApi(`${base}/tiles`);
    overlays.push(["DAB, optical density", heatmap(tiles, "dab", Math.max(0.3, ...tiles.dab))]);
    for (const [name, label] of Object.entries(MEMBRANE)) {
      if (tiles[name]) overlays.push([`Membrane: ${label}`, heatmap(tiles, name, 1)]);
    }
  }
  if (kinds.includes("attention")) {
    for (const head of await fetchApi(`${base}/attention`)) {
      overlays.push([`Attention: ${head.method}, ${head.task}, ${head.input}`, heatmap(head, "attention", 1)]);
    }
  }
  if (kinds.includes("patches")) {
    for (const part of await fetchApi(`${base}/patches`)) {
      overlays.push([`Patch classes: ${part.resolution} resolution`, { ...part, colours: part.class.map((k) => CLASSES[k][1]) }]);
    }
  }
  return overlays;
}

function heatmap(table, name, most) {
  return { x: table.x, y: table.y, size: table.size, colours: table[name].map((value) => colourOf(value / most)), most };
}

export function showLegend(place, name, drawn) {
  place.replaceChildren();
  if (!drawn) return;
  if (drawn.most !== undefined) {
    const bar = element("i", { class: "ramp" });
    bar.style.background = `linear-gradient(to right, ${SCALE.join(",")})`;
    place.append("0", bar, drawn.most === 1 ? "1" : drawn.most.toFixed(2), element("span", {}, name));
  } else if (drawn.colours) {
    for (const [label, fill] of CLASSES) {
      const swatch = element("i", { class: "swatch" });
      swatch.style.background = fill;
      place.append(swatch, label);
    }
    place.append(element("span", {}, name));
  } else {
    place.append(element("i", { class: "line" }), element("span", {}, "outline of the tiles with tissue"));
  }
}

// Adds a canvas over the viewer. Returns functions that change what it draws and its opacity.
export function addOverlayCanvas(viewer) {
  const canvas = element("canvas", { class: "overlay", "aria-hidden": "true" });
  viewer.canvas.append(canvas);
  const context = canvas.getContext("2d");
  let drawn = null;
  function draw() {
    const ratio = devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = viewer.canvas;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const image = viewer.world.getItemAt(0);
    if (!drawn || !image) return;
    const origin = image.imageToViewerElementCoordinates(new OpenSeadragon.Point(0, 0));
    const scale = screenScale(viewer);
    if (drawn.rings) return drawOutline(origin, scale);
    for (let k = 0; k < drawn.x.length; k++) {
      const edge = drawn.size[k] * scale;
      const x = origin.x + drawn.x[k] * scale;
      const y = origin.y + drawn.y[k] * scale;
      if (x + edge < 0 || y + edge < 0 || x > width || y > height) continue;
      context.fillStyle = drawn.colours[k];
      context.fillRect(x, y, edge, edge);
    }
  }
  function drawOutline(origin, scale) {
    context.strokeStyle = "#0057b8";
    context.lineWidth = 2;
    for (const ring of drawn.rings) {
      context.beginPath();
      for (const [x, y] of ring) context.lineTo(origin.x + x * scale, origin.y + y * scale);
      context.closePath();
      context.stroke();
    }
  }
  for (const event of ["open", "update-viewport", "resize"]) viewer.addHandler(event, draw);
  return {
    show(overlay) { drawn = overlay; draw(); },
    setOpacity(opacity) { canvas.style.opacity = opacity; },
  };
}

// Screen px per level-0 px of the slide; 0 before the slide is open.
export function screenScale(viewer) {
  const image = viewer.world.getItemAt(0);
  if (!image) return 0;
  const [left, right] = [0, 1000].map((x) => image.imageToViewerElementCoordinates(new OpenSeadragon.Point(x, 0)).x);
  return (right - left) / 1000;
}
