// Colours of overlays: a perceptually ordered scale (viridis), readable with colour-blindness and in grey, and four ordered classes.

const ANCHORS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const STEPS = 64;

export const SCALE = Array.from({ length: STEPS }, (_, k) => {
  const position = (k / (STEPS - 1)) * (ANCHORS.length - 1);
  const low = Math.min(Math.floor(position), ANCHORS.length - 2);
  const mix = ANCHORS[low].map((value, c) => Math.round(value + (ANCHORS[low + 1][c] - value) * (position - low)));
  return `rgb(${mix.join(",")})`;
});

export const CLASSES = [["0", "#4575b4"], ["1+", "#91bfdb"], ["2+", "#fdae61"], ["3+", "#d73027"]];

export function colourOf(share) {
  return SCALE[Math.max(0, Math.min(STEPS - 1, Math.round(share * (STEPS - 1))))];
}
