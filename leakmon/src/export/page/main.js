// The page: asks for the report every two seconds and draws it; what the user chose stays chosen.

import * as detail from "./detail.js";
import * as flame from "./flame.js";
import { key, remember } from "./history.js";
import * as sites from "./sites.js";
import { duration, element, fileName, number, plural } from "./text.js";
import { build } from "./tree.js";

const INTERVAL_MS = 2000;

const get = (id) => document.getElementById(id);
const state = { report: null, pid: "", chosen: "", words: "", zoom: "", hidden: new Set(), runtime: true, paused: false };

function link() {
  const query = state.pid ? `?pid=${encodeURIComponent(state.pid)}` : "";
  for (const [id, path] of [["get-pprof", "debug/pprof/task"], ["get-folded", "folded"], ["get-svg", "flamegraph.svg"], ["get-json", "api/v1/report"]]) {
    get(id).href = path + query;
  }
}

function drawProcesses(report) {
  const select = get("process");
  const options = [["", `all (${report.targets.length})`]];
  for (const target of report.targets) {
    const ended = target.exited ? ", ended" : target.status === "attached" ? "" : `, ${target.status}`;
    options.push([String(target.pid), `${fileName(target.exe)} (PID ${target.pid}${ended})`]);
  }
  const now = JSON.stringify(options);
  if (select.dataset.shown === now) return;
  select.dataset.shown = now;
  select.replaceChildren(...options.map(([value, text]) => {
    const option = element("option", "", text);
    option.value = value;
    return option;
  }));
  if (!options.some(([value]) => value === state.pid)) state.pid = "";
  select.value = state.pid;
}

function drawSummary(report, shown) {
  const live = shown.reduce((sum, site) => sum + (site.kind === "thread" ? 0 : site.live), 0);
  const leaks = shown.filter((site) => site.verdict === "leak").length;
  const suspects = shown.filter((site) => site.verdict === "suspect").length;
  const parts = [plural(live, "live task"), `${plural(shown.length, "callsite")}`];
  if (leaks) parts.push(plural(leaks, "leak"));
  if (suspects) parts.push(plural(suspects, "suspect"));
  parts.push(`watched for ${duration(report.observed_seconds)}`);
  const lost = report.loss.live_full + report.loss.stacks_full;
  if (lost) parts.push(`${number(lost)} births not followed: a table is full`);
  get("summary").textContent = parts.join(" · ");
  document.title = leaks ? `(${leaks}) leakmon` : "leakmon";
}

function drawHidden() {
  get("hidden").replaceChildren(...[...state.hidden].map((name) => {
    const button = element("button", "", `${name} ×`);
    button.title = "Show this function again";
    button.addEventListener("click", () => {
      state.hidden.delete(name);
      draw();
    });
    return button;
  }));
}

function draw() {
  const report = state.report;
  if (!report) return;
  drawProcesses(report);
  link();
  const shown = report.callsites.filter((site) => !state.pid || String(site.pid) === state.pid);
  if (!shown.some((site) => key(site) === state.chosen)) {
    // The most urgent one is shown until another is chosen.
    state.chosen = shown.length > 0 && shown[0].live > 0 ? key(shown[0]) : "";
  }
  drawSummary(report, shown);
  sites.draw(shown, state);
  detail.draw(shown.find((site) => key(site) === state.chosen));
  drawHidden();
  const root = build(report, shown, state);
  const { zoomed, found } = flame.draw(root, state);
  state.zoom = zoomed;
  get("unzoom").disabled = !zoomed;
  get("found").textContent = state.words ? `${plural(found, "live task")} under what is found` : "";
}

async function update() {
  if (!state.paused && !document.hidden) {
    try {
      const answer = await fetch("api/v1/report", { cache: "no-store" });
      if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
      const report = await answer.json();
      remember(report);
      state.report = report;
      get("trouble").hidden = true;
      draw();
    } catch (error) {
      get("trouble").hidden = false;
      get("trouble").textContent = `leakmon does not answer (${error.message}). What is shown may be old; trying again.`;
    }
  }
  setTimeout(update, INTERVAL_MS);
}

function pause() {
  state.paused = !state.paused;
  get("pause").setAttribute("aria-pressed", String(state.paused));
  get("pause").textContent = state.paused ? "Go on" : "Pause";
}

function zoom(path) {
  state.zoom = path;
  draw();
}

function search(words) {
  state.words = words.trim().toLowerCase();
  draw();
}

function listen() {
  sites.listen((name) => {
    state.chosen = name;
    draw();
  });
  flame.listen({ zoom, hide: (name) => { state.hidden.add(name); draw(); } });
  get("process").addEventListener("change", (event) => { state.pid = event.target.value; draw(); });
  get("search").addEventListener("input", (event) => search(event.target.value));
  get("runtime").addEventListener("change", (event) => { state.runtime = event.target.checked; draw(); });
  get("unzoom").addEventListener("click", () => zoom(""));
  get("pause").addEventListener("click", pause);
  get("help-button").addEventListener("click", () => get("help").showModal());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || get("help").open) return;
    const typing = event.target.matches?.("input[type=search], select");
    if (event.key === "Escape") {
      if (state.words || typing) {
        get("search").value = "";
        event.target.blur?.();
        search("");
      } else {
        zoom("");
      }
    } else if (typing) {
      return;
    } else if (event.key === "/") {
      event.preventDefault();
      get("search").focus();
    } else if (event.key === "p") {
      pause();
    } else if (event.key === "?") {
      get("help").showModal();
    }
  });
}

listen();
update();
