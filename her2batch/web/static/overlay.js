// Overlays of a slide: values of its tiles, drawn on a canvas that follows the viewer.

import { CellLayer } from "./cells.js";
import { element, fetchApi } from "./common.js";
import { CELL_NAMES, CLASSES, DAB_SCALE_END, HEAT, heatColour, OTHER_CELL, SHARE_SCALE_END } from "./colours.js";

const MEMBRANE = {
  cells: "cellular area", faint: "faint or stronger", moderate: "moderate or stronger", intense: "intense",
  faint_complete: "faint or stronger, complete", moderate_complete: "moderate or stronger, complete",
  intense_complete: "intense, complete",
};

// Returns every overlay of a slide as [name, what to draw]. `end` is the value at the end of its scale, as text.
export async function loadOverlays(slide) {
  const kinds = slide.overlays;
  const base = `slides/${encodeURIComponent(slide.row.slide_id)}`;
  const overlays = [["None", null]];
  if (kinds.includes("cells")) overlays.push(["Cells", { cells: new CellLayer(slide) }]);
  if (kinds.includes("tiles")) {
    overlays.push(["Tissue outline", { rings: await fetchApi(`${base}/outline`) }]);
    const tiles = await fetchApi(`${base}/tiles`);
    overlays.push(["DAB, optical density", heatmap(tiles, "dab", DAB_SCALE_END, `≥ ${DAB_SCALE_END}`)]);
    for (const [name, label] of Object.entries(MEMBRANE)) {
      if (tiles[name]) overlays.push([`Membrane: ${label}`, heatmap(tiles, name, SHARE_SCALE_END, `≥ ${100 * SHARE_SCALE_END} %`)]);
    }
  }
  if (kinds.includes("pieces")) overlays.push(["Pieces and controls", { pieces: await fetchApi(`${base}/pieces`) }]);
  if (kinds.includes("attention")) {
    for (const head of await fetchApi(`${base}/attention`)) {
      overlays.push([`Attention: ${head.method}, ${head.task}, ${head.input}`, attentionHeatmap(head)]);
    }
  }
  if (kinds.includes("patches")) {
    for (const part of await fetchApi(`${base}/patches`)) {
      overlays.push([`Patch classes: ${part.resolution} resolution`, { ...part, colours: part.class.map((k) => CLASSES[k][1]) }]);
    }
  }
  if (kinds.includes("saliency")) {
    for (const head of await fetchApi(`${base}/saliency`)) {
      overlays.push([`Saliency: ${head.method}, ${head.task}, ${head.input}`, heatmap(head, "saliency", 1, "largest of the slide")]);
    }
  }
  return overlays;
}

function heatmap(table, name, most, end) {
  return { x: table.x, y: table.y, size: table.size, colours: table[name].map((value) => heatColour(value / most)), end };
}

function attentionHeatmap(head) {
  return heatmap(head, "attention", head.scale_end / head.multiple, `≥ ${head.scale_end.toFixed(1)} × uniform attention`);
}

const ROLE_COLOURS = { tissue: "#0057b8", control: "#b5007d", excluded: "#4b5563" };

function pieceWords({ piece, role, suspected, expected, predicted, score }) {
  const words = suspected ? "may be a control" : role === "tissue" ? "patient's tissue" : role;
  const own = predicted ? `, scored ${predicted} (${score.toFixed(2)})` : "";
  return `${piece}: ${words}${expected ? `, expected ${expected}` : ""}${own}`;
}

export function showLegend(place, name, drawn) {
  place.replaceChildren();
  if (!drawn) return;
  if (drawn.cells) {
    const names = CELL_NAMES[drawn.cells.markerIsNuclear ? "nuclear" : "membrane"];
    for (const [label, fill] of [...CLASSES.map(([, colour], k) => [names[k], colour]), ["not tumour", OTHER_CELL]]) {
      const swatch = element("i", { class: "swatch" });
      swatch.style.background = fill;
      place.append(swatch, label);
    }
    place.append(element("span", {}, drawn.cells.describe()));
  } else if (drawn.end !== undefined) {
    const bar = element("i", { class: "ramp" });
    bar.style.background = `linear-gradient(to right, rgba(${HEAT.join(",")},0), rgb(${HEAT.join(",")})), #fff`;
    place.append("0", bar, drawn.end, element("span", {}, name));
  } else if (drawn.colours) {
    for (const [label, fill] of CLASSES) {
      const swatch = element("i", { class: "swatch" });
      swatch.style.background = fill;
      place.append(swatch, label);
    }
    place.append(element("span", {}, name));
  } else if (drawn.pieces) {
    place.append(element("ul", { class: "pieces" }, ...drawn.pieces.map((piece) => element("li", {}, pieceWords(piece)))));
  } else {
    place.append(element("i", { class: "line" }), element("span", {}, "outline of the tiles with tissue"));
  }
}

// Adds two canvases over the viewer, for overlays and for the ruler. Returns functions that change what they draw.
export function addOverlayCanvas(viewer, row) {
  const [canvas, rulerCanvas] = ["overlay", "ruler-lines"].map((name) => element("canvas", { class: name, "aria-hidden": "true" }));
  viewer.canvas.append(canvas, rulerCanvas);
  let drawn = null;
  let measured = null;
  function clearCanvas(own) {
    const ratio = devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = viewer.canvas;
    if (own.width !== Math.round(width * ratio) || own.height !== Math.round(height * ratio)) {
      own.width = Math.round(width * ratio);
      own.height = Math.round(height * ratio);
    }
    const context = own.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    return context;
  }
  function draw() {
    const context = clearCanvas(canvas);
    const rulerContext = clearCanvas(rulerCanvas);
    const { clientWidth: width, clientHeight: height } = viewer.canvas;
    const image = viewer.world.getItemAt(0);
    if (!image) return;
    const origin = image.imageToViewerElementCoordinates(new OpenSeadragon.Point(0, 0));
    const scale = levelScale(viewer, row);
    if (measured) drawRuler(rulerContext, origin, scale);
    if (!drawn) return;
    if (drawn.cells) return drawn.cells.draw(context, origin, scale, width, height);
    if (drawn.rings) return drawOutline(context, origin, scale, drawn.rings, "#0057b8");
    if (drawn.pieces) return drawPieces(context, origin, scale);
    for (let k = 0; k < drawn.x.length; k++) {
      const edge = drawn.size[k] * scale;
      const x = origin.x + drawn.x[k] * scale;
      const y = origin.y + drawn.y[k] * scale;
      if (x + edge < 0 || y + edge < 0 || x > width || y > height) continue;
      context.fillStyle = drawn.colours[k];
      context.fillRect(x, y, edge, edge);
    }
  }
  function drawPieces(context, origin, scale) {
    context.font = "600 14px system-ui, sans-serif";
    for (const piece of drawn.pieces) {
      const colour = ROLE_COLOURS[piece.suspected ? "control" : piece.role];
      context.setLineDash(piece.suspected ? [8, 4] : []);
      drawOutline(context, origin, scale, piece.rings, colour);
      context.setLineDash([]);
      const at = [origin.x + piece.x * scale, Math.max(14, origin.y + piece.y * scale - 6)];
      context.strokeStyle = "#fff";
      context.lineWidth = 4;
      context.fillStyle = colour;
      context.strokeText(pieceWords(piece), ...at);
      context.fillText(pieceWords(piece), ...at);
    }
  }
  function drawOutline(context, origin, scale, rings, colour) {
    context.strokeStyle = colour;
    context.lineWidth = 2;
    for (const ring of rings) {
      context.beginPath();
      for (const [x, y] of ring) context.lineTo(origin.x + x * scale, origin.y + y * scale);
      context.closePath();
      context.stroke();
    }
  }
  function drawRuler(context, origin, scale) {
    const [from, to] = [measured.start, measured.end].map(({ x, y }) => [origin.x + x * scale, origin.y + y * scale]);
    for (const [colour, width] of [["#fff", 6], ["#111", 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.beginPath();
      context.moveTo(...from);
      context.lineTo(...to);
      context.stroke();
    }
    context.font = "600 14px system-ui, sans-serif";
    context.lineWidth = 4;
    context.strokeStyle = "#fff";
    context.fillStyle = "#111";
    context.strokeText(measured.text, to[0] + 8, to[1] - 8);
    context.fillText(measured.text, to[0] + 8, to[1] - 8);
  }
  for (const event of ["open", "update-viewport", "resize"]) viewer.addHandler(event, draw);
  return {
    show(overlay) { drawn = overlay; draw(); },
    setOpacity(opacity) { canvas.style.opacity = opacity; },
    measure(line) { measured = line; draw(); },
  };
}

// Screen px per level-0 px of the slide; 0 before the slide is open. The image may be a thumbnail, which has fewer px.
export function levelScale(viewer, row) {
  const image = viewer.world.getItemAt(0);
  if (!image) return 0;
  const [left, right] = [0, 1000].map((x) => image.imageToViewerElementCoordinates(new OpenSeadragon.Point(x, 0)).x);
  return ((right - left) / 1000) * (image.getContentSize().x / row.width);
}
