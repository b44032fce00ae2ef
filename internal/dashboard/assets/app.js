// The page receives snapshots and changes from the server and shows them. Data from
// the server is set as text, never as markup.

// load loads a part of the page, with the key of this file's URL.
const load = (name) => import(new URL(name + new URL(import.meta.url).search, import.meta.url).href);
const { $, Rows, copy, count, dollars, duration, element, fillReasons, isFlex, name, number, sandbox, setRows, setText, size, url } = await load("format.js");
const [{ List }, { BatchView }] = await Promise.all([load("list.js"), load("batch.js")]);

const STALE_AFTER = 30_000; // ms without an event; the server sends an event at least every 10 s
const RETRY_AFTER = 3_000; // ms, if the browser does not reconnect
const SUMMARY_EVERY = 10_000; // ms between two announcements for screen readers

let state = null; // the latest snapshot, without the batches
const batches = new Map(); // number → batch
let history = null; // the latest history, for the time when chart.js is loaded
let clockOffset = 0; // server time minus browser time, in ms
let chart = null; // a Chart, after chart.js is loaded

const serverNow = () => Date.now() + clockOffset;

// receive takes a snapshot, or the changes since the last snapshot.
function receive(s) {
  if (!s.changes) batches.clear();
  for (const b of s.batches) batches.set(b.seq, b);
  for (const seq of s.gone || []) batches.delete(seq);
  state = s;
}

const used = (l) => l.waiting + l.ok + l.failed > 0;

// ---- The figures, the queues and the totals.

const queues = new Rows("queue-row", $("queues").tBodies[0]);
const list = new List();
const view = new BatchView();

function fillQueue(fields, q) {
  setText(fields.endpoint, q.endpoint);
  setText(fields.upstream, q.upstream);
  setText(fields.models, q.models.join(", ") + (q.more ? ` and ${number.format(q.more)} more` : ""));
  setText(fields.account, [q.account, ...(q.callers || [])].join(" · "));
  setText(fields.calls, number.format(q.calls));
  setText(fields.bytes, size(q.bytes));
}

function showFigures() {
  for (const figure of ["ok", "errors", "noAnswer", "queued", "running", "left"]) {
    setText($(figure), number.format(state[figure]));
    $(figure).classList.toggle("zero", state[figure] === 0);
  }
  $("errors").classList.toggle("alarm", state.errors > 0);
  $("noAnswer").classList.toggle("alarm", state.noAnswer > 0);
  const c = state.cost;
  setText($("saved"), c ? dollars(c.savings) : "–");
  $("saved").classList.toggle("zero", !c);
  if (c) {
    const without = c.unpriced ? `, without ${count(c.unpriced, "answer")} of unknown price` : "";
    setText($("saved-note"), `estimate${sandbox ? " of made-up answers" : ""}: the answers cost about ${dollars(c.usd)}, with prices of ${c.date || "--prices"}${without}`);
  }
  const b = state.budget;
  $("budget").hidden = !b;
  if (b) setText($("budget"), `Budget: ${dollars(b.spent)} of ${dollars(b.limit)} spent (estimates)${b.refused ? `; ${count(b.refused, "call")} refused` : ""}.`);
  fillReasons($("reasons"), state.reasons || []);
  $("reasons-card").hidden = !state.reasons?.length;
}

// showLanes shows the calls in each lane, and what to know about those at the flex tier,
// unless all calls are in batches, which the tiles count.
function showLanes() {
  const cell = (n) => element("td", { class: "number" }, number.format(n));
  setRows($("lanes").tBodies[0], state.lanes, (l) => element("tr", {}, element("th", { scope: "row" }, l.name), cell(l.waiting), cell(l.ok), cell(l.failed)));
  $("lanes-card").hidden = !state.lanes.slice(1).some(used);
  $("lanes-flex").hidden = !state.lanes[1].waiting;
  $("other-tier").hidden = !state.otherTier;
  setText($("other-tier-count"), number.format(state.otherTier));
}

function showTotals() {
  const cell = (text) => element("td", { class: "number" }, text);
  const row = ([what, t]) => {
    const known = t.priced > 0, tokens = t.input + t.output > 0;
    return element("tr", {}, element("th", { scope: "row" }, element("span", { class: "strong" }, t.name), element("span", { class: "sub" }, what)),
      cell(number.format(t.priced + t.unpriced)), cell(tokens ? number.format(t.input) : "not known"), cell(tokens ? number.format(t.output) : "not known"),
      cell(known ? dollars(t.usd) : "not known"), cell(known ? dollars(t.savings) : "not known"));
  };
  const items = [...state.byLane.map((t) => ["lane", t]), ...state.models.map((t) => ["model", t]), ...state.keys.map((t) => ["account and key", t])];
  $("totals").hidden = !items.length;
  setRows($("totals").tBodies[0], items, row);
  $("totals-card").hidden = !items.length && $("metadata-totals").hidden;
  setText($("totals-note"), "since the start of this process; costs are estimates");
}

// showTimes shows how long batches and calls at the flex tier took.
function showTimes() {
  const cell = (text) => element("td", { class: "number" }, text);
  setRows($("times").tBodies[0], state.times, (t) =>
    element("tr", {}, element("th", { scope: "row" }, element("span", { class: "strong" }, t.model || "no model"), element("span", { class: "sub" }, t.provider)),
      element("td", {}, t.window), cell(number.format(t.count)), cell(duration(t.median)), cell(duration(t.p90))));
  $("times-card").hidden = !state.times.length;
}

// updateAges updates the texts that change with the time.
function updateAges() {
  const now = serverNow();
  queues.each((fields, q) => setText(fields.age, duration(now - q.opened)));
  list.tick(now);
  if (opened() !== null) view.show(now);
}

// ---- The whole page.

// opened returns the name of the batch whose page is open, or null.
function opened() {
  if (!location.hash.startsWith("#/batches/")) return null;
  try {
    return decodeURIComponent(location.hash.slice(10));
  } catch {
    return ""; // not the name of a batch
  }
}
const named = (wanted) => [...batches.values()].find((b) => name(b) === wanted) || null;

function show() {
  const all = [...batches.values()];
  const running = all.filter((b) => !b.finished && !isFlex(b)).length;
  const idle = !state.queues.length && !all.length && !state.left && !state.lanes.some(used);
  const wanted = opened();

  $("empty").hidden = !idle || wanted !== null;
  $("content").hidden = idle || wanted !== null;
  $("batch").hidden = wanted === null;
  $("closing").hidden = !state.closing;
  showFigures();
  queues.update(state.queues, (q) => JSON.stringify([q.account, q.upstream, q.endpoint, q.opened]), fillQueue);
  $("queues").hidden = !state.queues.length;
  $("no-queues").hidden = state.queues.length > 0;
  setText($("queues-note"), state.hidden ? `and ${number.format(state.hidden)} more` : "");
  list.update(all, state, serverNow());
  showLanes();
  showTotals();
  showTimes();
  if (wanted !== null) view.update(named(wanted), serverNow());

  const title = sandbox ? "autobatcher (sandbox)" : "autobatcher";
  document.title = wanted !== null ? `${wanted} · ${title}` : running ? `${running} running · ${title}` : title;
  updateAges();
  announce(`${list.summary()}, ${number.format(state.finished)} finished. ${count(state.queued + state.running, "call")} waiting, ${number.format(state.ok)} OK, ${count(state.errors, "error answer")}, ${number.format(state.noAnswer)} without an answer.`);
}

// The hash of the URL says which batch is open, so that links and the back button
// work. The focus goes to the batch, and back to the list.
window.addEventListener("hashchange", (e) => {
  if (!state) return;
  show();
  const wanted = opened();
  if (wanted !== null) view.focus();
  else if (e.oldURL.includes("#/batches/")) {
    const link = document.querySelector(`#batches a[href="${CSS.escape(new URL(e.oldURL).hash)}"]`);
    (link || $("main")).focus();
  }
  chart?.show(state, serverNow());
});

$("skip").addEventListener("click", (e) => {
  e.preventDefault(); // the hash says which batch is open
  $("main").focus();
});

// announce announces a text to screen readers, at most once per SUMMARY_EVERY.
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
  if (!navigator.clipboard) return; // browsers have no clipboard for plain HTTP from another machine
  $("copy").hidden = false;
  $("copy").addEventListener("click", () => copy($("copy"), lines));
}

// ---- The connection.

let stream = null;
let lastEvent = 0; // browser time of the last event, in ms
let retry = 0;

function connection(name, text) {
  $("connection").hidden = false;
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
  lastEvent = Date.now();
  stream = new EventSource(url("events"));
  stream.addEventListener("state", (e) => {
    lastEvent = Date.now();
    receive(JSON.parse(e.data));
    clockOffset = state.now - lastEvent;
    connection("live", "Live");
    show();
    chart?.show(state, serverNow());
  });
  stream.addEventListener("chart", (e) => {
    lastEvent = Date.now();
    history = JSON.parse(e.data);
    chart?.update(history);
  });
  stream.addEventListener("error", () => {
    lost();
    // The browser reconnects, except after an unexpected response.
    if (stream?.readyState === EventSource.CLOSED) retry = setTimeout(connect, RETRY_AFTER);
  });
}

// A hidden page closes the connection: a browser has only six connections per host,
// and a phone saves battery.
document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));

setInterval(() => {
  if (state) updateAges();
  if (stream && Date.now() - lastEvent > STALE_AFTER) {
    lost();
    connect();
  }
}, 1000);

showExample();
connection("connecting", "Connecting…");
connect();

// The chart is loaded last, so that the tables work without the chart.
const { Chart } = await load("chart.js");
chart = new Chart();
if (history) chart.update(history);
if (state) chart.show(state, serverNow());
