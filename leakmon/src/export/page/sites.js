// The table of callsites: a row each, the chosen one marked.

import { key, sparkline } from "./history.js";
import { duration, element, growth, line, number, placeName } from "./text.js";

// Rows that are shown; leaks come first, so what is left out matters least.
const ROWS_MAX = 500;

const body = document.getElementById("rows");
const empty = document.getElementById("empty");

export function matches(site, words) {
  if (!words) return true;
  const names = [site.task_type, site.location.function, site.location.file];
  for (const stack of site.stacks) for (const frame of stack.frames) names.push(frame.function);
  return names.some((name) => name?.toLowerCase().includes(words));
}

function row(site, state) {
  const made = element("tr");
  made.dataset.key = key(site);
  made.tabIndex = key(site) === state.chosen ? 0 : -1;
  made.setAttribute("aria-selected", String(key(site) === state.chosen));
  made.classList.toggle("dim", !matches(site, state.words));
  const verdict = element("td");
  const chip = element("span", `verdict ${site.verdict}`, site.verdict);
  if (site.evidence) chip.title = site.evidence;
  verdict.append(chip);
  const curve = element("td");
  curve.append(sparkline(site));
  const what = element("td");
  what.append(element("div", "code", site.task_type ?? `[${site.kind}]`));
  const place = [placeName(site.location), line(site.location)].filter(Boolean).join("  ");
  what.append(element("div", "where", `${site.kind} · spawned in ${place}`));
  made.append(
    verdict,
    element("td", "number", number(site.live)),
    curve,
    element("td", "number", growth(site.growth_per_minute)),
    element("td", "number", duration(site.oldest_seconds)),
    what,
  );
  return made;
}

export function draw(sites, state) {
  const focused = body.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  const shown = sites.slice(0, ROWS_MAX);
  body.replaceChildren(...shown.map((site) => row(site, state)));
  if (body.firstElementChild && !body.querySelector("[tabindex='0']")) body.firstElementChild.tabIndex = 0;
  if (focused) body.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  const left = sites.length - shown.length;
  empty.hidden = shown.length > 0 && left === 0;
  empty.textContent = shown.length > 0 ? `${number(left)} more callsites are not shown.` : "No task has been spawned since leakmon attached.";
}

export function listen(choose) {
  body.addEventListener("click", (event) => {
    const at = event.target.closest("tr");
    if (at) choose(at.dataset.key);
  });
  body.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1, Enter: 0, " ": 0 }[event.key];
    const at = event.target.closest("tr");
    if (step === undefined || !at) return;
    event.preventDefault();
    const next = step > 0 ? at.nextElementSibling : step < 0 ? at.previousElementSibling : at;
    if (!next) return;
    choose(next.dataset.key);
    body.querySelector(`[data-key="${CSS.escape(next.dataset.key)}"]`)?.focus();
  });
}
