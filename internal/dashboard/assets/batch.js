// The page of one batch, at #/batches/ID: counts, reasons of failures, files,
// metadata, tokens, cost, timeline, and cancellation.

const load = (name) => import(new URL(name + new URL(import.meta.url).search, import.meta.url).href);
const { $, copyButton, count, counts, dollars, duration, element, end, fillReasons, isFlex, name, number, sandbox, setBar, setRows, setText, time, tone, url, words } = await load("format.js");

const EVENTS = {
  batch_submitted: "Submitted",
  batch_resumed: "Found in the journal, and watched again",
  batch_submission_failed: "Could not be submitted",
  batch_progress: "Progress",
  batch_completed: "Completed, and the answers were delivered",
  batch_terminal: "Ended",
  batch_cancel_requested: "Cancellation requested",
  batch_cancelled_upstream: "Cancellation accepted",
  batch_cancel_failed: "Cancellation failed",
};

export class BatchView {
  constructor() {
    this.batch = null; // as in the list
    this.details = null; // null until the server has answered
    $("cancel").addEventListener("click", () => this.confirm());
    $("confirm-no").addEventListener("click", () => $("confirm").close());
    $("confirm-yes").addEventListener("click", () => this.cancel());
  }

  // focus moves the focus to the batch that was opened.
  focus() {
    $("batch-title").focus();
    scrollTo(0, 0);
  }

  confirm() {
    const what = isFlex(this.batch) ? "call" : "batch";
    setText($("confirm-title"), `Cancel this ${what}?`);
    for (const kind of ["call", "batch"]) $(`confirm-${kind}`).hidden = kind !== what;
    setText($("confirm-no"), `Keep the ${what}`);
    setText($("confirm-yes"), `Cancel the ${what}`);
    $("confirm").showModal();
  }

  // update shows a batch of the list; null: a batch that is not listed.
  update(batch, now) {
    const other = batch?.seq !== this.batch?.seq;
    const changed = batch && (other || batch.rev !== this.batch.rev);
    this.batch = batch;
    if (other) {
      this.details = null;
      setText($("batch-result"), "");
      $("confirm").close();
    }
    if (changed) this.fetch(batch);
    this.show(now);
  }

  async fetch({ seq }) {
    try {
      const response = await fetch(url(`batch?seq=${seq}`));
      const details = await response.json();
      if (this.batch?.seq !== seq || details.rev < this.details?.rev) return; // another batch was opened, or a later answer came first
      this.details = details;
      this.show(this.now);
    } catch {
      if (this.batch?.seq === seq) setText($("batch-result"), "The details could not be loaded.");
    }
  }

  show(now) {
    this.now = now;
    const b = this.batch;
    for (const part of $("batch").querySelectorAll(".card")) part.hidden = !b && !part.contains($("batch-title"));
    for (const id of ["batch-status", "batch-bar", "batch-facts"]) $(id).hidden = !b;
    $("cancel").hidden = !b || b.finished || !b.id || b.status === "cancelling" || !document.body.hasAttribute("data-cancel");
    setText($("cancel"), b && isFlex(b) ? "Cancel call…" : "Cancel batch…");
    setText($("batch-title"), b ? b.id || "Batch that was not created" : "This batch is not listed");
    if (!b) {
      setText($("batch-result"), "The page lists running batches, the last 1,000 finished batches since the start of the process, and calls at the flex tier while they run in the background.");
      return;
    }
    setText($("batch-status"), words(b.status));
    $("batch-status").dataset.tone = tone(b.status);
    setBar($("batch-bar"), b);
    this.showFacts(b, this.details || {}, now);
    this.showReasons(this.details?.reasons || []);
    this.showTimeline(this.details?.timeline || []);
  }

  // showFacts updates the facts, but leaves a fact that has not changed, so that the
  // focus stays on its button.
  showFacts(b, d, now) {
    const c = b.cost;
    const [at, basis] = end(b, now);
    const estimate = (text) => (c ? `about ${text} (estimate, prices of ${c.date || "--prices"}${sandbox ? ", made up" : ""})` : "not known");
    const facts = [
      [isFlex(b) ? "Call at the flex tier" : "Batch", b.id, true],
      ["Lines", `${counts(b)}, ${count(b.failed, "error")}`],
      ["Endpoint", b.endpoint],
      ["Models", b.models.join(", ")],
      ["Client keys", (b.callers || []).join(", ")],
      ["Error", b.error],
      ["Created", time(b.created)],
      [b.finished ? "Ended" : "End", b.finished ? `${time(b.ended)}${b.id ? `, after ${duration(b.ended - b.created)}` : ""}` : [at, basis].filter(Boolean).join("; ")],
      ["Completion window", isFlex(b) ? "" : b.window],
      ["Cost", estimate(c && dollars(c.usd))],
      ["Saved", estimate(c && dollars(c.savings))],
      ["Tokens", c ? `${number.format(c.input)} in (${number.format(c.cached)} cached), ${number.format(c.output)} out` : "not known"],
      ["Answers without a known price", c?.unpriced ? number.format(c.unpriced) : ""],
      ["Input file", d.inputFile, true],
      ["Output file", d.outputFile, true],
      ["Error file", d.errorFile, true],
      ...(b.metadata || []).map((pair) => ["Metadata", pair]),
    ].filter(([, text]) => text);
    const list = $("batch-facts");
    const key = JSON.stringify([b.seq, facts.map(([label]) => label)]);
    if (list.dataset.key !== key) {
      list.dataset.key = key;
      list.replaceChildren(...facts.map(([label]) => element("div", {}, element("dt", {}, label), element("dd", {}))));
    }
    facts.forEach(([label, text, copied], i) => {
      const dd = list.children[i].lastElementChild;
      if (dd.dataset.text === text) return;
      dd.dataset.text = text;
      const button = copied && copyButton(text, label.toLowerCase());
      dd.replaceChildren(copied ? element("code", {}, text) : text, ...(button ? [" ", button] : []));
    });
  }

  showReasons(reasons) {
    fillReasons($("batch-reasons"), reasons);
    const known = reasons.reduce((sum, r) => sum + (r.fromLine ? r.calls : 0), 0);
    let note = "";
    if (!reasons.length && !this.batch.failed) note = "No call of this batch has failed.";
    else if (known < this.batch.failed) {
      note = `The provider counts ${count(this.batch.failed, "failed line")}. ${count(known, "call")} got the provider's error. The other lines were sent again, wait for their answers, or have no caller at this process.`;
    }
    setText($("batch-reasons-note"), note);
    $("batch-reasons-note").hidden = !note;
  }

  showTimeline(timeline) {
    setRows($("batch-timeline"), timeline, (m) => {
      const what = [EVENTS[m.event] || words(m.event), words(m.status), m.total ? `${number.format(m.done)} of ${number.format(m.total)} done` : ""].filter(Boolean).join(" · ");
      return element("li", {}, element("time", { datetime: new Date(m.time).toISOString() }, time(m.time)), element("span", {}, what), ...(m.error ? [element("span", { class: "sub bad" }, m.error)] : []));
    });
  }

  async cancel() {
    $("confirm").close();
    const { id } = this.batch;
    setText($("batch-result"), "Asking the provider to cancel…");
    try {
      // A page of another origin cannot send the header.
      const response = await fetch(url(`cancel?id=${encodeURIComponent(id)}`), { method: "POST", headers: { "Autobatcher-Page": "cancel" } });
      const answer = response.ok ? null : await response.json();
      setText($("batch-result"), answer ? `Not cancelled: ${answer.error.message}` : "The provider has accepted the cancellation. The status follows with the next look.");
    } catch {
      setText($("batch-result"), "Not cancelled: the server did not answer.");
    }
  }
}
