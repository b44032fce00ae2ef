// The list of batches: search, filter, order, and pages; and the totals
// by metadata.

const load = (name) => import(new URL(name + new URL(import.meta.url).search, import.meta.url).href);
const { $, Rows, count, counts, dollars, done, duration, element, end, isFlex, name, number, setBar, setRows, setText, tone, words } = await load("format.js");

const narrow = matchMedia("(max-width: 46rem)"); // as in style.css: a row is higher there
const perPage = () => (narrow.matches ? 10 : 25);
const MAX_METADATA = 50;

const FILTERS = {
  all: () => true,
  running: (b) => !b.finished,
  flex: isFlex,
  finished: (b) => b.finished,
  errors: (b) => b.failed > 0 || b.status === "not submitted",
  bad: (b) => ["bad", "warn"].includes(tone(b.status)),
};

const age = (b, now) => (b.finished ? b.ended : now) - b.created;
const share = (b) => done(b) / Math.max(b.total, 1);

// ORDERS have a value for each batch, smallest first; "-" at the end of a name means
// largest first. Equal batches are sorted by default.
const ORDERS = {
  created: (b) => b.created,
  status: (b) => words(b.status),
  done: share,
  errors: (b) => b.failed / Math.max(done(b), 1),
  cost: (b) => b.cost?.usd ?? -1,
  age,
  end: (b) => (b.finished ? Infinity : b.estimate || Number.MAX_VALUE),
};

const compare = (x, y) => (x < y ? -1 : x > y ? 1 : 0);
const byDefault = (x, y) => isFlex(x) - isFlex(y) || x.finished - y.finished || y.seq - x.seq; // calls do not push batches away

function sorted(items, order, now) {
  const value = ORDERS[order.replace("-", "")];
  if (!value) return items.sort(byDefault);
  const sign = order.endsWith("-") ? -1 : 1;
  return items.sort((x, y) => sign * compare(value(x, now), value(y, now)) || byDefault(x, y));
}

function text(b) {
  return [name(b), b.endpoint, words(b.status), ...b.models, ...(b.callers || []), ...(b.metadata || []), b.error || ""].join("\n").toLowerCase();
}

export class List {
  constructor() {
    this.rows = new Rows("batch-row", $("batches").tBodies[0]);
    this.batches = [];
    this.page = 0;
    const restart = () => {
      this.page = 0;
      this.show();
    };
    $("search").addEventListener("input", restart);
    $("filter").addEventListener("change", restart);
    $("sort").addEventListener("change", restart);
    $("previous").addEventListener("click", () => this.turn(-1));
    $("next").addEventListener("click", () => this.turn(1));
    narrow.addEventListener("change", restart);
    for (const button of document.querySelectorAll("[data-sort]")) {
      button.addEventListener("click", () => {
        const orders = button.dataset.sort.split(",");
        $("sort").value = orders[orders.indexOf($("sort").value) + 1] || (orders.includes($("sort").value) ? "default" : orders[0]);
        restart();
      });
    }
  }

  turn(by) {
    this.page += by;
    this.show();
    $("batches").scrollIntoView({ block: "nearest" });
  }

  // update shows other batches at a time of the server.
  update(batches, state, now) {
    this.batches = batches;
    this.now = now;
    const flex = batches.filter(isFlex).length;
    const running = batches.filter((b) => !b.finished).length - flex;
    const listed = batches.length - running - flex;
    const note = `${number.format(running)}${state.partial ? " or more" : ""} running, ${number.format(state.finished)} finished`;
    const beside = flex ? `; and ${count(flex, "call")} at the flex tier` : "";
    setText($("batches-note"), (listed < state.finished ? `${note}, the last ${number.format(listed)} listed` : note) + beside);
    this.show();
    this.showMetadata();
  }

  show() {
    const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const matches = this.batches.filter(FILTERS[$("filter").value]).filter((b) => !words.length || words.every((w) => text(b).includes(w)));
    sorted(matches, $("sort").value, this.now);
    const size = perPage();
    const last = Math.max(0, Math.ceil(matches.length / size) - 1);
    this.page = Math.min(Math.max(this.page, 0), last);
    const from = this.page * size;
    const shown = matches.slice(from, from + size);
    this.rows.update(shown, (b) => b.seq, (fields, b) => this.fill(fields, b));

    $("no-batches").hidden = this.batches.length > 0;
    $("controls").hidden = !this.batches.length;
    $("batches").hidden = !shown.length;
    $("no-matches").hidden = !this.batches.length || shown.length > 0;
    $("pager").hidden = !shown.length || (matches.length === this.batches.length && last === 0);
    // A disabled button would lose the focus.
    $("previous").setAttribute("aria-disabled", this.page === 0);
    $("next").setAttribute("aria-disabled", this.page === last);
    setText($("position"), `${number.format(from + 1)}–${number.format(from + shown.length)} of ${number.format(matches.length)}`);
    for (const button of document.querySelectorAll("[data-sort]")) {
      const order = button.dataset.sort.split(",").includes($("sort").value) ? $("sort").value : "";
      button.closest("th").ariaSort = order ? (order.endsWith("-") ? "descending" : "ascending") : "none";
    }
  }

  fill(fields, b) {
    setText(fields.id, b.id || "not created");
    fields.link.title = b.id;
    fields.link.href = `#/batches/${encodeURIComponent(name(b))}`;
    setText(fields.about, [b.endpoint, b.models.join(", "), (b.callers || []).join(", ")].filter(Boolean).join(" · "));
    setText(fields.error, b.error || "");
    setText(fields.status, words(b.status));
    fields.status.dataset.tone = tone(b.status);
    setBar(fields.bar, b);
    setText(fields.counts, counts(b));
    setText(fields.errors, b.failed ? `${number.format(b.failed)} (${((100 * b.failed) / done(b)).toFixed(b.failed * 100 < done(b) ? 1 : 0)} %)` : "0");
    fields.errors.classList.toggle("bad", b.failed > 0);
    setText(fields.cost, b.cost ? `about ${dollars(b.cost.usd)}` : b.finished ? "not known" : "–");
    setText(fields.saved, b.cost ? `saved ${dollars(b.cost.savings)}` : "");
    this.fillAge(fields, b);
  }

  fillAge(fields, b) {
    setText(fields.age, b.finished && !b.id ? "–" : `${b.finished ? "took " : ""}${duration(age(b, this.now))}`);
    setText(fields.window, isFlex(b) ? "flex tier" : b.window && !b.finished ? `of ${b.window}` : "");
    const [text, basis] = end(b, this.now);
    setText(fields.end, text);
    setText(fields.basis, basis);
  }

  // tick updates the texts that change with the time.
  tick(now) {
    this.now = now;
    this.rows.each((fields, b) => this.fillAge(fields, b));
  }

  // showMetadata adds up the listed batches by name and value of their metadata.
  showMetadata() {
    const sums = new Map();
    for (const b of this.batches.filter((b) => !isFlex(b))) {
      for (const pair of b.metadata || []) {
        const sum = sums.get(pair) || { batches: 0, lines: 0, errors: 0, usd: 0, saved: 0, known: false };
        sum.batches++;
        sum.lines += b.total;
        sum.errors += b.failed;
        if (b.cost) Object.assign(sum, { usd: sum.usd + b.cost.usd, saved: sum.saved + b.cost.savings, known: true });
        sums.set(pair, sum);
      }
    }
    const cell = (text) => element("td", { class: "number" }, text);
    const items = [...sums].sort((x, y) => y[1].batches - x[1].batches || compare(x[0], y[0])).slice(0, MAX_METADATA);
    $("metadata-totals").hidden = !items.length;
    setRows($("metadata-totals").tBodies[0], items, ([pair, s]) =>
      element("tr", {}, element("th", { scope: "row" }, pair), cell(number.format(s.batches)), cell(number.format(s.lines)), cell(number.format(s.errors)),
        cell(s.known ? dollars(s.usd) : "not known"), cell(s.known ? dollars(s.saved) : "not known")),
    );
  }

  // summary describes the list for screen readers.
  summary() {
    const running = this.batches.filter((b) => !b.finished && !isFlex(b)).length;
    return `${count(running, "batch")} running`;
  }
}
