// The flame graph: the tree of stacks as boxes, callers above callees. A click zooms, a search marks.

import { element, number, plural } from "./text.js";
import { find } from "./tree.js";

const ROW_PIXELS = 22;
// Boxes that are drawn; those left out are narrower than a line.
const BOXES_MAX = 3000;
// Part of the width below which a box can't be seen.
const PART_MIN = 0.0007;

const graph = document.getElementById("graph");
const hover = document.getElementById("hover");
const boxes = new Map();
let nodes = new Map();

// The hue of a name's crate, between red and yellow-green, so that one crate has one colour.
function hue(name) {
  let hash = 7;
  for (const letter of name.split("::")[0]) hash = (hash * 31 + letter.codePointAt(0)) >>> 0;
  return 8 + (hash % 70);
}

function describe(at, root) {
  const part = root.live > 0 ? ((100 * at.live) / root.live).toFixed(1) : "0";
  return `${at.name} · ${plural(at.live, "live task")}, ${part} %`;
}

// Boxes to draw: the zoomed node with those above it at full width, and what is below it by its part.
function layout(root, zoomed) {
  const placed = [];
  const above = [];
  for (let at = zoomed.parent; at; at = at.parent) above.unshift(at);
  for (const at of above) placed.push({ at, left: 0, width: 1, depth: placed.length, above: true });
  let row = [{ at: zoomed, left: 0, width: 1 }];
  for (let depth = placed.length; row.length > 0 && placed.length < BOXES_MAX; depth += 1) {
    const next = [];
    for (const { at, left, width } of row) {
      placed.push({ at, left, width, depth, above: false });
      let from = left;
      const inner = [...at.children.values()].sort((a, b) => b.live - a.live || (a.name < b.name ? -1 : 1));
      for (const below of inner) {
        const part = at.live > 0 ? (width * below.live) / at.live : 0;
        if (part >= PART_MIN) next.push({ at: below, left: from, width: part });
        from += part;
      }
    }
    row = next;
  }
  return placed.slice(0, BOXES_MAX);
}

// Counts what a search finds; a match inside a match is the same tasks again.
function count(at, words) {
  if (at.name.toLowerCase().includes(words)) return at.live;
  let sum = 0;
  for (const below of at.children.values()) sum += count(below, words);
  return sum;
}

export function draw(root, state) {
  const zoomed = find(root, state.zoom);
  const placed = layout(root, zoomed);
  nodes = new Map(placed.map((box) => [box.at.path, box]));
  for (const [path, box] of boxes) {
    if (!nodes.has(path)) {
      box.remove();
      boxes.delete(path);
    }
  }
  for (const { at, left, width, depth, above } of placed) {
    let box = boxes.get(at.path);
    if (!box) {
      box = element("div");
      box.dataset.path = at.path;
      box.setAttribute("role", "treeitem");
      box.tabIndex = -1;
      box.style.setProperty("--hue", hue(at.name));
      boxes.set(at.path, box);
      graph.append(box);
    }
    const marked = state.words && at.name.toLowerCase().includes(state.words);
    box.className = ["frame", at.kind, at.verdict, above ? "above" : "", marked ? "match" : ""].join(" ");
    box.textContent = width > 0.02 ? `${at.name} (${number(at.live)})` : "";
    box.title = describe(at, root);
    box.setAttribute("aria-label", box.title);
    box.setAttribute("aria-level", String(depth + 1));
    box.style.left = `${left * 100}%`;
    box.style.width = `${width * 100}%`;
    box.style.top = `${depth * ROW_PIXELS}px`;
  }
  const first = boxes.get(zoomed.path);
  if (first && !graph.querySelector("[tabindex='0']")) first.tabIndex = 0;
  graph.classList.toggle("searching", Boolean(state.words));
  const depths = placed.map((box) => box.depth);
  graph.style.height = `${(Math.max(...depths) + 1) * ROW_PIXELS}px`;
  return { zoomed: zoomed.path, found: state.words ? count(root, state.words) : 0 };
}

// The box above, below or beside, by an arrow key.
function neighbour(path, key) {
  const box = nodes.get(path);
  if (!box) return null;
  if (key === "ArrowUp") return box.at.parent?.path ?? null;
  const inRow = (depth) => [...nodes.values()].filter((other) => other.depth === depth).sort((a, b) => a.left - b.left);
  if (key === "ArrowDown") return inRow(box.depth + 1).find((other) => other.at.parent === box.at)?.at.path ?? null;
  const row = inRow(box.depth);
  return row[row.indexOf(box) + (key === "ArrowRight" ? 1 : -1)]?.at.path ?? null;
}

function focus(path) {
  const box = boxes.get(path);
  if (!box) return;
  graph.querySelectorAll("[tabindex='0']").forEach((other) => { other.tabIndex = -1; });
  box.tabIndex = 0;
  box.focus();
}

export function listen({ zoom, hide }) {
  const pathOf = (event) => event.target.closest(".frame")?.dataset.path;
  graph.addEventListener("click", (event) => {
    const path = pathOf(event);
    if (path === undefined) return;
    focus(path);
    zoom(path);
  });
  const tell = (event) => { hover.textContent = event.target.closest(".frame")?.title ?? "\u00a0"; };
  graph.addEventListener("mouseover", tell);
  graph.addEventListener("focusin", tell);
  graph.addEventListener("keydown", (event) => {
    const path = pathOf(event);
    if (path === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key.startsWith("Arrow")) {
      event.preventDefault();
      focus(neighbour(path, event.key));
    } else if (event.key === "Enter") {
      zoom(path);
    } else if (event.key === "h" && nodes.get(path)?.at.kind !== "root") {
      hide(nodes.get(path).at.name);
    }
  });
}
