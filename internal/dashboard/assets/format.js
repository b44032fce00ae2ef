// Formats of texts, and helpers for the parts of the page. Data from the server is
// set as text, never as markup.

export const $ = (id) => document.getElementById(id);
export const number = new Intl.NumberFormat("en");
export const sandbox = document.body.hasAttribute("data-sandbox");

// url returns the URL for a request of the page. If the URL of the page has a key,
// every request needs the key.
export function url(name) {
  const u = new URL(name, import.meta.url);
  const key = new URLSearchParams(location.search).get("key");
  if (key) u.searchParams.set("key", key);
  return u.href;
}

export function duration(ms) {
  const s = Math.max(0, Math.floor(ms / 1000));
  const two = (n) => String(n).padStart(2, "0");
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${two(s % 60)} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${two(Math.floor(s / 60) % 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s / 3600) % 24} h`;
}

// about is a duration without false precision, for estimates.
export function about(ms) {
  const min = Math.round(ms / 60_000);
  if (min < 1) return "less than a minute";
  if (min < 120) return `about ${min} min`;
  return `about ${Math.round(min / 60)} h`;
}

export function size(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  if (bytes < 1e6) return `${(bytes / 1e3).toFixed(1)} kB`;
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

// dollars shows a small amount with two significant digits.
export function dollars(usd) {
  const n = Math.abs(usd);
  const places = n >= 1 || n === 0 ? 2 : n >= 0.001 ? 4 : Math.min(1 - Math.floor(Math.log10(n)), 10);
  return `${usd < 0 ? "−" : ""}$${n.toFixed(places)}`;
}

export const count = (n, noun) => `${number.format(n)} ${noun}${n === 1 ? "" : noun.endsWith("ch") ? "es" : "s"}`;

const clock = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });
export const time = (ms) => clock.format(ms);

export const words = (status) => (status || "submitted").replaceAll("_", " ");

const TONES = { completed: "good", failed: "bad", expired: "bad", "not submitted": "bad", "given up": "bad", cancelled: "warn", cancelling: "warn" };
export const tone = (status) => TONES[status] || "busy";

export const done = (b) => b.completed + b.failed;
// isFlex says that a batch is a call at the flex tier, which runs in the background.
export const isFlex = (b) => b.window === "flex";
export const name = (b) => b.id || `not created (${b.seq})`;

// end says when a batch ended, or will probably end, and what the estimate is based
// on.
export function end(b, now) {
  if (b.finished) return [`${duration(now - b.ended)} ago`, ""];
  if (!b.estimate) return ["no estimate yet", ""];
  return [b.estimate > now ? `in ${about(b.estimate - now)}` : "any moment now", `estimate, ${b.basis}`];
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// element makes an element from texts and elements.
export function element(tag, attributes, ...children) {
  const e = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) e.setAttribute(key, value);
  e.append(...children);
  return e;
}

// setRows shows items as rows, which make makes. Unchanged items keep their rows, so
// that the position of a screen reader does not change.
const shownItems = new WeakMap();
export function setRows(parent, items, make) {
  const key = JSON.stringify(items);
  if (shownItems.get(parent) === key) return;
  shownItems.set(parent, key);
  parent.replaceChildren(...items.map(make));
}

// setBar shows the lines that are done, and among these the errors.
export function setBar(bar, b) {
  const total = Math.max(b.total, done(b), 1);
  const [ok, errors] = bar.children;
  ok.style.width = `${(100 * b.completed) / total}%`;
  errors.style.width = b.failed ? `max(3px, ${(100 * b.failed) / total}%)` : "0";
  bar.dataset.tone = tone(b.status);
  bar.setAttribute("aria-valuemax", total);
  bar.setAttribute("aria-valuenow", done(b));
  bar.setAttribute("aria-valuetext", counts(b) + (b.failed ? `, ${count(b.failed, "error")}` : ""));
  bar.setAttribute("aria-label", `Progress of ${name(b)}`);
}

export const counts = (b) => `${number.format(done(b))} of ${number.format(b.total)} done`;

// fillReasons shows why calls failed.
export function fillReasons(table, reasons) {
  table.hidden = !reasons.length;
  setRows(table.tBodies[0], reasons, (r) =>
    element("tr", {},
      element("td", { class: "number" }, number.format(r.calls)),
      element("td", {}, r.status ? String(r.status) : "–"),
      element("td", {}, element("code", {}, r.code || "no code")),
      element("td", {}, r.fromLine ? "error answer" : r.refused ? "refused at once" : "no answer"),
    ),
  );
}

// copyButton makes a button that copies a text; null without a clipboard: browsers
// have none for plain HTTP from another machine.
export function copyButton(text, what) {
  if (!navigator.clipboard) return null;
  const button = element("button", { type: "button", class: "copy", "aria-label": `Copy ${what}` }, "Copy");
  button.addEventListener("click", () => copy(button, text));
  return button;
}

export async function copy(button, text) {
  try {
    await navigator.clipboard.writeText(text);
    setText(button, "Copied");
  } catch {
    setText(button, "Select the text instead");
  }
  setTimeout(() => setText(button, "Copy"), 2000);
}

// Rows holds the rows of one table. Rows are updated in place, so that the focus,
// the selection and the position of a screen reader do not change.
export class Rows {
  constructor(template, body) {
    this.template = $(template).content.firstElementChild;
    this.body = body;
    this.rows = new Map();
  }

  make() {
    const row = this.template.cloneNode(true);
    const fields = {};
    for (const f of row.querySelectorAll("[data-field]")) fields[f.dataset.field] = f;
    return { row, fields };
  }

  // update shows the items in the given order. key returns the key of an item, and
  // fill writes an item to the fields of a row. A repeated key gets a suffix.
  update(items, key, fill) {
    const removed = new Set(this.rows.keys());
    const seen = new Set();
    let previous = null;
    for (const item of items) {
      let id = key(item);
      while (seen.has(id)) id += "+";
      seen.add(id);
      removed.delete(id);
      let entry = this.rows.get(id);
      if (!entry) this.rows.set(id, (entry = this.make()));
      entry.item = item;
      fill(entry.fields, item);
      const next = previous ? previous.nextElementSibling : this.body.firstElementChild;
      if (next !== entry.row) this.body.insertBefore(entry.row, next);
      previous = entry.row;
    }
    for (const id of removed) {
      this.rows.get(id).row.remove();
      this.rows.delete(id);
    }
  }

  each(f) {
    for (const { fields, item } of this.rows.values()) f(fields, item);
  }
}
