// Cells of a slide: points from afar, circles nearer, outlines of nuclei from 20 times magnification on. Only those in view
// are loaded, and no more than a screen can show. A click shows the figures of a cell.

import { element, fetchApi } from "./common.js";
import { CELL_NAMES, CLASSES, MARKS, NUCLEAR_STAINS, OTHER_CELL } from "./colours.js";

const RIM = 0.25; // of the view, which is loaded beside it
const CIRCLE_PX = 3; // radius on the screen from which a cell is a circle
const OUTLINE_PX_PER_UM = 2; // 20 times magnification
const WAIT_MS = 120;
const TUMOUR = 0.5;

export class CellLayer {
  constructor(slide) {
    this.row = slide.row;
    // a slide that can't be scored has cells, but none has a category
    this.scored = slide.predictions.every((one) => one.bundle !== "cells" || one.predicted !== null);
    this.markerIsNuclear = NUCLEAR_STAINS.includes(slide.row.stain);
    this.base = `slides/${encodeURIComponent(slide.row.slide_id)}/cells`;
    this.cells = null; // columns of the last answer, with the box that it is for
    this.outlines = new Map(); // cell → flat list of x, y
    this.chosen = null; // cell whose figures are shown
    this.changed = () => {};
    this.asked = 0;
  }

  // Draws what is loaded, and loads what the view lacks. scale: screen px per level-0 px.
  draw(context, origin, scale, width, height) {
    const view = { x: -origin.x / scale, y: -origin.y / scale, width: width / scale, height: height / scale };
    if (!this.covers(view, scale)) this.loadSoon(view, scale);
    if (!this.cells) return;
    const { x, y, radius_um: radii, category, tumour, cell } = this.cells;
    for (let k = 0; k < x.length; k++) {
      const [px, py, radius] = [origin.x + x[k] * scale, origin.y + y[k] * scale, (radii[k] / this.row.mpp) * scale];
      if (px + radius < 0 || py + radius < 0 || px - radius > width || py - radius > height) continue;
      this.drawCell(context, px, py, radius, this.scored && tumour[k] >= TUMOUR ? CLASSES[category[k]][1] : OTHER_CELL, cell[k], origin, scale);
    }
  }

  drawCell(context, px, py, radius, colour, cell, origin, scale) {
    if (radius < CIRCLE_PX) {
      const edge = Math.max(2, 2 * radius);
      context.fillStyle = colour;
      context.fillRect(px - edge / 2, py - edge / 2, edge, edge);
      return;
    }
    const outline = this.outlines.get(cell);
    const path = new Path2D();
    if (outline) {
      for (let k = 0; k < outline.length; k += 2) path.lineTo(origin.x + outline[k] * scale, origin.y + outline[k + 1] * scale);
      path.closePath();
    } else {
      path.arc(px, py, radius, 0, 2 * Math.PI);
    }
    for (const [stroke, line] of [["#fff", cell === this.chosen ? 6 : 3.5], [colour, cell === this.chosen ? 4 : 2]]) {
      context.strokeStyle = stroke;
      context.lineWidth = line;
      context.stroke(path);
    }
  }

  covers(view, scale) {
    const box = this.cells?.box;
    if (!box) return false;
    const inside = view.x >= box.x && view.y >= box.y && view.x + view.width <= box.x + box.width && view.y + view.height <= box.y + box.height;
    const finer = this.cells.one_of > 1 && view.width * view.height < (box.width * box.height) / 4;
    return inside && !finer && (this.cells.outlined || !this.showsOutlines(scale));
  }

  showsOutlines(scale) {
    return scale / this.row.mpp >= OUTLINE_PX_PER_UM;
  }

  loadSoon(view, scale) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.load(view, scale), WAIT_MS);
  }

  async load(view, scale) {
    const own = ++this.asked;
    const box = {
      x: Math.floor(view.x - RIM * view.width), y: Math.floor(view.y - RIM * view.height),
      width: Math.ceil((1 + 2 * RIM) * view.width), height: Math.ceil((1 + 2 * RIM) * view.height),
    };
    try {
      const cells = await fetchApi(`${this.base}?${new URLSearchParams(box)}`);
      if (own !== this.asked) return;
      const outlined = this.showsOutlines(scale);
      this.cells = { ...cells, box, outlined };
      this.changed();
      if (!outlined) return;
      const drawn = await fetchApi(`${this.base}/outlines?${new URLSearchParams(box)}`);
      if (own !== this.asked) return;
      this.outlines = new Map(drawn.cell.map((cell, k) => [cell, drawn.outline[k]]));
      this.changed();
    } catch (error) {
      if (own === this.asked) this.failed?.(error);
    }
  }

  // The cell at a place, level-0 px; null where there is none.
  at(place) {
    if (!this.cells) return null;
    let [best, least] = [null, Infinity];
    const { x, y, radius_um: radii, cell } = this.cells;
    for (let k = 0; k < x.length; k++) {
      const distance = Math.hypot(x[k] - place.x, y[k] - place.y) / (radii[k] / this.row.mpp + 2 / this.row.mpp);
      if (distance < Math.min(1, least)) [best, least] = [cell[k], distance];
    }
    return best;
  }

  async showFigures(place, panel) {
    const cell = this.at(place);
    this.chosen = cell;
    this.changed();
    panel.hidden = cell === null;
    if (cell === null) return;
    const found = await fetchApi(`${this.base}/${cell}`);
    if (this.chosen === cell) panel.replaceChildren(...figures(found, this.markerIsNuclear, this.scored));
  }

  describe() {
    const { one_of: oneOf, cells } = this.cells ?? { one_of: 1, cells: 0 };
    return oneOf > 1 ? `1 of ${oneOf} of ${cells.toLocaleString("en")} cells in view` : "";
  }
}

function figures(cell, nuclear, scored) {
  const percent = (share) => `${Math.round(100 * share)} %`;
  const density = (od) => od.toFixed(2);
  const rows = {
    Category: scored ? `${CLASSES[cell.category][0]}: ${CELL_NAMES[nuclear ? "nuclear" : "membrane"][cell.category]}`
      : "none, the slide cannot be scored",
    "Tumour cell": percent(cell.tumour), "Nucleus, µm²": cell.area.toFixed(0), "Long over short axis": cell.elongation.toFixed(2),
    "Membrane: faint or stronger": percent(cell.faint), "Membrane: moderate or stronger": percent(cell.moderate),
    "Membrane: intense": percent(cell.intense), "DAB of the membrane, OD": density(cell.membrane_dab),
    "DAB of the nucleus, OD": density(cell.nuclear_dab), "DAB of the cytoplasm, OD": density(cell.cytoplasm_dab),
    "Haematoxylin of the nucleus, OD": density(cell.haematoxylin),
  };
  return [
    element("h3", {}, `Cell ${cell.cell}`),
    element("dl", {}, ...Object.entries(rows).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])),
  ];
}

// The shares of tumour cells by category, as a bar with a mark where a class begins, and as text.
export function showPercentages(place, prediction, stain) {
  place.parentElement.hidden = !prediction?.percent || prediction.predicted === null;
  if (place.parentElement.hidden) return;
  const nuclear = NUCLEAR_STAINS.includes(stain);
  const names = CELL_NAMES[nuclear ? "nuclear" : "membrane"];
  const at = nuclear ? MARKS[stain] : 10;
  const mark = at === null ? null : element("b", {}, `${at} %`);
  if (mark) mark.style.left = `${at}%`;
  const bar = element("div", { class: "percent-bar", "aria-hidden": "true" }, ...[3, 2, 1, 0].map((k) => {
    const part = element("i", {});
    part.style.width = `${prediction.percent[k]}%`;
    part.style.background = CLASSES[k][1];
    return part;
  }), ...(mark ? [mark] : []));
  const rows = [3, 2, 1, 0].map((k) => {
    const swatch = element("i", { class: "swatch" });
    swatch.style.background = CLASSES[k][1];
    return element("tr", {}, element("th", { scope: "row" }, swatch, `${nuclear ? "" : `${CLASSES[k][0]} `}${names[k]}`),
      element("td", {}, `${prediction.percent[k].toFixed(1)} %`));
  });
  place.replaceChildren(bar, element("table", { class: "small" }, element("tbody", {}, ...rows)),
    element("p", {}, `Shares of ${prediction.n_tumour.toLocaleString("en")} tumour cells of ${prediction.n_cells.toLocaleString("en")} cells.`
      + (nuclear ? ` H-score ${prediction.h_score.toFixed(0)}.` : "")));
}
