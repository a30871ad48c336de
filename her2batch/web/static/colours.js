// Colours that the page shares with the report: heatmaps (one colour, transparent at zero, stronger for more) and classes.
// tests/web/test_colours.py compares them with those of the report.

export const HEAT = [160, 0, 110];
export const SHARE_SCALE_END = 0.5; // share of the cellular area
export const DAB_SCALE_END = 1; // optical density

export const CLASSES = [["0", "#8fa8bd"], ["1+", "#e6c79c"], ["2+", "#c47f3c"], ["3+", "#6a3411"]];

const CLASS_NAMES = { 0: "c0", null: "cn", ultralow: "c0", "1+": "c1", "2+": "c2", "3+": "c3", low: "c1", high: "c3", negative: "c0", positive: "c3" };

export const OTHER_CELL = "#6f6f6f"; // a cell that is not of the tumour

// Share of tumour cells, %, at which a class begins: of intense, complete membranes for 3+, of positive nuclei for ER and PR.
export const MARKS = { er: 1, pr: 1, ki67: null };

export const NUCLEAR_STAINS = Object.keys(MARKS);

// What the categories of a cell mean, by where its staining lies.
export const CELL_NAMES = {
  membrane: ["no membrane staining", "faint or incomplete", "weak to moderate, complete", "intense, complete"],
  nuclear: ["negative", "weak", "moderate", "strong"],
};

export function hasColour(name) {
  return name in CLASS_NAMES;
}

// Name of the CSS variable with the colour of a class.
export function classVariable(name) {
  return CLASS_NAMES[name] ?? "cx";
}

export function heatColour(level) {
  return `rgba(${HEAT.join(",")},${Math.max(0, Math.min(1, level)).toFixed(3)})`;
}
