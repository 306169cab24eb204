// Words and numbers as the page shows them. All text of the page is set as text, never as markup: names come from the
// programs that are watched, and anybody may have written those.

// An element of this tag with a class and a text.
export function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

const count = new Intl.NumberFormat("en");

export const number = (value) => count.format(value);

export const plural = (value, word) => `${number(value)} ${word}${value === 1 ? "" : "s"}`;

// An age or a span of time, in at most two units.
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = units.findIndex(([size]) => seconds >= size);
  const [size, name] = units[first];
  const whole = Math.floor(seconds / size);
  const next = units[first + 1];
  const rest = next && Math.floor((seconds % size) / next[0]);
  return rest ? `${whole} ${name} ${rest} ${next[1]}` : `${whole} ${name}`;
}

export function growth(perMinute) {
  if (perMinute === null) return "–";
  const rounded = Math.abs(perMinute) < 10 ? Math.round(perMinute * 10) / 10 : Math.round(perMinute);
  return `${rounded > 0 ? "+" : ""}${number(rounded)}/min`;
}

export const fileName = (path) => path.split("/").pop() || path;

// What a frame or a location is called.
export function placeName(place) {
  if (place.function !== null) return place.function;
  if (place.offset === null || place.offset === undefined) return "[unknown]";
  const offset = `0x${place.offset.toString(16)}`;
  return place.image ? `${place.image}+${offset}` : offset;
}

export function line(place) {
  if (!place.file) return "";
  return place.line ? `${place.file}:${place.line}` : place.file;
}

// Whether a frame is of the runtime, the standard library or the system, and so seldom of interest.
const RUNTIME = /^<?(dyn |&|\(?)*(tokio|tokio_util|futures[a-z_]*|std|core|alloc|tracing)::/;
export function isRuntime(frame) {
  const name = frame.function;
  if (name === null) return true;
  if (RUNTIME.test(name) || name.includes(" as core::") || name.includes(" as std::")) return true;
  return ["_start", "main", "__libc_start_main", "start_thread", "clone3", "__rust_try"].includes(name) || /libc/.test(frame.image ?? "");
}
