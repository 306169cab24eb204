// The stacks of all callsites as one tree: callers hold callees, each node as heavy as the live tasks under it.

import { fileName, isRuntime, placeName } from "./text.js";

function node(name, kind, parent) {
  return { name, kind, parent, live: 0, children: new Map(), verdict: "", path: parent ? `${parent.path}\n${kind}${name}` : "" };
}

function child(parent, name, kind) {
  const key = kind + name;
  let found = parent.children.get(key);
  if (!found) {
    found = node(name, kind, parent);
    parent.children.set(key, found);
  }
  return found;
}

function add(root, names, live, verdict) {
  let at = root;
  at.live += live;
  for (const [name, kind] of names) {
    at = child(at, name, kind);
    at.live += live;
  }
  at.verdict = verdict;
}

// `hidden`: names of functions that are left out; `runtime`: whether those of the runtime are, too.
export function build(report, sites, { hidden, runtime }) {
  const root = node("all", "root", null);
  const processes = new Map(report.targets.map((target) => [target.id, fileName(target.exe)]));
  const shown = (frame) => !(runtime && isRuntime(frame)) && !hidden.has(placeName(frame));
  for (const site of sites) {
    const process = [processes.get(site.target) ?? "[unknown]", "root"];
    const leaf = [site.task_type ?? `[${site.kind}]`, "task"];
    let left = site.live;
    for (const stack of site.stacks) {
      left -= stack.live;
      if (stack.live === 0) continue;
      const frames = stack.frames.filter(shown).reverse().map((frame) => [placeName(frame), isRuntime(frame) ? "runtime" : "own"]);
      if (!stack.complete) frames.unshift(["[truncated]", "runtime"]);
      add(root, [process, ...frames, leaf], stack.live, site.verdict);
    }
    // Live tasks whose stacks the report leaves out.
    if (left > 0) add(root, [process, [placeName(site.location), "own"], leaf], left, site.verdict);
  }
  return root;
}

// The node of this path, or the nearest one above it that is still there.
export function find(root, path) {
  let at = root;
  while (path && path !== at.path) {
    const next = [...at.children.values()].find((inner) => path === inner.path || path.startsWith(`${inner.path}\n`));
    if (!next) break;
    at = next;
  }
  return at;
}
