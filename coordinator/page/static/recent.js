// The requests of this page, the newest first. Nothing outlives the page.

import { visible } from "./token.js";

const KEPT_MAX = 20;

export class Recent {
  /** `onPick(generation)` is told which one is to be seen again. */
  constructor(table, onPick) {
    this.body = table.tBodies[0];
    this.onPick = onPick;
  }

  add(generation) {
    const row = this.body.insertRow(0);
    const button = document.createElement("button");
    button.type = "button";
    button.className = "quiet";
    button.textContent = visible(generation.ask.text, 40) || "(empty)";
    button.addEventListener("click", () => this.onPick(generation));
    const timings = generation.finished?.timings;
    const acceptance = timings?.draft_n ? `${Math.round(100 * timings.draft_n_accepted / timings.draft_n)} %` : "–";
    const mode = generation.finished?.speculation.mode.replace("_", " ") ?? (generation.error ? "failed" : "stopped");
    const cuts = generation.numCuts ? `, cut ${generation.numCuts} ×` : "";
    const rate = generation.finished?.metrics.tokens_per_second;
    row.insertCell().append(button);
    for (const text of [mode + cuts, generation.tokens.length, rate ? rate.toFixed(0) : "–", acceptance]) {
      row.insertCell().textContent = text;
    }
    while (this.body.rows.length > KEPT_MAX) this.body.deleteRow(-1);
  }
}
