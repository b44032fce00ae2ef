// The page: it listens to what the server says and shows it. Whatever comes
// from outside is set as text, never as markup.

const STALE_AFTER = 30_000; // ms without a word; the server speaks every 10 s
const RETRY_AFTER = 3_000; // ms, where the browser has given up
const SUMMARY_EVERY = 10_000; // ms between two announcements

const $ = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");

// url is where one of the page's own requests goes. A key in the page's URL
// belongs in each of them.
function url(name) {
  const u = new URL(name, import.meta.url);
  const key = new URLSearchParams(location.search).get("key");
  if (key) u.searchParams.set("key", key);
  return u.href;
}

let state = null; // the last snapshot
let history = null; // the last one, for a chart that comes later
let skew = 0; // the server's clock less ours, in ms
let chart = null; // { update, show }, once its script has come

const serverNow = () => Date.now() + skew;

// ---- Words and figures.

function duration(ms) {
  const s = Math.max(0, Math.floor(ms / 1000));
  const two = (n) => String(n).padStart(2, "0");
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${two(s % 60)} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${two(Math.floor(s / 60) % 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s / 3600) % 24} h`;
}

function size(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  if (bytes < 1e6) return `${(bytes / 1e3).toFixed(1)} kB`;
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

const count = (n, noun) => `${number.format(n)} ${noun}${n === 1 ? "" : noun.endsWith("ch") ? "es" : "s"}`;

const EVENTS = {
  batch_submitted: "Submitted",
  batch_submission_failed: "Could not be submitted",
  batch_progress: "Progress",
  batch_completed: "Completed",
  batch_terminal: "Ended",
  batch_cancel_requested: "Cancellation requested",
  batch_cancelled_upstream: "Cancellation accepted",
  batch_cancel_failed: "Cancellation failed",
};

const TONES = {
  completed: "good",
  failed: "bad",
  expired: "bad",
  "not submitted": "bad",
  "given up": "bad",
  cancelled: "warn",
  cancelling: "warn",
};

const words = (status) => (status || "submitted").replaceAll("_", " ");

// ---- Tables.

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// A Rows keeps the rows of one table: one for each item, made once and changed
// in place, so that a focus, a selection or a screen reader's place is kept.
class Rows {
  constructor(template) {
    this.template = $(template).content.firstElementChild;
    this.rows = new Map();
  }

  make() {
    const row = this.template.cloneNode(true);
    const fields = {};
    for (const f of row.querySelectorAll("[data-field]")) fields[f.dataset.field] = f;
    return { row, fields };
  }

  // update shows the items in the order given. place says in which tbody one
  // belongs, and fill writes it into its row.
  update(items, name, place, fill) {
    const gone = new Set(this.rows.keys());
    const seen = new Set();
    const last = new Map();
    for (const item of items) {
      let key = name(item);
      while (seen.has(key)) key += "+";
      seen.add(key);
      gone.delete(key);
      let entry = this.rows.get(key);
      if (!entry) this.rows.set(key, (entry = this.make()));
      entry.item = item;
      fill(entry.fields, item);
      const body = place(item);
      const previous = last.get(body);
      const next = previous ? previous.nextElementSibling : body.firstElementChild;
      if (next !== entry.row) body.insertBefore(entry.row, next);
      last.set(body, entry.row);
    }
    for (const key of gone) {
      this.rows.get(key).row.remove();
      this.rows.delete(key);
    }
  }

  each(f) {
    for (const { fields, item } of this.rows.values()) f(fields, item);
  }
}

const queues = new Rows("queue-row");
const batches = new Rows("batch-row");

function fillQueue(fields, q) {
  setText(fields.endpoint, q.endpoint);
  setText(fields.upstream, q.upstream);
  setText(fields.models, q.models.join(", ") + (q.more ? ` and ${number.format(q.more)} more` : ""));
  setText(fields.payer, q.payer);
  setText(fields.calls, number.format(q.calls));
  setText(fields.bytes, size(q.bytes));
}

function fillBatch(fields, b) {
  const done = b.completed + b.failed;
  const counts = `${number.format(done)} of ${number.format(b.total)}`;
  setText(fields.id, b.id || "not created");
  setText(fields.about, [b.endpoint, b.models.join(", ")].filter(Boolean).join(" · "));
  setText(fields.status, words(b.status));
  fields.status.dataset.tone = TONES[b.status] || "busy";
  fields.bar.dataset.tone = fields.status.dataset.tone;
  fields.bar.max = Math.max(b.total, done, 1);
  fields.bar.value = done;
  fields.bar.setAttribute("aria-label", `${b.id || "batch"}: ${counts} done`);
  setText(fields.counts, counts);
  setText(fields.failures, b.failed ? ` · ${number.format(b.failed)} failed` : "");
  setText(fields.window, b.window && !b.finished ? ` of ${b.window}` : "");
  setText(fields.event, EVENTS[b.event] || words(b.event));
  setText(fields.error, b.error || "");
}

// age brings up to date what changes by itself.
function age() {
  const now = serverNow();
  queues.each((fields, q) => setText(fields.age, duration(now - q.opened)));
  batches.each((fields, b) => {
    const took = b.id ? `took ${duration(b.ended - b.created)}` : "";
    setText(fields.age, b.finished ? took : duration(now - b.created));
    setText(fields.since, `${duration(now - b.eventTime)} ago`);
  });
}

// ---- The whole page.

function show() {
  const running = state.batches.filter((b) => !b.finished).length;
  const finished = state.batches.length - running;
  const idle = !state.queues.length && !state.batches.length && !(state.answered + state.failed + state.left);

  $("empty").hidden = !idle;
  $("content").hidden = idle;
  $("closing").hidden = !state.closing;
  for (const name of ["queued", "running", "answered", "failed", "left"]) {
    setText($(name), number.format(state[name]));
    $(name).classList.toggle("zero", state[name] === 0);
  }
  $("failed").classList.toggle("alarm", state.failed > 0);

  const queueBody = $("queues").tBodies[0];
  queues.update(state.queues, (q) => JSON.stringify([q.payer, q.upstream, q.endpoint, q.opened]), () => queueBody, fillQueue);
  $("queues").hidden = !state.queues.length;
  $("no-queues").hidden = state.queues.length > 0;
  setText($("queues-note"), state.hidden ? `and ${count(state.hidden, "queue")} more` : "");

  batches.update(state.batches, (b) => b.seq, (b) => $(b.finished ? "finished" : "active"), fillBatch);
  $("batches").hidden = !state.batches.length;
  $("no-batches").hidden = state.batches.length > 0;
  setText($("batches-note"), `${number.format(running)}${state.crowded ? " or more" : ""} running, ${number.format(finished)} finished`);

  document.title = running ? `${running} running · autobatcher` : "autobatcher";
  age();
  announce(`${count(running, "batch")} running, ${finished} finished. ${count(state.queued + state.running, "call")} waiting, ${number.format(state.answered)} answered.`);
}

// announce tells a screen reader, but not every second.
let announced = -Infinity;
let pending = 0;
function announce(text) {
  clearTimeout(pending);
  const wait = announced + SUMMARY_EVERY - Date.now();
  if (wait > 0) {
    pending = setTimeout(announce, wait, text);
    return;
  }
  if ($("summary").textContent === text) return;
  announced = Date.now();
  $("summary").textContent = text;
}

function showExample() {
  const base = new URL("../v1", import.meta.url);
  base.search = "";
  const lines = [
    `export OPENAI_BASE_URL=${base.href}`,
    "export OPENAI_API_KEY=dummy",
    'curl "$OPENAI_BASE_URL/chat/completions" \\',
    '  -H "Authorization: Bearer $OPENAI_API_KEY" -H "Content-Type: application/json" \\',
    `  -d '{"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hello"}]}'`,
  ].join("\n");
  setText($("try"), lines);
  if (!navigator.clipboard) return; // as on plain HTTP from another machine
  $("copy").hidden = false;
  $("copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(lines);
      setText($("copy"), "Copied");
    } catch {
      setText($("copy"), "Select the lines instead");
    }
    setTimeout(() => setText($("copy"), "Copy"), 2000);
  });
}

// ---- The connection.

let stream = null;
let heard = 0;
let retry = 0;

function connection(name, text) {
  $("connection").dataset.state = name;
  setText($("connection"), text);
  document.body.classList.toggle("stale", name === "lost");
}

function lost() {
  connection("lost", "Connection lost, reconnecting…");
}

function disconnect() {
  clearTimeout(retry);
  stream?.close();
  stream = null;
}

function connect() {
  disconnect();
  heard = Date.now();
  stream = new EventSource(url("events"));
  stream.addEventListener("state", (e) => {
    heard = Date.now();
    state = JSON.parse(e.data);
    skew = state.now - heard;
    connection("live", "Live");
    show();
    chart?.show(state, serverNow());
  });
  stream.addEventListener("chart", (e) => {
    heard = Date.now();
    history = JSON.parse(e.data);
    chart?.update(history);
  });
  stream.addEventListener("error", () => {
    lost();
    // The browser tries again by itself, but not after an answer it dislikes.
    if (stream?.readyState === EventSource.CLOSED) retry = setTimeout(connect, RETRY_AFTER);
  });
}

// A page that nobody looks at frees its connection: a browser has six for a
// host, and a phone has a battery.
document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));

setInterval(() => {
  if (state) age();
  if (stream && Date.now() - heard > STALE_AFTER) {
    lost();
    connect();
  }
}, 1000);

showExample();
connect();

// The tables do not wait for the chart, and do without if it fails.
const { Chart } = await import(url("chart.js"));
chart = new Chart();
if (history) chart.update(history);
if (state) chart.show(state, serverNow());
