// The chart shows the number of waiting calls as a line, and the number of answered
// calls as bars. uPlot, loaded by a script tag of the page, draws the chart.

const MINUTE = 60_000;
const SHORT = 15 * MINUTE; // up to this time span, each sample has a bar
const LEAST = 5 * MINUTE; // minimum time span of the chart
const PER_BAR = 6; // samples per bar beyond SHORT
const SAMPLES = 360; // samples in a full history
const TABLE_ROWS = 12;

const $ = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");
const compact = new Intl.NumberFormat("en", { notation: "compact" });
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const exact = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function span(ms) {
  if (ms < MINUTE) return `${Math.round(ms / 1000)} s`;
  return ms === MINUTE ? "minute" : `${Math.round(ms / MINUTE)} min`;
}

// samples returns the history with an additional sample for now, and the time span.
function samples(history, state, now) {
  const all = history.times.map((time, i) => ({ time, waiting: history.waiting[i], answered: history.answered[i] }));
  all.push({ time: now, waiting: state.queued + state.running, answered: Math.max(0, state.answered - history.total) });
  const longest = history.step * SAMPLES;
  const window = Math.min(longest, Math.max(LEAST, now - all[0].time));
  return { all: all.filter((s) => s.time >= now - window - history.step), window };
}

// columns returns the data for uPlot. uPlot connects the points around an undefined
// value, and leaves a gap at null, which marks a pause of the process.
function columns(all, step, bar, from) {
  const rows = new Map();
  const at = (time) => {
    if (!rows.has(time)) rows.set(time, { waiting: undefined, answered: undefined });
    return rows.get(time);
  };
  all.forEach((s, i) => {
    const before = all[i - 1];
    if (before && s.time - before.time > 3 * step) at(before.time + step).waiting = null;
    at(s.time).waiting = s.waiting;
    const start = Math.floor((s.time - 1) / bar) * bar;
    if (start >= from) at(start).answered = (at(start).answered ?? 0) + s.answered;
  });
  const times = [...rows.keys()].sort((a, b) => a - b);
  return [
    times.map((t) => t / 1000),
    times.map((t) => rows.get(t).answered),
    times.map((t) => rows.get(t).waiting),
  ];
}

export class Chart {
  constructor() {
    this.element = $("chart");
    this.plot = null;
    this.range = [0, 1];
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(this.element);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.rebuild());
    $("chart-details").addEventListener("toggle", () => this.table());
  }

  // update sets the history; show draws the history with the next snapshot.
  update(history) {
    this.history = history;
  }

  show(state, now) {
    if (!this.history || this.element.clientWidth === 0) return;
    const { all, window } = samples(this.history, state, now);
    this.all = all;
    this.window = window;
    this.bar = window <= SHORT ? this.history.step : this.history.step * PER_BAR;
    this.range = [(now - window) / 1000, now / 1000];
    this.data = columns(all, this.history.step, this.bar, now - window);
    if (this.plot) this.plot.setData(this.data);
    else this.rebuild();
    this.describe();
    this.table();
  }

  size() {
    return { width: this.element.clientWidth, height: this.element.clientHeight };
  }

  rebuild() {
    if (!this.data) return;
    this.plot?.destroy();
    const axis = {
      stroke: color("--muted"),
      font: `12px ${color("--sans")}`,
      ticks: { show: false },
      grid: { stroke: color("--line"), width: 1 },
    };
    const hours = [1, 5, 10, 15, 30, 60, 120, 360, 720, 1440].map((m) => m * 60);
    this.plot = new uPlot(
      {
        ...this.size(),
        legend: { show: false },
        padding: [8, 8, 0, 0],
        cursor: { y: false, drag: { x: false, y: false }, points: { show: false } },
        scales: {
          x: { time: true, range: () => this.range },
          y: { range: (_, __, most) => [0, Math.max(4, (most || 0) * 1.1)] },
        },
        axes: [
          { ...axis, grid: { show: false }, size: 28, space: 70, incrs: hours, values: (_, ticks) => ticks.map((t) => clock.format(t * 1000)) },
          { ...axis, size: 46, space: 36, incrs: [1, 2, 5].flatMap((n) => [...Array(9).keys()].map((e) => n * 10 ** e)).sort((a, b) => a - b), values: (_, ticks) => ticks.map((t) => compact.format(t)) },
        ],
        series: [
          {},
          { fill: color("--answered"), width: 0, points: { show: false }, paths: uPlot.paths.bars({ size: [0.75, 28], align: 1, radius: 0.2 }) },
          { stroke: color("--waiting"), width: 2, fill: color("--waiting") + "22", points: { show: false } },
        ],
        hooks: { setCursor: [() => this.readout()] },
      },
      this.data,
      this.element,
    );
  }

  // readout shows the values at the pointer.
  readout() {
    const { left } = this.plot.cursor;
    if (left < 0) {
      $("readout").textContent = "";
      return;
    }
    const time = this.plot.posToVal(left, "x") * 1000;
    const near = this.all.reduce((a, b) => (Math.abs(b.time - time) < Math.abs(a.time - time) ? b : a));
    const start = Math.floor(time / this.bar) * this.bar;
    const answered = this.data[1][this.data[0].indexOf(start / 1000)] ?? 0;
    $("readout").textContent = `${(this.bar < MINUTE ? exact : clock).format(time)} · ${number.format(near.waiting)} waiting · ${number.format(answered)} answered`;
  }

  // describe sets the labels of the chart and the description for screen readers.
  describe() {
    const waiting = this.all.map((s) => s.waiting);
    const answered = this.all.reduce((sum, s) => sum + s.answered, 0);
    const period = this.window === 60 * MINUTE ? "hour" : span(this.window);
    $("answered-label").textContent = `answered each ${span(this.bar)}`;
    $("chart-title").textContent = `Calls over the last ${period}`;
    this.element.setAttribute(
      "aria-label",
      `Chart of the last ${period}: ${number.format(waiting.at(-1))} calls are waiting now, ` +
        `${number.format(Math.max(...waiting))} at most; ${number.format(answered)} were answered.`,
    );
  }

  // table shows the data of the chart in TABLE_ROWS rows, if the table is open.
  table() {
    if (!$("chart-details").open || !this.all) return;
    const until = this.all.at(-1).time;
    const length = this.window / TABLE_ROWS;
    const rows = [];
    for (let i = 0; i < TABLE_ROWS; i++) {
      const end = until - i * length;
      const part = this.all.filter((s) => s.time > end - length && s.time <= end);
      if (part.length === 0) continue;
      const row = document.createElement("tr");
      const cells = [(length < MINUTE ? exact : clock).format(end), number.format(Math.max(...part.map((s) => s.waiting))), number.format(part.reduce((n, s) => n + s.answered, 0))];
      cells.forEach((text, column) => {
        const cell = row.appendChild(document.createElement(column ? "td" : "th"));
        if (column) cell.className = "number";
        else cell.scope = "row";
        cell.textContent = text;
      });
      rows.push(row);
    }
    $("chart-rows").replaceChildren(...rows);
  }
}
