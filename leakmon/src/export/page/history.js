// How the live counts moved while the page was open.

// Points that are kept of a callsite: four minutes at one every two seconds.
const POINTS_MAX = 120;
// Callsites whose history is kept.
const SITES_MAX = 2000;

const SVG = "http://www.w3.org/2000/svg";
const points = new Map();

export const key = (site) => `${site.target}/${site.id}`;

export function remember(report) {
  const seen = new Set();
  for (const site of report.callsites) {
    const name = key(site);
    seen.add(name);
    if (!points.has(name) && points.size >= SITES_MAX) continue;
    const counts = points.get(name) ?? [];
    counts.push(site.live);
    if (counts.length > POINTS_MAX) counts.shift();
    points.set(name, counts);
  }
  for (const name of points.keys()) if (!seen.has(name)) points.delete(name);
}

// A small curve of a callsite's live count, from 0 to its highest.
export function sparkline(site) {
  const counts = points.get(key(site)) ?? [site.live];
  const highest = Math.max(1, ...counts);
  const step = 100 / Math.max(1, counts.length - 1);
  const curve = counts.map((live, index) => `${(index * step).toFixed(1)},${(22 - (live / highest) * 20).toFixed(1)}`);
  if (curve.length === 1) curve.push(`100,${curve[0].split(",")[1]}`);
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", `spark ${site.verdict}`);
  svg.setAttribute("viewBox", "0 0 100 24");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `live count, from ${counts[0]} to ${site.live}`);
  for (const [shape, ends] of [["polygon", ["0,24", "100,24"]], ["polyline", null]]) {
    const drawn = document.createElementNS(SVG, shape);
    drawn.setAttribute("points", (ends ? [ends[0], ...curve, ends[1]] : curve).join(" "));
    svg.append(drawn);
  }
  return svg;
}
