// What is laid over a slide: the figures of its tiles, drawn on a canvas that follows the viewer.

import { ask, made } from "./parts.js";
import { CLASSES, SCALE, colour } from "./colours.js";

const MEMBRANE = {
  cells: "cellular area", faint: "faint or stronger", moderate: "moderate or stronger", intense: "intense",
  faint_complete: "faint or stronger, complete", moderate_complete: "moderate or stronger, complete",
  intense_complete: "intense, complete",
};

// Every overlay a slide has: its name, a promise of what to draw, the largest value of its scale.
export async function overlaysOf(slideId, kinds) {
  const base = `slides/${encodeURIComponent(slideId)}`;
  const found = [["None", null]];
  if (kinds.includes("tiles")) {
    found.push(["Tissue outline", { rings: await ask(`${base}/outline`) }]);
    const tiles = await ask(`${base}/tiles`);
    found.push(["DAB, optical density", heat(tiles, "dab", Math.max(0.3, ...tiles.dab))]);
    for (const [name, words] of Object.entries(MEMBRANE)) {
      if (tiles[name]) found.push([`Membrane: ${words}`, heat(tiles, name, 1)]);
    }
  }
  if (kinds.includes("attention")) {
    for (const head of await ask(`${base}/attention`)) {
      found.push([`Attention: ${head.method}, ${head.task}, ${head.input}`, heat(head, "attention", 1)]);
    }
  }
  if (kinds.includes("patches")) {
    for (const part of await ask(`${base}/patches`)) {
      found.push([`Patch classes: ${part.resolution} resolution`, { ...part, colours: part.class.map((k) => CLASSES[k][1]) }]);
    }
  }
  return found;
}

function heat(table, name, most) {
  return { x: table.x, y: table.y, size: table.size, colours: table[name].map((one) => colour(one / most)), most };
}

export function legend(place, name, drawn) {
  place.replaceChildren();
  if (!drawn) return;
  if (drawn.most !== undefined) {
    const bar = made("i", { class: "ramp" });
    bar.style.background = `linear-gradient(to right, ${SCALE.join(",")})`;
    place.append("0", bar, drawn.most === 1 ? "1" : drawn.most.toFixed(2), made("span", {}, name));
  } else if (drawn.colours) {
    for (const [words, fill] of CLASSES) {
      const swatch = made("i", { class: "swatch" });
      swatch.style.background = fill;
      place.append(swatch, words);
    }
    place.append(made("span", {}, name));
  } else {
    place.append(made("i", { class: "line" }), made("span", {}, "rim of the tiles with tissue"));
  }
}

// A canvas over the viewer; returns how to draw on it.
export function layer(viewer) {
  const canvas = made("canvas", { class: "overlay", "aria-hidden": "true" });
  viewer.canvas.append(canvas);
  const pen = canvas.getContext("2d");
  let drawn = null;
  function draw() {
    const ratio = devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = viewer.canvas;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const image = viewer.world.getItemAt(0);
    if (!drawn || !image) return;
    const origin = image.imageToViewerElementCoordinates(new OpenSeadragon.Point(0, 0));
    const scale = scaleOf(viewer);
    if (drawn.rings) return outline(origin, scale);
    for (let k = 0; k < drawn.x.length; k++) {
      const edge = drawn.size[k] * scale;
      const x = origin.x + drawn.x[k] * scale;
      const y = origin.y + drawn.y[k] * scale;
      if (x + edge < 0 || y + edge < 0 || x > width || y > height) continue;
      pen.fillStyle = drawn.colours[k];
      pen.fillRect(x, y, edge, edge);
    }
  }
  function outline(origin, scale) {
    pen.strokeStyle = "#0057b8";
    pen.lineWidth = 2;
    for (const ring of drawn.rings) {
      pen.beginPath();
      for (const [x, y] of ring) pen.lineTo(origin.x + x * scale, origin.y + y * scale);
      pen.closePath();
      pen.stroke();
    }
  }
  for (const event of ["open", "update-viewport", "resize"]) viewer.addHandler(event, draw);
  return {
    show(what) { drawn = what; draw(); },
    opacity(share) { canvas.style.opacity = share; },
  };
}

// Screen px per level-0 px.
export function scaleOf(viewer) {
  const image = viewer.world.getItemAt(0);
  if (!image) return 0;
  const [left, right] = [0, 1000].map((x) => image.imageToViewerElementCoordinates(new OpenSeadragon.Point(x, 0)).x);
  return (right - left) / 1000;
}
