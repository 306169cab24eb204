// One callsite: what leakmon thinks of it and why, its numbers, its stacks.

import { duration, element, growth, isRuntime, line, number, placeName, plural } from "./text.js";

const title = document.getElementById("detail-title");
const body = document.getElementById("detail-body");

let drawn = "";

function numbers(site) {
  const list = element("dl");
  const states = site.states;
  const rows = [
    ["Spawned in", [placeName(site.location), line(site.location)].filter(Boolean).join("  ")],
    ["Tasks", `${number(site.live)} live, ${number(site.spawned)} spawned, ${number(site.ended)} ended`],
    ["Oldest", duration(site.oldest_seconds)],
    ["Growth", growth(site.growth_per_minute)],
    ["States", states && `of ${number(states.sampled)} read: ${["idle", "scheduled", "running", "unwakeable"].map((name) => `${number(states[name])} ${name}`).join(", ")}`],
    ["Kind", site.kind],
    ["Callsite", `${site.id}, PID ${site.pid}`],
  ];
  for (const [name, value] of rows) {
    if (value) list.append(element("dt", "", name), element("dd", "", value));
  }
  return list;
}

function frames(stack, location) {
  const list = element("ol", "code");
  let left = [];
  const flush = () => {
    if (left.length > 2) {
      const fold = element("details");
      fold.append(element("summary", "quiet", `${left.length} runtime frames`), ...left);
      list.append(fold);
    } else {
      list.append(...left);
    }
    left = [];
  };
  for (const frame of stack.frames) {
    const runtime = isRuntime(frame);
    const own = frame.function !== null && frame.function === location.function;
    const item = element("li", own ? "own" : runtime ? "runtime" : "", placeName(frame));
    if (line(frame)) item.append(element("span", "line", `  ${line(frame)}`));
    if (runtime) {
      left.push(item);
    } else {
      flush();
      list.append(item);
    }
  }
  flush();
  if (!stack.complete) list.append(element("li", "runtime", "the rest of the stack is not known"));
  return list;
}

// Draws the callsite, or a hint where there is none. Where nothing has changed the page stays as it is, selections too.
export function draw(site) {
  const now = JSON.stringify(site ?? null);
  if (now === drawn) return;
  drawn = now;
  if (!site) {
    title.textContent = "Choose a callsite";
    body.replaceChildren(element("p", "quiet", "Its evidence, its numbers and its stacks are shown here."));
    return;
  }
  const open = [...body.querySelectorAll("details")].map((fold) => fold.open);
  title.textContent = site.task_type ?? placeName(site.location);
  const evidence = element("p", "evidence");
  evidence.append(element("span", `verdict ${site.verdict}`, site.verdict), ` ${site.evidence ?? "leakmon can't say more yet."}`);
  const parts = [evidence, numbers(site)];
  for (const stack of site.stacks) {
    parts.push(element("h3", "", `${number(stack.live)} of ${plural(site.live, "live task")}, innermost frame first`), frames(stack, site.location));
  }
  body.replaceChildren(...parts);
  body.querySelectorAll("details").forEach((fold, index) => { fold.open = open[index] ?? false; });
}
